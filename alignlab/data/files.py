"""files: reading records and checking pictures before any work starts, every fault said in one message."""

import difflib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from alignlab.errors import InputError

NUM_HEADERS = 1000
"""Pictures, spread evenly, whose header is read at the start: enough to meet a folder of web pages saved as .jpg, and
seconds even on a network disk, where half a million would be an hour. That a file exists and is not empty is checked
for all."""


def read_text(path: Path, key: str) -> str:
    """A text file that a config's key names."""
    if not path.is_file():
        raise InputError(f"{key}: {missing(path, 'file')}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None


def read_json(path: Path, key: str) -> Any:
    """A JSON file that a config's key names."""
    try:
        return json.loads(read_text(path, key))
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data"
        hint = "; this may be JSON Lines: make it one list, [..., ...]" if lines else ""
        raise InputError(f"{path}, line {error.lineno}, column {error.colno}: no JSON: {error.msg}{hint}") from None


def picture_folder(folder: str) -> Path:
    """The folder that ``data.image_folder`` names."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"data.image_folder: {missing(path, 'folder')}")
    return path


def check_pictures(folder: Path, names: Iterable[str], unreadable: Literal["stop", "skip"] = "stop") -> None:
    """Raise InputError if a picture is missing in the folder or empty, or one of a sample is no picture.

    Args:
        unreadable: With ``skip`` only warn of them, unless all pictures are missing.
    """
    names = sorted(set(names))
    lacking = [name for name in names if not os.path.isfile(folder / name)]
    if lacking:
        hint = f"; does image_folder ({folder}) lack a level?" if len(lacking) == len(names) else ""
        what = f"{len(lacking)} of {len(names)} pictures are missing in {folder}{hint}\n" + listed(lacking)
        _say(what, "stop" if hint else unreadable)
    there = names if not lacking else sorted(set(names) - set(lacking))
    broken = [f"{name}: empty file" for name in there if os.path.getsize(folder / name) == 0]
    for name in there[:: math.ceil(len(there) / NUM_HEADERS)] if there else []:
        try:
            Image.open(folder / name).close()
        except (OSError, SyntaxError, ValueError) as error:
            broken.append(f"{name}: {error}")
    if broken:
        _say(f"pictures in {folder} cannot be read\n" + listed(broken), unreadable)


def _say(what: str, unreadable: Literal["stop", "skip"]) -> None:
    if unreadable == "stop":
        raise InputError(what)
    rank_zero_warn(f"{what}\n  their examples are skipped (data.unreadable)")


def missing(path: Path, kind: str) -> str:
    """That there is no such file or folder, and what is called nearly the same."""
    parent = path.parent
    if not parent.is_dir():
        return f"there is no {kind} {path}; not even {parent} exists"
    fits = Path.is_dir if kind == "folder" else Path.is_file
    near = difflib.get_close_matches(path.name, [entry.name for entry in parent.iterdir() if fits(entry)], n=1)
    return f"there is no {kind} {path}" + (f"; did you mean {near[0]!r}?" if near else "")


def listed(faults: Sequence[str], shown: int = 3) -> str:
    """The first faults, a line each, and how many more there are."""
    rest = len(faults) - shown
    return "\n".join(f"  {fault}" for fault in faults[:shown]) + (f"\n  and {rest} more" if rest > 0 else "")
