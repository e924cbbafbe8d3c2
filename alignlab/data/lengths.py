"""lengths: about how long an example will be, without a tokenizer."""

from collections.abc import Sequence

from alignlab.batch import Example
from alignlab.errors import UnreadablePicture

PICTURE = 2000
"""Characters that a picture counts as: about 500 tokens."""


def estimated_length(example: Example) -> int:
    """Characters of an example's conversation, or where it has none of its query and target; pictures as so many."""
    parts = [part for turn in example.conversation for part in turn.content] or [*example.query, *example.target]
    return sum(len(part) if isinstance(part, str) else PICTURE for part in parts)


def estimated_lengths(examples: Sequence[Example]) -> list[int]:
    """Of all examples; 0 of one that has a picture which cannot be opened."""
    lengths = []
    for index in range(len(examples)):
        try:
            lengths.append(estimated_length(examples[index]))
        except UnreadablePicture:
            lengths.append(0)
    return lengths
