"""Small pictures on disk, for tests of what reads them."""

import json
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

from PIL import Image


def draw(folder: Path, *names: str) -> Path:
    """A folder with pictures of these names, each of its own color."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), color(number)).save(folder / name)
    return folder


def color(number: int) -> tuple[int, int, int]:
    return (number * 40 % 256, 255 - number * 20 % 256, 77)


def encoded(number: int) -> bytes:
    """The bytes of a picture's file."""
    buffer = BytesIO()
    Image.new("RGB", (24, 16), color(number)).save(buffer, "PNG")
    return buffer.getvalue()


def write_lines(path: Path, records: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records))
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
