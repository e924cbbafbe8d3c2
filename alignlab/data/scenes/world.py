"""World: coloured shapes on a 3 x 3 grid, and scenes drawn from it so that no two splits ever share one."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeVar

from alignlab.data.base import Split

SHAPES = ("circle", "square", "triangle", "cross", "diamond")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "black")
SIZES = ("small", "large")
GRID = 3
MAX_OBJECTS = 4

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
    """The only split that may hold these objects: a hash of what stands where decides, whatever the seed.

    Shift and noise are left out, so that two pictures of one arrangement never stand in two splits.
    """
    form = ",".join(sorted(f"{row}{column}{size} {color} {shape}" for shape, color, size, row, column, _ in things))
    # A checksum's bits are linear in its input; its remainder by a prime is not, so no attribute leans to a split.
    share = zlib.crc32(form.encode()) % 9973 / 9973
    return "train" if share < 0.7 else "val" if share < 0.85 else "test"


def draw(split: Split, num_objects: tuple[int, int], random: Random) -> Scene:
    """Draw a scene of a split. Scenes of more objects come up more often, in proportion, since there are more of them.

    Args:
        split: Arrangements of other splits are drawn again.
        num_objects: The fewest and the most objects.
    """
    counts = [count for count in range(num_objects[0], num_objects[1] + 1) for _ in range(count)]
    while True:
        cells = sorted(random.sample(range(GRID * GRID), pick(counts, random)))
        things = tuple(_draw_thing(cell, random) for cell in cells)
        if split_of(things) == split:
            return Scene(things, noise=random.getrandbits(32))


def _draw_thing(cell: int, random: Random) -> Thing:
    shift = (2 * random.random() - 1, 2 * random.random() - 1)
    return Thing(pick(SHAPES, random), pick(COLORS, random), pick(SIZES, random), cell // GRID, cell % GRID, shift)


def pick(items: Sequence[Item], random: Random) -> Item:
    """One of the items; several times faster than ``random.choice``, and the same in every version of Python."""
    return items[int(random.random() * len(items))]
