"""logps: a file of the log-probabilities that a model gives to the two answers of each example.

A safetensors file with the tensors ``logps`` (n, 2), of the chosen and the rejected answers in nats. Its metadata name
the examples, row by row, and say what it was made of.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignlab.batch import Example, Part, PictureBytes
from alignlab.data.base import NUM_CHECKED, AlignmentData
from alignlab.errors import InputError

FORMAT, VERSION = "alignlab answer logps", "1"


Row = tuple[str, Sequence[float], int]
"""An example's id, the log-probabilities of its chosen and of its rejected answer, and a number for their texts."""


class AnswerLogps:
    """Log-probabilities of answers, found by the example's id.

    Args:
        folder: Where files of several models and data sets are kept, each named after what it was made of.
        made_of: What decides about the content, name -> fingerprint.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, str]) -> None:
        self.made_of = dict(made_of)
        digest = blake2b(json.dumps(self.made_of).encode(), digest_size=8).hexdigest()
        self.path = folder / f"{digest}.safetensors"
        self.rows: dict[str, int] = {}

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """While others who want to fill the file wait."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / f".{self.path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def fill(self, rows: Sequence[Row]) -> None:
        """Take rows instead of reading the file.

        Raises:
            InputError: Two examples have one id.
        """
        self.rows = {id: place for place, (id, _, _) in enumerate(rows)}
        if len(self.rows) < len(rows):
            twin = next(id for place, (id, _, _) in enumerate(rows) if self.rows[id] != place)
            raise InputError(
                f"several examples are called {twin!r}; cached log-probabilities are found by id, which must then be "
                "unique in both splits together"
            )
        self.values = torch.tensor([logps for _, logps, _ in rows])
        self.contents = torch.tensor([content for _, _, content in rows])

    def save(self) -> None:
        """Write the file."""
        metadata = {"format": FORMAT, "version": VERSION}
        metadata |= {"made_of": json.dumps(self.made_of), "ids": json.dumps(list(self.rows))}
        partial = self.path.with_name(f".{self.path.name}.partial")
        save_file({"logps": self.values, "contents": self.contents}, partial, metadata)
        os.replace(partial, self.path)

    def read(self) -> None:
        """Load the file.

        Raises:
            InputError: It cannot be read, or was made of something else.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                self.values, self.contents = file.get_tensor("logps"), file.get_tensor("contents")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path} cannot be read: {error}; remove it to have it computed again") from None
        made_of = json.loads(metadata.get("made_of", "{}"))
        if differing := [name for name, value in self.made_of.items() if made_of.get(name) != value]:
            raise InputError(
                f"{self.path} holds log-probabilities of other {', '.join(differing)}; remove it to have them "
                "computed again"
            )
        self.rows = {id: row for row, id in enumerate(json.loads(metadata["ids"]))}

    def of(self, ids: Sequence[str], contents: Tensor) -> Tensor:
        """Those of some examples, (2, B), where their texts' numbers are.

        Args:
            contents: (B,) long, numbers for the texts that the log-probabilities are wanted of.

        Raises:
            InputError: There are none of an example, or they are of another text.
        """
        if lacking := [id for id in ids if id not in self.rows]:
            raise InputError(f"{self.path} has no log-probabilities of example {lacking[0]!r}; remove it")
        rows = torch.tensor([self.rows[id] for id in ids])
        if not torch.equal(self.contents[rows], contents.cpu()):
            other = ids[int((self.contents[rows] != contents.cpu()).nonzero()[0])]
            raise InputError(f"{self.path} was made of other texts of example {other!r}; remove it")
        return self.values[rows].T.to(contents.device)


def pair_hashes(data: AlignmentData) -> str:
    """16 hexadecimal characters of how many examples there are, and of a spread sample of them, pictures included."""
    digest = blake2b(digest_size=8)
    for split in ("train", "val"):
        examples = data.filled(split)
        digest.update(f"{split} {len(examples)}".encode())
        for index in range(0, len(examples), max(len(examples) // NUM_CHECKED, 1)):
            digest.update(_content(examples[index]))
    return digest.hexdigest()


def _content(example: Example) -> bytes:
    turns = [part for turn in example.conversation for part in (turn.role, *turn.content)]
    parts: list[Part] = [example.id, *turns, *example.rejected]
    return b"\0".join(part.encode() if isinstance(part, str) else _picture(part) for part in parts)


def _picture(part: Image.Image | Path | PictureBytes) -> bytes:
    if isinstance(part, PictureBytes):
        return part.content
    if isinstance(part, Path):
        return part.read_bytes() if part.is_file() else b""  # one that is missing may be skipped
    return part.tobytes()
