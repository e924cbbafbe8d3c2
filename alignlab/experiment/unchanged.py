"""unchanged: whether a finished study is as its last run left it, told without the libraries that planning needs."""

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

RECORD = ".unchanged.json"

UNREAD = ("checkpoints", "backbone", "wandb")
"""Folders of runs that no report reads."""

PACKAGE = Path(__file__).parents[1]
SOURCES = (".py", ".j2", ".css", ".js")


@dataclass(frozen=True)
class Asked:
    """What a user asks for, all of which decides what is planned.

    Args:
        path: The study's YAML.
        directory: The study's.
        overrides: From the command line.
    """

    path: Path
    directory: Path
    overrides: Sequence[str]

    def words(self) -> list[str]:
        """All of it, and where it was asked, since paths may be relative."""
        return [str(self.path.resolve()), str(self.directory.resolve()), str(Path.cwd()), *self.overrides]


@dataclass(frozen=True)
class Read:
    """What decided the plan, as it was when the plan was made.

    Args:
        files: All that planning read and the Python files in ``folders``, with hashes; None for one that is gone.
        folders: Those in which own classes and scripts are looked for.
        digests: Of the cells' configs, by run directory.
        sources: A hash of alignlab itself.
    """

    files: Mapping[str, str | None]
    folders: Sequence[str]
    digests: Mapping[Path, str]
    sources: str

    @classmethod
    def now(cls, files: Collection[Path], folders: Collection[str], digests: Mapping[Path, str]) -> "Read":
        """Look at the files before the cells run: whoever edits one meanwhile wants another study."""
        hashes = {str(file): _hash(file) for file in sorted({*files, *_own(folders)})}
        return cls(hashes, sorted(set(folders)), digests, _sources())


def remember(asked: Asked, read: Read, *, text: str, width: int) -> None:
    """Keep what tells later that nothing has changed, once all cells are finished and the report is written.

    Args:
        text: What was said of the results, with the codes of its colors.
        width: Columns of the terminal that it was made for.
    """
    record = {
        "asked": asked.words(),
        "alignlab": read.sources,
        "folders": read.folders,
        "files": read.files,
        "cells": {os.path.relpath(place, asked.directory): digest for place, digest in read.digests.items()},
        "left": _left(asked.directory),
        "width": width,
        "text": text,
    }
    partial = asked.directory / f"{RECORD}.partial"
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(asked.directory / RECORD)


def said_again(asked: Asked, console: Console) -> bool:
    """Say what the last run said of its results, where another one would compute nothing and say the same.

    That is: the same study, overrides and working directory; the same bytes in all files that planning read, in own
    Python files beside them and in alignlab; cells that are all finished; a report that was made of what they hold.

    Returns:
        Whether it was so; else nothing was printed.
    """
    try:
        record = json.loads((asked.directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if record["asked"] != asked.words() or record["width"] > console.width or not _same(record, asked.directory):
        return False
    number = len(record["cells"])
    line = f"{number} of {number} cells were finished before, and nothing has changed since"
    console.print(line, soft_wrap=True, highlight=False)
    console.print(Text.from_ansi(record["text"]), soft_wrap=True, end="")
    return True


def _same(record: Mapping[str, Any], directory: Path) -> bool:
    files = record["files"]
    return (
        not {str(file) for file in _own(record["folders"])} - files.keys()
        and all(_hash(Path(file)) == known for file, known in files.items())
        and record["alignlab"] == _sources()
        and record["left"] == _left(directory)
        and all(_digest(directory / place) == digest for place, digest in record["cells"].items())
    )


def _digest(cell: Path) -> str | None:
    """That of a finished cell's config."""
    try:
        return json.loads((cell / "metrics.json").read_text(encoding="utf-8"))["config_hash"]
    except (OSError, ValueError, KeyError):
        return None


def _own(folders: Collection[str]) -> Iterator[Path]:
    """The Python files in folders, and those of packages there."""
    for folder in folders:
        yield from Path(folder).glob("*.py")
        yield from Path(folder).glob("*/__init__.py")


def _hash(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


def _sources() -> str:
    """A hash of alignlab itself, which decides defaults and reports."""
    content = hashlib.sha256()
    for file in sorted(file for file in _walk(PACKAGE, ()) if file.suffix in SOURCES):
        content.update(f"{file.relative_to(PACKAGE)} {_hash(file)}".encode())
    return content.hexdigest()


def _left(directory: Path) -> str:
    """A hash of what runs and report have left: sizes and times, since items are many."""
    lines = []
    for file in sorted(_walk(directory, UNREAD)):
        found = file.stat()
        lines.append([str(file.relative_to(directory)), found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _walk(folder: Path, left_out: Collection[str]) -> Iterator[Path]:
    """All files but hidden ones."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out and name[0] not in "._"]
        yield from (Path(place, name) for name in files if name[0] != ".")
