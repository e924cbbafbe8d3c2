"""Language: statements about scenes and their truth, and captions that are true, word by word."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from alignlab.batch import Role
from alignlab.data.scenes.world import COLORS, SHAPES, SIZES, Scene, Thing

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
        if self.size is not None and self.color is not None:  # nearly always
            return f"{self.size} {self.color} {self.shape}"
        return " ".join([word for word in (self.size, self.color, self.shape) if word is not None])


class Statement(NamedTuple):
    """Objects in a row, and the relation of each to the next.

    Args:
        relations: One fewer than phrases.
    """

    phrases: tuple[Phrase, ...]
    relations: tuple[str, ...] = ()

    def __str__(self) -> str:
        first, *others = self.phrases
        told = [f" {relation} a {phrase}" for relation, phrase in zip(self.relations, others, strict=True)]
        return f"a {first}{''.join(told)} ."


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
    """The canonical caption, long: all that is there, in reading order."""
    things = scene.things
    relations = ("left of" if a.row == b.row else "above" for a, b in zip(things, things[1:], strict=False))
    return Statement(tuple(Phrase(*thing[:3]) for thing in things), tuple(relations))


def summarize(scene: Scene) -> tuple[Statement, int]:
    """The short caption, shape and colour of one object, and which: the first of the largest."""
    sizes = [thing.size for thing in scene.things]
    index = sizes.index("large") if "large" in sizes else 0
    thing = scene.things[index]
    return Statement((Phrase(thing.shape, thing.color),)), index


def paraphrases(caption: Statement) -> tuple[str, ...]:
    """Other captions that are true wherever this one is: read backwards, as a sentence, and without sizes."""
    backwards = (str(_backwards(caption)),) if caption.relations else ()
    return (*backwards, f"there is {caption}", str(sizeless(caption)))


def sizeless(caption: Statement) -> Statement:
    """The same, but for the sizes."""
    return Statement(tuple(phrase._replace(size=None) for phrase in caption.phrases), caption.relations)


def _backwards(caption: Statement) -> Statement:
    return Statement(caption.phrases[::-1], tuple(INVERSE[relation] for relation in caption.relations[::-1]))


def meaning(scene: Scene) -> tuple[float, ...]:
    """What a perfect reader makes of a caption: which objects there are, and how each stands to the next one.

    Its cosines are shares: of objects, of attributes and of relations that two scenes have in common.
    """
    counts = [0.0] * len(_PLACES)
    for thing in scene.things:
        for word in (thing[:3], *thing[:3]):
            counts[_PLACES[word]] += 1.0
    for first, second in zip(scene.things, scene.things[1:], strict=False):
        for relation, holds in HOLDS.items():
            if holds(first, second):
                counts[_PLACES[first.shape, relation, second.shape]] += 1.0
    return tuple(counts)


_PLACES = {
    word: place
    for place, word in enumerate(
        (*product(SHAPES, COLORS, SIZES), *SHAPES, *COLORS, *SIZES, *product(SHAPES, HOLDS, SHAPES))
    )
}


class Word(NamedTuple):
    """A word of a caption.

    Args:
        thing: The place, in the scene, of the object that it tells something of.
    """

    text: str
    role: Role
    thing: int | None = None


def spell(statement: Statement, things: Sequence[int]) -> list[Word]:
    """A true statement word by word: which words can be read off the picture, and of which object.

    Args:
        things: The object that each phrase is about.
    """
    words = []
    for place, (phrase, thing) in enumerate(zip(statement.phrases, things, strict=True)):
        if place:
            words += [Word(word, "visual") for word in statement.relations[place - 1].split()]
        words.append(Word("a", "filler"))
        words += [Word(word, "visual", thing) for word in (phrase.size, phrase.color, phrase.shape) if word is not None]
    return [*words, Word(".", "filler")]
