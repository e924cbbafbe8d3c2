"""Pictures: a part of a content as an upright RGB image, decoded when it is needed."""

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

from alignlab.batch import PictureBytes
from alignlab.errors import UnreadablePicture


def open_image(part: Image.Image | Path | PictureBytes, *, max_pixels: int | None = None) -> Image.Image:
    """Decode a picture: turned as its EXIF data says, in RGB, the first frame of several.

    Args:
        max_pixels: A picture of more, width x height, is not decoded. None: Pillow's limit, at which decoding may
            exhaust the memory.

    Raises:
        UnreadablePicture: The file is missing, no picture, corrupt, or too large.
    """
    if isinstance(part, Image.Image) and not isinstance(part, ImageFile.ImageFile):
        return _upright_rgb(part)  # it is decoded
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    name = str(part.filename or "in memory") if isinstance(part, Image.Image) else str(part)
    too_large = UnreadablePicture(f"picture {name} has more than {limit or 0:,} pixels; make it smaller")
    try:
        if isinstance(part, Image.Image):
            return _upright_rgb(_within(part, limit, too_large))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked by itself
            image = Image.open(BytesIO(part.content) if isinstance(part, PictureBytes) else part)
        with image:
            return _upright_rgb(_within(image, limit, too_large))
    except UnreadablePicture:
        raise
    except FileNotFoundError:
        raise UnreadablePicture(f"picture {name} does not exist") from None
    except Image.DecompressionBombError:
        raise too_large from None
    except Image.UnidentifiedImageError:
        raise UnreadablePicture(f"{name} is not a picture that Pillow can read; mend it or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise at broken files
        raise UnreadablePicture(f"picture {name} is corrupt ({error}); mend it or remove it") from None


def _within(image: Image.Image, limit: int | None, too_large: UnreadablePicture) -> Image.Image:
    if limit is not None and image.width * image.height > limit:
        raise too_large
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255, which turns nearly every pixel white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "P" and "transparency" in image.info:  # Pillow asks for this detour
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
