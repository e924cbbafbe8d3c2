"""Picture: a scene drawn into pixels, from patches that are computed once for each image size."""

from functools import cache
from random import Random

import numpy as np
from PIL import Image

from alignlab.data.scenes.world import COLORS, GRID, SHAPES, SIZES, Scene, Thing

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


def render(scene: Scene, image_size: int) -> Image.Image:
    """Draw a scene as an RGB picture of image_size x image_size pixels."""
    background, patches = _patches(image_size)
    canvas = background.copy()
    for thing in scene.things:
        left, top, side = place(thing, image_size)
        canvas[top : top + side, left : left + side] = patches[thing.shape, thing.color, thing.size]
    random = Random(scene.noise)
    light = random.getrandbits(8) % NOISE
    noise = np.frombuffer(random.randbytes(canvas.size), np.uint8).reshape(canvas.shape)
    canvas += noise % NOISE
    canvas += np.uint8(light)
    return Image.fromarray(canvas)


def place(thing: Thing, image_size: int) -> tuple[int, int, int]:
    """Left, top and side of an object's square box, in pixels."""
    cell = image_size // GRID
    side = _side(thing.size, image_size)
    slack = cell - side
    # Half of the room at most: a small object stays clear of the neighbouring cell.
    reach = max(slack // 4, 1) if slack > 1 else 0
    x, y = (round(share * reach) for share in thing.shift)
    return thing.column * cell + slack // 2 + x, thing.row * cell + slack // 2 + y, side


def _side(size: str, image_size: int) -> int:
    return round(image_size // GRID * EXTENT[size] / 2) * 2


@cache
def _patches(image_size: int) -> tuple[np.ndarray, dict[tuple[str, str, str], np.ndarray]]:
    """The empty picture and every object on its background, darker by the mean of what light and noise will add."""
    background = np.array(BACKGROUND, np.float64) - NOISE
    patches = {}
    for size in SIZES:
        for shape in SHAPES:
            mask = _mask(shape, _side(size, image_size))[:, :, None]
            for color in COLORS:
                ink = np.array(RGB[color], np.float64) - NOISE
                patches[shape, color, size] = np.rint(mask * ink + (1 - mask) * background).astype(np.uint8)
    return np.broadcast_to(np.rint(background).astype(np.uint8), (image_size, image_size, 3)).copy(), patches


def _mask(shape: str, side: int, *, oversampling: int = 8) -> np.ndarray:
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
