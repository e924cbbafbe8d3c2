"""embeddings: a file of a teacher's embeddings, a row an example, found by its id and checked against its text.

A safetensors file with the tensors ``embeddings`` (n, E) in float32, ``ids`` (n,) and ``targets`` (n,), the 64-bit
hashes of what the examples are called, and of that with their targets. Its metadata say what it was made of.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
from safetensors import SafetensorError, safe_open

from alignlab.batch import Example
from alignlab.data.identity import id_hash, target_hash, words
from alignlab.errors import InputError

FORMAT, VERSION = "alignlab embeddings", "1"


class Embeddings:
    """Reads a file of embeddings, row by row; opened when first used, in each process for itself.

    Raises:
        InputError: At first use: there is no such file, or it holds something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}  # an open file does not go to another process

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        return self._file.metadata()

    def of(self, split: str, example: Example) -> tuple[float, ...]:
        """The embedding of an example's target.

        Raises:
            InputError: There is none, or it was made of another target.
        """
        rows, targets = self._rows
        row = rows.get(id_hash(split, example))
        if row is None:
            raise InputError(f"{self.path} has no embedding of example {example.id!r} ({split}); {self._remedy}")
        if int(targets[row]) != target_hash(split, example):
            raise InputError(
                f"{self.path} was made for another text of example {example.id!r} ({split}), whose target here is "
                f"{words(example.target)!r}; {self._remedy}"
            )
        return tuple(self._file.get_slice("embeddings")[row : row + 1][0].tolist())

    @cached_property
    def _file(self) -> Any:
        if not self.path.is_file():
            raise InputError(f"data.embeddings: there is no file {self.path}; `alignlab embed` makes one")
        try:
            file = safe_open(self.path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise InputError(f"data.embeddings: {self.path} cannot be read: {error}") from None
        found = file.metadata() or {}
        if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
            raise InputError(
                f"data.embeddings: {self.path} is no file that this alignlab's `alignlab embed` made: its format is "
                f"{found.get('format', 'not stated')}, version {found.get('version', 'not stated')}"
            )
        return file

    @cached_property
    def _rows(self) -> tuple[dict[int, int], numpy.ndarray]:
        """Hash of the id -> row, and the hashes of the targets by row."""
        ids, targets = self._file.get_tensor("ids"), self._file.get_tensor("targets")
        return {id: row for row, id in enumerate(ids.tolist())}, targets

    @property
    def _remedy(self) -> str:
        source, data = self.metadata["source"], self.metadata["data"]
        command = f"alignlab embed CONFIG --output FILE --model {source}"
        return f"the file is of {data}; make one of the present data with: {command}"


def head(ids: Sequence[int], targets: Sequence[int], *, width: int, fingerprint: str, source: str, data: str) -> bytes:
    """What a file of embeddings begins with; its rows follow, float32, in the order of the ids.

    All of it is known before the first row, so rows are written as they come, and n x E is never held.

    Args:
        ids: n hashes.
        targets: n hashes.
        width: E.
        fingerprint: Of the data and of the teacher together.
        source: The teacher's name.
        data: What the examples are of, in words.
    """
    length = 8 * len(ids)
    spans = {
        "ids": ("U64", [len(ids)], [0, length]),
        "targets": ("U64", [len(ids)], [length, 2 * length]),
        "embeddings": ("F32", [len(ids), width], [2 * length, 2 * length + 4 * width * len(ids)]),
    }
    header: dict[str, Any] = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": span} for name, (dtype, shape, span) in spans.items()
    }
    header["__metadata__"] = {
        "format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "source": source, "data": data
    }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    hashes = b"".join(numpy.array(each, dtype="<u8").tobytes() for each in (ids, targets))
    return struct.pack("<Q", len(text)) + text + hashes
