"""noting: which files a config is read from."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_noted: ContextVar[set[Path] | None] = ContextVar("noted", default=None)


def note(file: Path) -> None:
    """Add a file that is read to those that are noted, if anyone asks."""
    if (files := _noted.get()) is not None:
        files.add(file.resolve())


@contextmanager
def noting_files() -> Iterator[set[Path]]:
    """Collect the files that are read meanwhile."""
    files: set[Path] = set()
    before = _noted.set(files)
    try:
        yield files
    finally:
        _noted.reset(before)
