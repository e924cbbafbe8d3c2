"""Pictures: a part of a content as an upright RGB image, decoded when it is needed."""

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from alignlab.batch import PictureBytes
from alignlab.errors import InputError


def open_image(part: Image.Image | Path | PictureBytes) -> Image.Image:
    """Decode a picture: turned as its EXIF data says, in RGB, the first frame of several.

    Raises:
        InputError: The file is missing, no picture, corrupt, or so large that decoding it may exhaust the memory.
    """
    try:
        if isinstance(part, Image.Image):
            return _upright_rgb(part)  # which decodes it, if that has not been done
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(part.content) if isinstance(part, PictureBytes) else part)
        with image:
            return _upright_rgb(image)
    except FileNotFoundError:
        raise InputError(f"picture {part} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"picture {part} has more than {Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{part} is not a picture that Pillow can read; mend it or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise at broken files
        raise InputError(f"picture {part} is corrupt ({error}); mend it or remove it") from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255, which turns nearly every pixel white
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "P" and "transparency" in image.info:  # Pillow asks for this detour
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
