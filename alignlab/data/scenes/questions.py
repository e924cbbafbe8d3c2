"""Questions: what can be asked about a scene, with the only answer, drawn so that the question does not tell it."""

from collections import Counter
from random import Random

from alignlab.batch import Question
from alignlab.data.scenes.language import HOLDS, NUMBERS, PLURALS, RELATIONS
from alignlab.data.scenes.world import COLORS, SHAPES, SIZES, Scene, pick


def ask(scene: Scene, random: Random) -> tuple[Question, ...]:
    """One question of each kind that the scene allows."""
    asked = (_existence(scene, random), _color(scene, random), _count(scene, random), _relation(scene, random))
    return tuple(question for question in asked if question is not None)


def _existence(scene: Scene, random: Random) -> Question:
    """Ask for an object that is there, or for one that differs from it in colour or shape and is not."""
    present = {(thing.color, thing.shape) for thing in scene.things}
    thing = pick(scene.things, random)
    color, shape = thing.color, thing.shape
    answer = pick(("yes", "no"), random)
    while answer == "no" and (color, shape) in present:
        swaps_color = random.random() < 0.5
        color = pick(COLORS, random) if swaps_color else thing.color
        shape = thing.shape if swaps_color else pick(SHAPES, random)
    return Question(f"is there a {color} {shape} ?", answer, "existence")


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
    names = Counter((thing.color, thing.shape) for thing in scene.things)
    known = [thing for thing in scene.things if names[thing.color, thing.shape] == 1]
    if len(known) < 2:
        return None
    first, second = random.sample(known, 2)
    answer = pick(("yes", "no"), random)
    relation = pick([word for word in RELATIONS if HOLDS[word](first, second) == (answer == "yes")], random)
    text = f"is the {first.color} {first.shape} {relation} the {second.color} {second.shape} ?"
    return Question(text, answer, "relation")
