"""Photographs: pictures of a folder as backgrounds, read once in a process and made pale, so that shapes stand out."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from alignlab.data.scenes.textures import CEILING
from alignlab.errors import InputError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
NUM_READ = 256
"""Photographs that are read, spread evenly over the sorted names: variety enough, and 130 MB at 240 pixels."""

FLOOR = 105
"""The level black becomes, well above a black object. White becomes textures.CEILING."""

PALENESS = 0.5
"""Share of a photograph's saturation that is taken away."""


@cache
def read_backgrounds(folder: str | None, image_size: int) -> tuple[np.ndarray, ...]:
    """Read the photographs of a folder, not of its subfolders, in the order of their names.

    Returns:
        Each (1.5 image_size, 2 image_size, 3) uint8, so that there are many crops of image_size.

    Raises:
        InputError: There is no such folder, no picture in it, or one that cannot be read.
    """
    if folder is None:
        raise InputError("rendering 'photographs' needs data.backgrounds, a folder of pictures; it is not set")
    if not Path(folder).is_dir():
        raise InputError(f"data.backgrounds: there is no folder {folder}; name one that holds pictures")
    files = sorted(Path(folder).iterdir())
    paths = [path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not paths:
        raise InputError(
            f"data.backgrounds: no picture in the folder {folder}; name one that holds some "
            f"({', '.join(SUFFIXES)}), not only in subfolders"
        )
    step = max(len(paths) / NUM_READ, 1)
    return tuple(_read(paths[int(index * step)], image_size) for index in range(min(len(paths), NUM_READ)))


def _read(path: Path, image_size: int) -> np.ndarray:
    size = (2 * image_size, image_size * 3 // 2)
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", size)  # a JPEG is decoded at a fraction of its size, several times faster
            picture = ImageOps.fit(_opaque(picture), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"data.backgrounds: {path} cannot be read; replace or remove it: {error}") from None
    pixels = np.asarray(picture, np.float32)
    pixels = pixels + PALENESS * (pixels.mean(axis=2, keepdims=True) - pixels)
    return np.rint(FLOOR + (CEILING - FLOOR) / 255 * pixels).astype(np.uint8)


def _opaque(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if picture.mode.startswith("I"):  # 16 bits or more a pixel, which Pillow would clip
        levels = np.asarray(picture, np.float32)
        levels = levels - levels.min()
        return Image.fromarray(np.uint8(255 * levels / max(levels.max(), 1))).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
