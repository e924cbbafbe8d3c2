"""Language: statements about scenes, their words and their truth; captions that are true and captions that are not."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from alignlab.data.scenes.world import COLORS, SHAPES, SIZES, Scene, Thing, pick

CAPTION_PROMPT = "describe the image ."
IMAGE_INSTRUCTION = "summarize the image in one word :"
CAPTION_INSTRUCTION = "summarize the caption in one word :"

HOLDS: dict[str, Callable[[Thing, Thing], bool]] = {
    "left of": lambda first, second: first.column < second.column,
    "right of": lambda first, second: first.column > second.column,
    "above": lambda first, second: first.row < second.row,
    "below": lambda first, second: first.row > second.row,
}
"""When a relation holds of two objects; a diagonal neighbour is both above and left of."""

RELATIONS = tuple(HOLDS)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

NUMBERS = ("zero", "one", "two", "three", "four")
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

_SAID = (*SHAPES, *COLORS, *SIZES, *RELATIONS, *NUMBERS, *PLURALS.values(), "yes no a . ? :", CAPTION_PROMPT)
_SAID += (IMAGE_INSTRUCTION, CAPTION_INSTRUCTION, "is there are the what color how many objects")
VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys(" ".join(_SAID).split()))
"""Every word the lab can say, in the order in which a tokenizer numbers them."""


class Phrase(NamedTuple):
    """An object as it is spoken of. What is None is not said."""

    shape: str
    color: str | None = None
    size: str | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            self.shape == thing.shape
            and (self.color is None or self.color == thing.color)
            and (self.size is None or self.size == thing.size)
        )

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.shape) if word is not None)


class Statement(NamedTuple):
    """Objects in a row, and the relation of each to the next.

    Args:
        relations: One fewer than phrases.
    """

    phrases: tuple[Phrase, ...]
    relations: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [f"a {self.phrases[0]}"]
        words += [f"{word} a {phrase}" for word, phrase in zip(self.relations, self.phrases[1:], strict=True)]
        return " ".join((*words, "."))


def holds(statement: Statement, scene: Scene) -> bool:
    """Whether the phrases can be given different objects of the scene so that all relations hold."""
    return _extends(statement, scene.things, ())


def _extends(statement: Statement, things: tuple[Thing, ...], chosen: tuple[int, ...]) -> bool:
    place = len(chosen)
    if place == len(statement.phrases):
        return True
    phrase = statement.phrases[place]
    for index, thing in enumerate(things):
        if index in chosen or not phrase.fits(thing):
            continue
        if place and not HOLDS[statement.relations[place - 1]](things[chosen[-1]], thing):
            continue
        if _extends(statement, things, (*chosen, index)):
            return True
    return False


def describe(scene: Scene) -> Statement:
    """The canonical caption: all that is there, in reading order."""
    things = scene.things
    relations = ("left of" if a.row == b.row else "above" for a, b in zip(things, things[1:], strict=False))
    return Statement(tuple(Phrase(*thing[:3]) for thing in things), tuple(relations))


def paraphrases(caption: Statement) -> tuple[Statement, ...]:
    """Other captions that are true wherever this one is: read backwards, and without sizes."""
    short = Statement(tuple(phrase._replace(size=None) for phrase in caption.phrases), caption.relations)
    return (_backwards(caption), short) if caption.relations else (short,)


def _backwards(caption: Statement) -> Statement:
    return Statement(caption.phrases[::-1], tuple(INVERSE[relation] for relation in caption.relations[::-1]))


TRIES = 8
"""How often a negative that came out true is drawn again."""


def negatives(caption: Statement, scene: Scene, random: Random) -> dict[str, Statement]:
    """Captions one step from the canonical one and false of the scene, by kind; a kind that finds none is left out."""
    kinds = {"replace_object": _replace_object, "replace_attribute": _replace_attribute}
    if caption.relations:
        kinds |= {"replace_relation": _replace_relation, "swap_attribute": _swap_attribute}
    found = {}
    for kind, change in kinds.items():
        for _ in range(TRIES):
            changed = change(caption, random)
            if changed is not None and not holds(changed, scene):
                found[kind] = changed
                break
    return found


def _replace_object(caption: Statement, random: Random) -> Statement:
    return _replace_word(caption, "shape", SHAPES, random)


def _replace_attribute(caption: Statement, random: Random) -> Statement:
    attribute, words = pick((("color", COLORS), ("size", SIZES)), random)
    return _replace_word(caption, attribute, words, random)


def _replace_word(caption: Statement, attribute: str, words: tuple[str, ...], random: Random) -> Statement:
    index = int(random.random() * len(caption.phrases))
    phrase = caption.phrases[index]
    others = [word for word in words if word not in phrase]
    return _with_phrases(caption, {index: phrase._replace(**{attribute: pick(others, random)})})


def _replace_relation(caption: Statement, random: Random) -> Statement:
    # Canonical captions never say "right of" or "below"; a negative that did would be known by its words alone.
    index = int(random.random() * len(caption.relations))
    other = "above" if caption.relations[index] == "left of" else "left of"
    relations = (*caption.relations[:index], other, *caption.relations[index + 1 :])
    return Statement(caption.phrases, relations)


def _swap_attribute(caption: Statement, random: Random) -> Statement | None:
    first, second = random.sample(range(len(caption.phrases)), 2)
    a, b = caption.phrases[first], caption.phrases[second]
    differing = [attribute for attribute in ("color", "size") if getattr(a, attribute) != getattr(b, attribute)]
    if not differing:
        return None
    if pick(differing, random) == "color":
        return _with_phrases(caption, {first: a._replace(color=b.color), second: b._replace(color=a.color)})
    return _with_phrases(caption, {first: a._replace(size=b.size), second: b._replace(size=a.size)})


def _with_phrases(caption: Statement, changed: dict[int, Phrase]) -> Statement:
    phrases = tuple(changed.get(index, phrase) for index, phrase in enumerate(caption.phrases))
    return Statement(phrases, caption.relations)
