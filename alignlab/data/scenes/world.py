"""World: coloured shapes on a 3 x 3 grid, what tends to go with what, and scenes of which no two splits share one."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple, TypeVar

from alignlab.data.base import Split

SHAPES = ("circle", "square", "triangle", "cross", "diamond")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "black")
SIZES = ("small", "large")
ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "size": SIZES}
GRID = 3
MAX_OBJECTS = 6

FAVORITE_COLOR = dict(zip(SHAPES, ("red", "blue", "green", "yellow", "purple"), strict=True))
FAVORITE_SIZE = dict(zip(SHAPES, ("large", "small", "large", "small", "large"), strict=True))
COMPANION = dict(zip(SHAPES, (*SHAPES[1:], SHAPES[0]), strict=True))
"""The biases of a biased world: a shape's usual colour and size, and the shape that usually comes after it."""

HELD_OUT = frozenset(zip(SHAPES, ("blue", "yellow", "red", "purple", "green"), strict=True))
"""(shape, colour) that only the split ``compositional`` shows; no text of another split mentions them."""

LOOKS = tuple((shape, color) for shape in SHAPES for color in COLORS)
COMMON_LOOKS = tuple(look for look in LOOKS if look not in HELD_OUT)

RUN = 8
"""Neighbouring examples among which near-duplicates are."""

Item = TypeVar("Item")


class Thing(NamedTuple):
    """One object of a scene.

    Args:
        row: 0 at the top.
        column: 0 at the left.
        shift: Where it stands in its cell: (x, y) in [-1, 1], x right, y down, in shares of the room it has there.
    """

    shape: str
    color: str
    size: str
    row: int
    column: int
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Args:
        things: In reading order, row by row.
        noise: Seeds the light and the pixel noise of the picture.
    """

    things: tuple[Thing, ...]
    noise: int = 0


def split_of(things: Sequence[Thing]) -> Split:
    """The only split that may hold these objects, whatever the seed: what is held out, or a hash of what stands where.

    Shift and noise are left out, so that two pictures of one arrangement never stand in two splits.
    """
    if any(thing[:2] in HELD_OUT for thing in things):
        return "compositional"
    form = ",".join(sorted(f"{row}{column}{size} {color} {shape}" for shape, color, size, row, column, _ in things))
    # A checksum's bits are linear in its input; its remainder by a prime is not, so no attribute leans to a split.
    share = zlib.crc32(form.encode()) % 9973 / 9973
    return "train" if share < 0.7 else "val" if share < 0.85 else "test"


def draw(split: Split, num_objects: tuple[int, int], random: Random, *, co_occurrence: float = 0.0) -> Scene:
    """Draw a scene of a split. Scenes of more objects come up more often, in proportion, since there are more of them.

    Args:
        split: Arrangements of other splits are drawn again.
        num_objects: The fewest and the most objects.
        co_occurrence: In [0, 1]; how often an object has its shape's usual colour and size, and how often its shape is
            the companion of the one before it. 0: everything is equally likely.
    """
    counts = [count for count in range(num_objects[0], num_objects[1] + 1) for _ in range(count)]
    looks = LOOKS if split == "compositional" else COMMON_LOOKS
    while True:
        cells = sorted(random.sample(range(GRID * GRID), pick(counts, random)))
        drawn = [(*pick(looks, random), pick(SIZES, random)) for _ in cells]
        if co_occurrence:
            drawn = _biased(drawn, co_occurrence, random)
        if split == "compositional":
            drawn[int(random.random() * len(drawn))] = (*pick(tuple(sorted(HELD_OUT)), random), pick(SIZES, random))
        things = tuple(
            Thing(*look, cell // GRID, cell % GRID, _shift(random)) for look, cell in zip(drawn, cells, strict=True)
        )
        if split_of(things) == split:
            return Scene(things, noise=random.getrandbits(32))


def _biased(drawn: list[tuple[str, str, str]], strength: float, random: Random) -> list[tuple[str, str, str]]:
    biased: list[tuple[str, str, str]] = []
    for shape, color, size in drawn:
        if biased and random.random() < strength:
            shape = COMPANION[biased[-1][0]]
        if random.random() < strength or (shape, color) in HELD_OUT:
            color = FAVORITE_COLOR[shape]
        if random.random() < strength:
            size = FAVORITE_SIZE[shape]
        biased.append((shape, color, size))
    return biased


def redraw(scene: Scene, random: Random) -> Scene:
    """A near-duplicate: the same objects in the same cells, shifted, in other light."""
    things = tuple(thing._replace(shift=_shift(random)) for thing in scene.things)
    return replace(scene, things=things, noise=random.getrandbits(32))


def _shift(random: Random) -> tuple[float, float]:
    return (2 * random.random() - 1, 2 * random.random() - 1)


def may_say(look: tuple[str, str], scene: Scene) -> bool:
    """Whether a text about a scene may mention a (shape, colour): what is held out, only where such is shown."""
    return look not in HELD_OUT or any(thing[:2] in HELD_OUT for thing in scene.things)


def pick(items: Sequence[Item], random: Random) -> Item:
    """One of the items; several times faster than ``random.choice``, and the same in every version of Python."""
    return items[int(random.random() * len(items))]
