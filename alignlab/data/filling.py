"""filling: examples completed from files, of embeddings and of mined negatives, as they are asked for."""

from collections.abc import Sequence
from dataclasses import replace

from alignlab.batch import Example
from alignlab.data.embeddings import Embeddings
from alignlab.data.mined import Mined

FILLED = {"embeddings": "embedding", "mined": "negatives"}
"""Settings that name a file, and the field of ``Example`` that the file fills."""


class Filled(Sequence[Example]):
    """Examples of a split, each completed from files when it is asked for."""

    def __init__(
        self, examples: Sequence[Example], split: str, embeddings: Embeddings | None, mined: Mined | None
    ) -> None:
        self.examples, self.split, self.embeddings, self.mined = examples, split, embeddings, mined

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        if self.embeddings is not None:
            example = replace(example, embedding=self.embeddings.of(self.split, example))
        if self.mined is not None:
            found = self.mined.of(self.split, range(len(self))[index], self.examples)
            example = replace(example, negatives=(*example.negatives, *found))
        return example
