"""Batching: from Examples to a Batch, for whatever encodes contents."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from alignlab.batch import Batch, Content, Example, Tokens
from alignlab.errors import InputError

FIELDS = ("conversation", "query", "target", "rejected", "roles", "captions", "embedding")
"""Sequences that every example must fill; negatives may be missing, and an example need not be of a group."""


class Batching(ABC):
    """Base of encoders; a subclass writes ``contents`` and, where it makes other sequences, ``sequence``."""

    kind: ClassVar[str]
    """What it belongs to, for messages."""

    sequences: ClassVar[tuple[str, ...]] = ("query", "target", "negatives", "captions", "embedding", "group")
    """What it can make of an example."""

    lacking: ClassVar[str] = ""
    """What would make the others, for messages."""

    tokenizer: Any
    """Of transformers, as is the image processor."""

    image_processor: Any

    @abstractmethod
    def contents(self, contents: Sequence[Content]) -> Tokens:
        """Encode each content by itself, to be embedded."""

    def prompt_format(self) -> dict[str, str | None]:
        """What a run's record says of how prompts are written; empty where texts are read as they are."""
        return {}

    def check(self, sequences: Sequence[str], *, who: str = "a batch") -> None:
        """Raise InputError if one of the sequences cannot be made here."""
        if others := [name for name in sequences if name not in self.sequences]:
            needs = f"; {', '.join(others)} {self.lacking}" if self.lacking else ""
            raise InputError(
                f"{who} needs the sequences {', '.join(sequences)}, but {self.kind} reads "
                f"{', '.join(self.sequences)}{needs}"
            )

    def batch(self, examples: Sequence[Example], sequences: Sequence[str]) -> Batch:
        """Encode the named sequences of every example.

        Raises:
            InputError: An example lacks one, or one cannot be encoded.
        """
        self.check(sequences)
        parts: dict[str, Any] = {}
        for name in sequences:
            if lacking := [e.id for e in examples if name in FIELDS and not getattr(e, name)]:
                raise InputError(f"example {lacking[0]!r} has no {name}, which is required of every example")
            parts |= self.sequence(name, examples, sequences)
        return Batch(ids=tuple(e.id for e in examples), sources=tuple(e.source for e in examples), **parts)

    def sequence(self, name: str, examples: Sequence[Example], among: Sequence[str]) -> dict[str, Any]:
        """The fields of the Batch that one sequence fills, among all that are made."""
        match name:
            case "group":
                return {"groups": tuple(e.group for e in examples)}
            case "query":
                return {name: self.contents([e.query for e in examples])}
            case "target":
                return {name: self.contents([e.target for e in examples])}
            case "negatives":
                negatives = [negative for e in examples for negative in e.negatives]
                counts = torch.tensor([len(e.negatives) for e in examples])
                return {name: self.contents(negatives) if negatives else None, "num_negatives": counts}
            case "captions":
                counts = torch.tensor([len(e.captions) for e in examples])
                captions = [e.phrased(caption) for e in examples for caption in e.captions]
                return {name: self.contents(captions), "num_captions": counts}
            case "embedding":
                return {name: stacked(examples)}
        raise NotImplementedError(f"{type(self).__name__} names the sequence {name!r}, but does not make it")


def stacked(examples: Sequence[Example]) -> Tensor:
    """The embeddings (B, E) of examples.

    Raises:
        InputError: One has none, or they are not of one width.
    """
    if lacking := [e for e in examples if not len(e.embedding)]:
        raise InputError(f"example {lacking[0].id!r} has no embedding, which is required of every example")
    width = len(examples[0].embedding)
    if odd := [e for e in examples if len(e.embedding) != width]:
        raise InputError(
            f"the embedding of example {odd[0].id!r} has {len(odd[0].embedding)} numbers, that of {examples[0].id!r} "
            f"has {width}; embeddings of one teacher are of one width"
        )
    return torch.tensor([e.embedding for e in examples])
