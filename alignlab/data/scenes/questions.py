"""Questions: what can be asked about a scene, with the only answer, drawn so that the question does not tell it."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from alignlab.batch import Question
from alignlab.data.scenes.language import HOLDS, RELATIONS
from alignlab.data.scenes.lexicon import NUMBERS, PLURALS
from alignlab.data.scenes.world import (
    COLORS,
    COMMON_LOOKS,
    COMPANION,
    FAVORITE_COLOR,
    SHAPES,
    SIZES,
    Scene,
    may_say,
    pick,
)

Look = tuple[str, str]
"""Shape and colour."""


def ask(scene: Scene, random: Random) -> tuple[Question, ...]:
    """One question of each kind that the scene allows."""
    asked = (_existence(scene, random), _color(scene, random), _count(scene, random), _relation(scene, random))
    return tuple(question for question in asked if question is not None)


def _existence(scene: Scene, random: Random) -> Question:
    """Ask for an object that is there, or for one that differs from it in colour or shape and is not."""
    present = {thing[:2] for thing in scene.things}
    thing = pick(scene.things, random)
    look, answer = thing[:2], pick(("yes", "no"), random)
    while answer == "no" and (look in present or not may_say(look, scene)):
        swaps_color = random.random() < 0.5
        look = (thing.shape, pick(COLORS, random)) if swaps_color else (pick(SHAPES, random), thing.color)
    return _is_there(look, answer, "existence")


def _is_there(look: Look, answer: str, kind: str) -> Question:
    shape, color = look
    return Question(f"is there a {color} {shape} ?", answer, kind)


def existence(scene: Scene, random: Random) -> tuple[Question, ...]:
    """A question about an object that is there, and one each about an absent one.

    The absent one is any (``random``), one that a biased world is full of (``popular``), or the usual companion, in
    its usual colour, of an object that is there (``adversarial``, left out where all companions are there). In a world
    without bias the three are equally hard.
    """
    present = {thing[:2] for thing in scene.things}
    popular = tuple(FAVORITE_COLOR.items())
    companions = tuple((COMPANION[shape], FAVORITE_COLOR[COMPANION[shape]]) for shape, _ in sorted(present))
    absent = {"random": COMMON_LOOKS, "popular": popular, "adversarial": companions}
    candidates = {kind: [look for look in looks if look not in present] for kind, looks in absent.items()}
    asked = [_is_there(pick(scene.things, random)[:2], "yes", "present")]
    asked += [_is_there(pick(looks, random), "no", kind) for kind, looks in candidates.items() if looks]
    return tuple(asked)


def _color(scene: Scene, random: Random) -> Question | None:
    """Name an object by its shape, with its size where that is needed to know which one is meant."""
    shapes = Counter(thing.shape for thing in scene.things)
    sized = Counter((thing.size, thing.shape) for thing in scene.things)
    named = [
        (thing.shape if shapes[thing.shape] == 1 else f"{thing.size} {thing.shape}", thing.color)
        for thing in scene.things
        if sized[thing.size, thing.shape] == 1
    ]
    if not named:
        return None
    name, color = pick(named, random)
    return Question(f"what color is the {name} ?", color, "color")


def _count(scene: Scene, random: Random) -> Question:
    """Draw the number first and then what there are so many of, else nearly all answers would be zero or one."""
    counts = Counter(word for thing in scene.things for word in thing[:3])
    named: dict[int, list[str]] = {}
    for word, name in COUNTABLE.items():
        named.setdefault(counts[word], []).append(name)
    number = pick(sorted(named), random)
    return Question(f"how many {pick(named[number], random)} are there ?", NUMBERS[number], "count")


COUNTABLE = PLURALS | {word: f"{word} objects" for word in (*COLORS, *SIZES)}


def _relation(scene: Scene, random: Random) -> Question | None:
    """Ask about two objects, each the only one of its colour and shape."""
    names = Counter(thing[:2] for thing in scene.things)
    known = [thing for thing in scene.things if names[thing[:2]] == 1]
    if len(known) < 2:
        return None
    first, second = random.sample(known, 2)
    answer = pick(("yes", "no"), random)
    relation = pick([word for word in RELATIONS if HOLDS[word](first, second) == (answer == "yes")], random)
    text = f"is the {first.color} {first.shape} {relation} the {second.color} {second.shape} ?"
    return Question(text, answer, "relation")


ANSWERS: dict[str, Sequence[str]] = {
    "existence": ("yes", "no"),
    "color": COLORS,
    "count": NUMBERS[:4],
    "relation": ("yes", "no"),
}


def wrong_answer(question: Question, random: Random) -> str:
    """Another answer of the kind."""
    return pick([answer for answer in ANSWERS[question.kind] if answer != question.answer], random)


def said(questions: Sequence[Question], say: Callable[[str], str]) -> tuple[Question, ...]:
    """The questions as a voice has them."""
    return tuple([Question(say(each.text), say(each.answer), each.kind) for each in questions])
