"""labels: where names stand beside the points they name, so that none covers another."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

DISTANCES = (9, 16, 26, 38, 52, 68, 86, 106)
"""From a point to its name, in typographic points; the farther ones are there for crowds."""

DIRECTIONS = [turn * math.pi / 8 for turn in (0, 8, 4, 12, 2, 14, 6, 10, 1, 15, 7, 9, 3, 13, 5, 11)]
"""From a point to its name: right, left, up, down, and what lies between."""


class Box(NamedTuple):
    """A rectangle, x to the right and y up, in typographic points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0


class Point(NamedTuple):
    x: float
    y: float

    def box(self, radius: float) -> Box:
        return Box(self.x - radius, self.y - radius, self.x + radius, self.y + radius)


def place_names(
    points: Sequence[Point], sizes: Sequence[tuple[float, float]], inside: Box, clear: Sequence[Box]
) -> list[Box]:
    """Find a place for each point's name, one after the other, the nearest that covers the least.

    Args:
        points: What is named.
        sizes: Width and height of each name.
        inside: Where names may stand.
        clear: What names should not cover, but may where there is no other place, such as single cells.

    Returns:
        A box for each name. None overlaps another where there are ten in a plot of some hundred points a side.
    """
    marks, placed = [point.box(6) for point in points], []
    for point, size in zip(points, sizes, strict=True):
        found = [_beside(point, size, *each) for each in itertools.product(DISTANCES, DIRECTIONS)]

        def cost(number: int, found: list[Box] = found) -> tuple[float, int]:
            box = found[number]
            outside = _area(box) - box.overlap(inside)
            covered = sum(map(box.overlap, placed)) + sum(map(box.overlap, marks)) + outside
            soft = sum(map(box.overlap, clear))
            return 100 * covered + 3 * soft + 40 * (number // len(DIRECTIONS)), number

        placed.append(found[min(range(len(found)), key=cost)])
    return placed


def _beside(point: Point, size: tuple[float, float], distance: float, direction: float) -> Box:
    """The box whose nearest edge is about so far from the point, in this direction."""
    width, height = size
    x = point.x + math.cos(direction) * (distance + width / 2)
    y = point.y + math.sin(direction) * (distance + height / 2)
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _area(box: Box) -> float:
    return (box.right - box.left) * (box.top - box.bottom)
