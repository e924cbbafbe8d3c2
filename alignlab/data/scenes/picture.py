"""Picture: a scene drawn into pixels, from patches that are computed once for each image size."""

from functools import cache
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from alignlab.data.scenes.photographs import read_backgrounds
from alignlab.data.scenes.textures import BAR, TEXTURES, bars, coat, crop, weave
from alignlab.data.scenes.world import COLORS, GRID, SHAPES, SIZES, Scene, Thing, pick

Rendering = Literal["flat", "textured", "photographs"]

RGB = {
    "red": (222, 48, 48),
    "green": (40, 160, 64),
    "blue": (48, 80, 224),
    "yellow": (236, 206, 32),
    "purple": (150, 56, 184),
    "cyan": (56, 200, 220),
    "black": (32, 32, 36),
}
BACKGROUND = (232, 230, 226)
EXTENT = {"small": 1 / 2, "large": 7 / 8}
"""Width of an object in widths of its cell."""

NOISE = 16
"""Levels of the noise of a pixel, and of the light of a whole picture."""


def render(scene: Scene, image_size: int, rendering: Rendering = "flat", backgrounds: str | None = None) -> Image.Image:
    """Draw a scene as an RGB picture of image_size x image_size pixels; the same scene gives the same picture.

    Args:
        rendering: ``flat``: plain objects on a plain ground. ``textured``: every object has a texture and a thin bar
            before it, on a smoothly shaded ground. ``photographs``: the same objects over crops of photographs.
        backgrounds: Folder of the photographs, for ``photographs`` alone.
    """
    random = Random(scene.noise)
    if rendering == "flat":
        canvas = _flat(scene, image_size)
    else:
        grounds = weave(image_size) if rendering == "textured" else read_backgrounds(backgrounds, image_size)
        canvas = _textured(scene, image_size, grounds, random)
    light = random.getrandbits(8) % NOISE
    noise = np.frombuffer(random.randbytes(canvas.size), np.uint8).reshape(canvas.shape)
    canvas += noise % NOISE
    canvas += np.uint8(light)
    return Image.fromarray(canvas)


def place(thing: Thing, image_size: int) -> tuple[int, int, int]:
    """Left, top and side of an object's square patch, in pixels."""
    cell = image_size // GRID
    side = _side(thing.size, image_size)
    slack = cell - side
    # Half of the room at most: a small object stays clear of the neighbouring cell.
    reach = max(slack // 4, 1) if slack > 1 else 0
    x, y = (round(share * reach) for share in thing.shift)
    return thing.column * cell + slack // 2 + x, thing.row * cell + slack // 2 + y, side


def box(thing: Thing, image_size: int) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the pixels an object touches, in [0, 1]."""
    x, y, _ = place(thing, image_size)
    left, top, right, bottom, _, _ = _frame(thing.shape, thing.size, image_size)
    return (x + left) / image_size, (y + top) / image_size, (x + right) / image_size, (y + bottom) / image_size


def center(thing: Thing, image_size: int) -> tuple[float, float]:
    """x and y of an object's centre of mass, which lies inside the object, in [0, 1]."""
    left, top, _ = place(thing, image_size)
    *_, x, y = _frame(thing.shape, thing.size, image_size)
    return (left + x) / image_size, (top + y) / image_size


@cache
def _frame(shape: str, size: str, image_size: int) -> tuple[float, ...]:
    """Left, top, right, bottom, and x, y of the centre of mass, in pixels from the corner of an object's patch."""
    mask = coverage(shape, _side(size, image_size))
    columns, rows = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    # Rounded, so that a centre between two pixels is exactly there.
    y, x = (round(float((each * mask).sum() / mask.sum()), 6) for each in np.mgrid[: len(mask), : len(mask)] + 0.5)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1, x, y


def _side(size: str, image_size: int) -> int:
    return round(image_size // GRID * EXTENT[size] / 2) * 2


def _flat(scene: Scene, image_size: int) -> np.ndarray:
    background, patches = _patches(image_size)
    canvas = background.copy()
    for thing in scene.things:
        left, top, side = place(thing, image_size)
        canvas[top : top + side, left : left + side] = patches[thing.shape, thing.color, thing.size]
    return canvas


def _textured(scene: Scene, image_size: int, grounds: tuple[np.ndarray, ...], random: Random) -> np.ndarray:
    canvas = Image.fromarray(crop(grounds, image_size, random))
    coats = _coats(image_size)
    for thing in scene.things:
        left, top, side = place(thing, image_size)
        colors, alpha = coats[thing.shape, thing.color, thing.size, pick(TEXTURES, random)]
        bar = pick(bars(side, alpha.width), random)
        corner = (left - (alpha.width - side) // 2, top - (alpha.width - side) // 2)
        canvas.paste(colors, corner, alpha)
        canvas.paste(BAR, corner, bar)
    return np.array(canvas)


@cache
def _patches(image_size: int) -> tuple[np.ndarray, dict[tuple[str, str, str], np.ndarray]]:
    """The empty picture and every object on its background, darker by the mean of what light and noise will add."""
    background = np.array(BACKGROUND, np.float64) - NOISE
    patches = {}
    for size in SIZES:
        for shape in SHAPES:
            mask = coverage(shape, _side(size, image_size))[:, :, None]
            for color in COLORS:
                ink = np.array(RGB[color], np.float64) - NOISE
                patches[shape, color, size] = np.rint(mask * ink + (1 - mask) * background).astype(np.uint8)
    return np.broadcast_to(np.rint(background).astype(np.uint8), (image_size, image_size, 3)).copy(), patches


@cache
def _coats(image_size: int) -> dict[tuple[str, str, str, str], tuple[Image.Image, Image.Image]]:
    """Every object in every texture: its colours and how much they cover, each (side + 2 margins) wide."""
    margin = max(image_size // 24, 1)
    inks = {color: np.array(RGB[color], np.float64) - NOISE for color in COLORS}
    coats = {}
    for size in SIZES:
        for shape in SHAPES:
            mask = np.pad(coverage(shape, _side(size, image_size)), margin)
            for texture in TEXTURES:
                for color in COLORS:
                    coats[shape, color, size, texture] = coat(mask, inks[color], texture, image_size)
    return coats


def coverage(shape: str, side: int, *, oversampling: int = 8) -> np.ndarray:
    """Share of each pixel that the shape covers. (side, side) in [0, 1]."""
    count = side * oversampling
    ticks = (np.arange(count) + 0.5) / count * 2 - 1
    x, y = ticks[None, :], ticks[:, None]
    match shape:
        case "circle":
            inside = x**2 + y**2 <= 0.96
        case "square":
            inside = np.maximum(abs(x), abs(y)) <= 0.86
        case "triangle":
            inside = (abs(x) <= (y + 1) / 1.8) & (y <= 0.8)
        case "cross":
            inside = np.minimum(abs(x), abs(y)) <= 0.3
        case "diamond":
            inside = abs(x) + abs(y) <= 1
    return inside.reshape(side, oversampling, side, oversampling).mean(axis=(1, 3))
