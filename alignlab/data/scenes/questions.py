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
    HELD_OUT,
    LOOKS,
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
    """Ask for an object that is there, or for one that is not and differs from it in colour or shape."""
    look, answer = pick(scene.things, random)[:2], pick(("yes", "no"), random)
    absent = _absent(KIN[look], scene) if answer == "no" else ()
    return _is_there(pick(absent, random), "no", "existence") if absent else _is_there(look, "yes", "existence")


def _absent(looks: Sequence[Look], scene: Scene) -> list[Look]:
    present = {thing[:2] for thing in scene.things}
    return [look for look in looks if look not in present]


def _kin(look: Look) -> tuple[Look, ...]:
    """Looks of the same colour or shape; of what is held out, the others that are, else being so would tell."""
    if look in HELD_OUT:
        return tuple(sorted(HELD_OUT - {look}))
    return tuple(other for other in COMMON_LOOKS if (other[0] == look[0]) != (other[1] == look[1]))


KIN = {look: _kin(look) for look in LOOKS}


def _is_there(look: Look, answer: str, kind: str) -> Question:
    shape, color = look
    return Question(f"is there a {color} {shape} ?", answer, kind)


def existence(scene: Scene, random: Random) -> tuple[Question, ...]:
    """A question about an object that is there, and one each about an absent one.

    The absent one is any (``random``), one that a biased world is full of (``popular``), or the usual companion, in
    its usual colour, of an object that is there (``adversarial``, left out where all companions are there). As in POPE,
    the last two can be told by their words to a degree: the blind audit says how far.
    """
    asked = pick(scene.things, random)[:2]
    companions = [(COMPANION[thing.shape], FAVORITE_COLOR[COMPANION[thing.shape]]) for thing in scene.things]
    looks = {
        "random": sorted(HELD_OUT) if asked in HELD_OUT else COMMON_LOOKS,
        "popular": tuple(FAVORITE_COLOR.items()),
        "adversarial": sorted(set(companions)),
    }
    candidates = {kind: _absent(each, scene) for kind, each in looks.items()}
    absent = [_is_there(pick(each, random), "no", kind) for kind, each in candidates.items() if each]
    return (_is_there(asked, "yes", "present"), *absent)


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


def wrong_answers(question: Question, scene: Scene) -> list[str]:
    """The other answers of the kind."""
    answers = [answer for answer in ANSWERS[question.kind] if answer != question.answer]
    if question.kind == "color":
        shape = question.text.split()[-2]
        answers = [color for color in answers if may_say((shape, color), scene)]
    return answers


def said(questions: Sequence[Question], say: Callable[[str], str]) -> tuple[Question, ...]:
    """The questions as a voice has them."""
    return tuple([Question(say(each.text), say(each.answer), each.kind) for each in questions])
