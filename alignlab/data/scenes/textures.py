"""Textures: patterns on objects, bars before them and shaded grounds, each computed once for a size."""

from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from alignlab.data.scenes.world import pick

TEXTURES = ("stripes", "checks", "dots", "gradient")
CEILING = 225
"""Brightest level of what is drawn here; light and noise come on top of it."""

BAR = (140, 138, 135)
BAR_WIDTH, BAR_LENGTH = 1 / 8, 9 / 8
"""In widths of the object behind it, of which a bar hides a quarter at most."""

NUM_GROUNDS = 16


def coat(mask: np.ndarray, ink: np.ndarray, texture: str, image_size: int) -> tuple[Image.Image, Image.Image]:
    """Fill a shape with a texture and line it with light, which keeps it apart from whatever lies behind.

    Args:
        mask: Share of each pixel that the shape covers. (side, side) in [0, 1], with a margin.
        ink: The object's colour. (3,) in [0, 255].

    Returns:
        Colours, and how much of what lies behind they cover.
    """
    # Around the ink's own brightness, and neither so dark nor so pale that the colour's name would change.
    dark, bright = 0.76 * ink, np.minimum(ink + 0.15 * (255 - ink), CEILING)
    pattern = _pattern(texture, len(mask), max(image_size / 12, 4))[:, :, None]
    blurred = Image.fromarray(np.uint8(255 * mask)).filter(ImageFilter.GaussianBlur(image_size / 64))
    alpha = np.maximum(mask, np.minimum(np.asarray(blurred) / 255 * 2, 1) * 0.8)
    share = (mask / np.maximum(alpha, 1e-9))[:, :, None]
    colors = share * (pattern * bright + (1 - pattern) * dark) + (1 - share) * CEILING
    return Image.fromarray(np.rint(colors).astype(np.uint8)), Image.fromarray(np.rint(255 * alpha).astype(np.uint8))


def _pattern(texture: str, side: int, period: float) -> np.ndarray:
    """How bright a texture is. (side, side) in [0, 1]."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    angle = 2 * np.pi / period
    match texture:
        case "stripes":
            wave = 2 * np.sin(angle * (x + 2 * y) / 5**0.5)
        case "checks":
            wave = 3 * np.sin(angle * x / 1.5) * np.sin(angle * y / 1.5)
        case "dots":
            wave = 1.5 * (np.cos(angle * x) - np.cos(angle * y)) - 1  # none in the middle: no ring
        case "gradient":
            wave = -(x + 2 * y) / side
    return np.clip((1 + wave) / 2, 0, 1)


@cache
def bars(side: int, width: int) -> tuple[Image.Image, ...]:
    """How much of each pixel a thin bar covers, for bars at several angles and places before an object.

    Args:
        side: Side of the object in pixels.
        width: Side of the bars' pictures; the object is in the middle.
    """
    fine = (np.arange(width * 4) + 0.5) / 4 - width / 2
    masks = []
    for degrees in (20, 70, 110, 160):  # along no edge of a shape
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        across, along = cos * fine[None, :] + sin * fine[:, None], cos * fine[:, None] - sin * fine[None, :]
        for offset in (-0.15, 0, 0.15):
            inside = (abs(across / side - offset) <= BAR_WIDTH / 2) & (abs(along / side) <= BAR_LENGTH / 2)
            masks.append(Image.fromarray(np.uint8(255 * inside.reshape(width, 4, width, 4).mean(axis=(1, 3)))))
    return tuple(masks)


@cache
def weave(image_size: int) -> tuple[np.ndarray, ...]:
    """Smooth, light and nearly grey grounds, larger than a picture. Each (H, W, 3) uint8."""
    side = image_size * 3 // 2
    chance = np.random.Generator(np.random.PCG64(0))
    y, x = np.mgrid[:side, :side] / image_size * 2 * np.pi
    grounds = []
    for _ in range(NUM_GROUNDS):
        waves = [
            np.sin(a * x + b * y + c)
            for a, b, c in zip(chance.uniform(-3, 3, 5), chance.uniform(-3, 3, 5), chance.uniform(0, 7, 5), strict=True)
        ]
        shade = 190 + 12 * np.sum(waves, axis=0) / len(waves) ** 0.5
        tint = chance.uniform(-8, 8, 3)
        grounds.append(np.clip(np.rint(shade[:, :, None] + tint), 0, CEILING).astype(np.uint8))
    return tuple(grounds)


def crop(grounds: tuple[np.ndarray, ...], image_size: int, random: Random) -> np.ndarray:
    """A random part of a random ground, mirrored every other time. (image_size, image_size, 3) uint8."""
    ground = pick(grounds, random)
    top, left = (int(random.random() * (length - image_size + 1)) for length in ground.shape[:2])
    part = ground[top : top + image_size, left : left + image_size]
    return part[:, ::-1] if random.random() < 0.5 else part
