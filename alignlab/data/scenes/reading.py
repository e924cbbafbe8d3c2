"""Reading: the objects of a flat picture, by comparing its cells with every object, and how like a scene they are."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image

from alignlab.data.scenes.language import Statement, describe, holds
from alignlab.data.scenes.picture import BACKGROUND, RGB, coverage, place
from alignlab.data.scenes.world import ATTRIBUTES, COLORS, GRID, SHAPES, SIZES, Scene, Thing

NAMES = tuple(ATTRIBUTES)
"""Of the first entries of a Thing."""

READ_AT = (24, 48)
"""Picture sizes at which is read: small pictures at the first, all others at the second."""


BLURS = tuple(step / 128 for step in range(9))
"""How far pictures may be blurred, in shares of their width (standard deviation of a Gaussian)."""


class Forms(NamedTuple):
    """Every shape in every size and place inside its cell, in one size of picture and equally blurred.

    Args:
        things: F of them, without a colour and in the first cell.
        masks: (F, pixels of a cell), the share of each pixel that it covers, less the mean over the cell.
        costs: (F x colours,), sum of squares of each in each colour.
    """

    things: tuple[Thing, ...]
    masks: np.ndarray
    costs: np.ndarray


def read_scene(picture: Image.Image) -> tuple[Thing, ...]:
    """The objects that a picture in the lab's flat rendering shows, in reading order; also of a blurred or noisy one.

    In each cell it is the object, or nothing, from which the pixels differ least in the sum of squares, the mean of
    every channel left out, as the light of a picture is not known. So what is fainter than half of an object is
    nothing, and so is a cell of one colour. Objects are as blurred as explains the whole picture best.
    """
    size = READ_AT[max(picture.size) > READ_AT[0]]
    picture = picture.convert("RGB")
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BOX)
    cell = size // GRID
    levels = np.asarray(picture, np.float32).reshape(GRID, cell, GRID, cell, 3).transpose(0, 2, 4, 1, 3)
    levels = levels.reshape(GRID * GRID, 3, cell * cell)
    # Less its own mean, though that of a mask is 0: sums of small numbers round less.
    levels = levels - levels.mean(2, keepdims=True)
    readings = [_read(levels, _forms(size, blur)) for blur in BLURS]
    return min(readings, key=lambda reading: reading[0])[1]


def likeness(scene: Scene, things: Sequence[Thing]) -> dict[str, float]:
    """How much of a scene's canonical caption is true of other objects; where they stand matters to relations alone.

    Returns:
        ``shape``, ``color``, ``size``: how many words of the attribute both have, as often as both do, in shares of
            how many the longer list has;
        ``count``: whether they are as many;
        ``relations``: the share of the caption's relations that hold of two such objects; left out where it has none;
        ``exact``: whether there are these objects and no others, wherever they stand.
    """
    truth = scene.things
    found = {name: _overlap([t[place] for t in truth], [t[place] for t in things]) for place, name in enumerate(NAMES)}
    found["count"] = float(len(truth) == len(things))
    phrases, relations = describe(scene)
    pairs = zip(zip(phrases, phrases[1:], strict=False), relations, strict=True)
    held = [holds(Statement(pair, (relation,)), Scene(tuple(things))) for pair, relation in pairs]
    if held:
        found["relations"] = sum(held) / len(held)
    same = Counter(thing[:3] for thing in truth) == Counter(thing[:3] for thing in things)
    return {"exact": float(same)} | found


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> float:
    return sum((Counter(ours) & Counter(theirs)).values()) / max(len(ours), len(theirs), 1)


def _read(levels: np.ndarray, forms: Forms) -> tuple[float, tuple[Thing, ...]]:
    """By how much the objects are nearer to the pixels than an empty ground, negative, and the objects."""
    seen = np.einsum("kc,ncf->nfk", _inks(), levels @ forms.masks.T)  # (cells, F, colours)
    found = forms.costs - 2 * seen.reshape(len(levels), -1)
    best, least = found.argmin(1).tolist(), found.min(1)
    things = []
    for number in np.flatnonzero(least < 0).tolist():
        form, color = divmod(best[number], len(COLORS))
        row, column = divmod(number, GRID)
        things.append(forms.things[form]._replace(color=COLORS[color], row=row, column=column))
    return float(least[least < 0].sum()), tuple(things)


@cache
def _forms(image_size: int, blur: float) -> Forms:
    cell = image_size // GRID
    smear = _smear(cell, blur * image_size)
    things, masks = [], []
    for shape, size in product(SHAPES, SIZES):
        middle, edge = (place(Thing(shape, "", size, 0, 0, (x, 0.0)), image_size)[0] for x in (0.0, 1.0))
        reach = edge - middle
        ticks = [step / max(reach, 1) for step in range(-reach, reach + 1)]
        for y, x in product(ticks, ticks):
            thing = Thing(shape, "", size, 0, 0, (x, y))
            left, top, side = place(thing, image_size)
            mask = np.zeros((cell, cell), np.float32)
            mask[top : top + side, left : left + side] = coverage(shape, side)
            mask = smear @ mask @ smear.T
            things.append(thing)
            masks.append(mask.ravel() - mask.mean())
    costs = np.outer(np.square(masks).sum(1), np.square(_inks()).sum(1)).ravel()
    return Forms(tuple(things), np.stack(masks), costs)


def _smear(width: int, deviation: float) -> np.ndarray:
    """What a Gaussian blur makes of a row of pixels; what it carries beyond the ends is lost. (width, width)"""
    if not deviation:
        return np.eye(width, dtype=np.float32)
    apart = np.arange(-8 * width, 8 * width + 1)
    weights = np.exp(-0.5 * (apart / deviation) ** 2)
    weights /= weights.sum()
    places = np.arange(width)
    return weights[places[:, None] - places[None, :] + 8 * width].astype(np.float32)


@cache
def _inks() -> np.ndarray:
    """By how much each colour differs from the ground. (colours, 3)"""
    return np.array([RGB[color] for color in COLORS], np.float32) - np.array(BACKGROUND, np.float32)
