"""SwappedPreferences: the placebo of preferences: which answer of a pair is the better one is drawn by lot."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from alignlab.batch import Example, Turn
from alignlab.data import Preferences, Split


class SwappedPreferences(Preferences):
    """The same pairs, of which about half are the other way round; which ones, their ids decide."""

    def examples(self, split: Split) -> Sequence[Example]:
        return _Swapped(super().examples(split))


class _Swapped(Sequence):
    def __init__(self, examples: Sequence[Example]) -> None:
        self.items = examples

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        example = self.items[index]
        if Random(example.id).random() < 0.5:
            return example
        *asked, answer = example.conversation
        turns = (*asked, Turn("assistant", example.rejected))
        return replace(example, conversation=turns, rejected=answer.content)
