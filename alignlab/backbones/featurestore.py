"""featurestore: rows of features on disk, in shards that any number of processes write and read at once."""

import json
import os
import secrets
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT, VERSION = "alignlab vision features", "1"
SHARD = 64 * 2**20
"""Bytes of rows that wait in memory before they are written."""

ABANDONED = 3600
"""Seconds after which a file that is half written has been left by a process that is gone."""


class FeatureStore:
    """Rows found by a name of their content, in safetensors files that are written whole and never change.

    Several processes may write the same rows, which costs their space and nothing else. What can no longer be written
    is kept nowhere, and what cannot be read is not there: a warning says so, and the rows are computed again.

    Args:
        root: A folder of stores, each in a folder named after what it was made of.
        made_of: What decides about the rows beside their names, in words.
    """

    def __init__(self, root: Path, made_of: Mapping[str, str]) -> None:
        self.root, self.made_of = root, dict(made_of)
        text = json.dumps(self.made_of, sort_keys=True)
        self.folder = root / blake2b(text.encode(), digest_size=8).hexdigest()
        self._waiting: dict[str, Tensor] = {}
        self._size = 0
        self._files: dict[str, Any] = {}
        self._places: dict[str, str] = {}
        """Name of a row -> file that has it."""
        self._seen = -1
        """When the folder had last changed as its files were listed."""
        # Also where a process ends without a word: what waits is then written as it exits.
        self._last = weakref.finalize(self, _write, self.folder, self._metadata, self._waiting)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore, (self.root, self.made_of)  # open files and what waits go to no other process

    def get(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The rows that are there, on the CPU; those in files lie in memory only while they are in use."""
        if any(name not in self._waiting and name not in self._places for name in names):
            self._list()
        found = {name: self._waiting[name] for name in names if name in self._waiting}
        for name in names:
            if name in self._places and (row := self._read(name)) is not None:
                found[name] = row
        return found

    def put(self, rows: Mapping[str, Tensor]) -> None:
        """Take rows, whose tensors are from now on the store's, and write what waits once it is enough."""
        for name, row in rows.items():
            if self._last.alive and name not in self._waiting:
                self._waiting[name] = row
                self._size += row.nbytes
        if self._size >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting and not _write(self.folder, self._metadata, self._waiting):
            self._last.detach()  # nothing is written any more
        self._waiting.clear()
        self._size, self._seen = 0, -1

    @property
    def _metadata(self) -> dict[str, str]:
        return {"format": FORMAT, "version": VERSION, "made_of": json.dumps(self.made_of, sort_keys=True)}

    def _list(self) -> None:
        """Notice the files that have come since."""
        try:
            changed = self.folder.stat().st_mtime_ns
            if changed == self._seen:
                return
            names = [entry.name for entry in os.scandir(self.folder)]
        except OSError:  # there is none yet
            return
        self._seen = changed
        for name in names:
            if name.startswith("."):
                _remove_if_abandoned(self.folder / name)
            elif name.endswith(".safetensors") and name not in self._files:
                self._open(name)

    def _open(self, name: str) -> None:
        try:
            file = safe_open(self.folder / name, framework="pt")
            if file.metadata() != self._metadata:
                raise SafetensorError("it is of another format or made of something else")
            self._files[name] = file
            self._places |= dict.fromkeys(file.keys(), name)
        except FileNotFoundError:
            return  # another process has set it aside
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            self._set_aside(name, error)

    def _read(self, name: str) -> Tensor | None:
        where = self._places[name]
        try:
            return self._files[where].get_tensor(name)
        except (OSError, SafetensorError) as error:
            self._set_aside(where, error)
            return None

    def _set_aside(self, name: str, error: Exception) -> None:
        """Go on without a file, for other processes, too."""
        self._files[name] = None  # so that it is not opened again where it cannot be renamed
        self._places = {row: file for row, file in self._places.items() if file != name}
        path = self.folder / name
        with suppress(OSError):
            path.rename(path.with_name(f"{name}.damaged"))
        warnings.warn(f"{path} cannot be read ({error}); its features are computed again", stacklevel=2)


def _write(folder: Path, metadata: Mapping[str, str], rows: Mapping[str, Tensor]) -> bool:
    """Write rows into a new file, whole or not at all; whether that was possible."""
    if not rows:
        return True
    name = f"{secrets.token_hex(8)}.safetensors"  # of no generator that training draws from
    partial = folder / f".{name}.partial"
    try:
        folder.mkdir(exist_ok=True)  # in a root that is there: one that was removed stays so
        with partial.open("wb") as file:  # which others may read; safetensors' own files are their writer's alone
            file.write(save(dict(rows), dict(metadata)))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / name)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        warnings.warn(f"{folder}: features cannot be written ({error}); this process writes no more", stacklevel=2)
        return False
    return True


def _remove_if_abandoned(path: Path) -> None:
    with suppress(OSError):
        if path.name.endswith(".partial") and time.time() - path.stat().st_mtime > ABANDONED:
            path.unlink()
