"""mentions: which objects a text names, by a vocabulary of words, of pairs of words, and of what they count as."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

TOKEN = re.compile(r"[^\W_]+|\S")
"""Letters and digits in a row, or one other mark."""

SINGULARS = (
    *(("men$", "man"), ("people$", "person"), ("children$", "child"), ("mice$", "mouse"), ("geese$", "goose")),
    *(("ies$", "y"), ("ves$", "f"), ("ves$", "fe"), ("s$", ""), ("(?<=[hosxz])es$", "")),
)
"""Ends of English plurals and what stands there in the singular, in the order in which they are tried."""


class Mention(NamedTuple):
    """An object named in a text.

    Args:
        word: The name as it was read: in the singular, of two words if need be.
        object: What it counts as.
        place: Which token of the text it begins with.
    """

    word: str
    object: str
    place: int


@dataclass(frozen=True)
class Vocabulary:
    """The names of objects, in lower case.

    Args:
        names: Name -> the object it counts as. A name of several words is found only as a pair.
        pairs: Two words, in the singular -> what they are read as together: a name, or a word that is none.
        unless: Name -> a word: the name does not count in a text that also says this word.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    pairs: Mapping[str, str] = field(default_factory=dict)
    unless: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def words(self) -> frozenset[str]:
        """The names and the words of pairs."""
        return frozenset(self.names) | {word for pair in self.pairs for word in pair.split()}

    def singular(self, word: str) -> str:
        """A word of the vocabulary as it is, another one in its first singular that is of the vocabulary, if one is."""
        if word in self.words:
            return word
        tried = (re.sub(plural, singular, word) for plural, singular in SINGULARS)
        return next((each for each in tried if each in self.words), word)

    def objects(self, name: str) -> set[str]:
        """The object of this name; if it is none, those named in it."""
        return {self.names[name]} if name in self.names else {each.object for each in mentions(name, self)}


def mentions(text: str, vocabulary: Vocabulary, singular: Callable[[str], str] | None = None) -> list[Mention]:
    """The objects a text names, in order, one as often as it is named.

    As in Rohrbach et al. 2018, https://arxiv.org/abs/1809.02156, utils/chair.py: lower case, tokens, singular, pairs
    from left to right, names. Tokens are letters and digits in a row or one other mark, where the authors take nltk's;
    the singular is ``Vocabulary.singular``, where they take that of ``pattern``. Both are rules alone, so a text counts
    the same everywhere.

    Args:
        singular: Another way to a word's singular.
    """
    words = [(singular or vocabulary.singular)(token) for token in TOKEN.findall(text.lower())]
    merged = _merged(words, vocabulary.pairs)
    said = {word for word, _ in merged}
    return [
        Mention(word, vocabulary.names[word], place)
        for word, place in merged
        if word in vocabulary.names and vocabulary.unless.get(word) not in said
    ]


def _merged(words: list[str], pairs: Mapping[str, str]) -> list[tuple[str, int]]:
    """The words with pairs as one, from left to right, and where each begins."""
    merged, place = [], 0
    while place < len(words):
        pair = " ".join(words[place : place + 2])
        merged.append((pairs.get(pair, words[place]), place))
        place += 2 if pair in pairs else 1
    return merged
