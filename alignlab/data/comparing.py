"""comparing: whether two texts say the same, whole or by the words that matter."""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import zip_longest


def tidy(text: str, synonyms: Mapping[str, str] | None = None) -> str:
    """Lower case, single spaces, none at the ends; synonyms replaced by what they stand for."""
    text = " ".join(text.lower().split())
    return re.sub(r"\w+", lambda word: synonyms.get(word[0], word[0]), text) if synonyms else text


def picked(text: str, words: Collection[str]) -> list[str]:
    """The text's words that are among ``words``, in order."""
    return [word for word in re.findall(r"\w+", text.lower()) if word in words]


def agreement(reference: str, said: str, attributes: Iterable[Collection[str]]) -> float | None:
    """How much of a reference is said, in [0, 1]; None where neither text has a word of any attribute.

    The words of each attribute are picked out of both texts, in order, and laid side by side; it is the share of
    places, of all attributes together, where both have the same word.
    """
    places = [pair for words in attributes for pair in zip_longest(picked(reference, words), picked(said, words))]
    return sum(one == other for one, other in places) / len(places) if places else None
