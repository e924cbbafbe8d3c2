"""panels: pictures for reading, put together from several; they measure nothing."""

import math

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

SIDE = 96
"""A panel's shorter side is at least this many pixels, small pictures being enlarged a whole number of times."""

MOST = 256
GAP = 4
BARS = (300, 110)
"""Width and height of a plot of bars."""

INK, PALE, PAPER = (47, 93, 138), (221, 224, 228), (255, 255, 255)


def picture_of(pixels: Tensor) -> Image.Image:
    """A picture of (3, H, W) in [0, 1]."""
    return Image.fromarray((pixels.float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def beside(*pictures: Image.Image) -> Image.Image:
    """Pictures side by side."""
    panels = [_sized(picture) for picture in pictures]
    width, height = sum(panel.width + GAP for panel in panels) - GAP, max(panel.height for panel in panels)
    whole = Image.new("RGB", (width, height), PAPER)
    left = 0
    for panel in panels:
        whole.paste(panel, (left, 0))
        left += panel.width + GAP
    return whole


def kept_alone(picture: Image.Image, keep: Tensor) -> Image.Image | None:
    """A picture whose dropped patches are nearly white; None where patches are in no square grid.

    Args:
        keep: (N,) bool, patches in raster order.
    """
    side = math.isqrt(len(keep))
    if side**2 != len(keep):
        return None
    grid = Image.fromarray(np.where(keep.cpu().numpy().reshape(side, side), 255, 40).astype(np.uint8))
    mask = grid.resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size, PAPER), mask)


def code_bars(counts: Tensor) -> Image.Image:
    """How often codes come, (K,), the most frequent first; of more than the plot has pixels, means of several."""
    width, height = BARS
    shares = counts.sort(descending=True).values.double().cpu().numpy()
    ends = np.linspace(0, len(shares), min(len(shares), width) + 1).round().astype(int)
    means = [shares[start:end].mean() for start, end in zip(ends, ends[1:], strict=False)]
    plot = Image.new("RGB", BARS, PAPER)
    draw = ImageDraw.Draw(plot)
    draw.line((0, height - 1, width, height - 1), fill=PALE)
    for index, mean in enumerate(means):
        left, right = index * width // len(means), (index + 1) * width // len(means) - 1
        gap = right - left >= 3
        top = height - 1 - round(mean / max(means[0], 1e-9) * (height - 18))
        if mean > 0:
            draw.rectangle((left, min(top, height - 2), max(left, right - gap), height - 2), fill=INK)
    text = f"{int((counts > 0).sum())} of {len(counts)} codes, the most frequent {int(counts.max())} times"
    draw.text((width - 4, 2), text, fill=(90, 98, 110), anchor="ra")
    return plot


def _sized(picture: Image.Image) -> Image.Image:
    times = math.ceil(SIDE / min(picture.size))
    if times > 1:
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    smaller = picture.copy()
    smaller.thumbnail((MOST, MOST))
    return smaller
