"""language: what questions and captions give away by their words alone, learned from the train split, never looking."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.batch import Example, Foil, Question
from alignlab.data.base import AlignmentData
from alignlab.data.comparing import tidy

NUM_KNOWN = 2000
"""Training examples that are learned from."""


def train_examples(data: AlignmentData) -> list[Example]:
    """The training examples that are learned from."""
    return data.first("train", NUM_KNOWN)


def guesses(known: Sequence[Question], asked: Sequence[Question]) -> dict[str, list[str]]:
    """Answer questions by the answer that is most frequent among known ones.

    Returns:
        ``length_only``: among those of as many words; ``bag_of_words``: among those of the same set of words, or where
        there is none, of the same kind. Where there is none either: among all. Nothing known: an empty answer.
    """
    return {
        "length_only": _most_frequent(known, asked, (_length, _anything)),
        "bag_of_words": _most_frequent(known, asked, (_words, _kind, _anything)),
    }


Key = Callable[[Question], Hashable]


def _length(question: Question) -> int:
    return len(question.text.split())


def _words(question: Question) -> frozenset[str]:
    return frozenset(tidy(question.text).split())


def _kind(question: Question) -> str:
    return question.kind


def _anything(question: Question) -> None:
    return None


def _most_frequent(known: Sequence[Question], asked: Sequence[Question], keys: Sequence[Key]) -> list[str]:
    tables: list[dict[Hashable, Counter[str]]] = [defaultdict(Counter) for _ in keys]
    for question in known:
        for key, table in zip(keys, tables, strict=True):
            table[key(question)][question.answer] += 1
    found = []
    for question in asked:
        seen = (table.get(key(question)) for key, table in zip(keys, tables, strict=True))
        counts = next((counter for counter in seen if counter), Counter([""]))
        found.append(counts.most_common(1)[0][0])
    return found


def foil_margins(known: Sequence[Foil], judged: Sequence[Foil]) -> Tensor:
    """Tell true captions from false ones by how often they say which words and pairs of neighbouring words.

    A logistic regression on the difference of the counts, without intercept, with a squared penalty of half a unit in
    sum (the usual C = 1), fitted on the known foils.

    Returns:
        (number of judged foils,) float64: log-odds that the true one is the true one; 0 where nothing tells.
    """
    columns: dict[Hashable, int] = {}
    for foil in known:
        for gram in _difference(foil):
            columns.setdefault(gram, len(columns))
    if not columns:
        return torch.zeros(len(judged), dtype=torch.float64)
    weights = torch.zeros(len(columns), dtype=torch.float64, requires_grad=True)
    fitted = _entries(known, columns)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.softplus(-_margins(weights, fitted, len(known))).sum() + weights.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return _margins(weights.detach(), _entries(judged, columns), len(judged))


Entries = tuple[Tensor, Tensor, Tensor]
"""Rows, columns and values of a sparse matrix."""


def _margins(weights: Tensor, entries: Entries, count: int) -> Tensor:
    rows, columns, values = entries
    return weights.new_zeros(count).index_add(0, rows, weights[columns] * values)


def _entries(foils: Sequence[Foil], columns: dict[Hashable, int]) -> Entries:
    found = [
        (row, columns[gram], count)
        for row, foil in enumerate(foils)
        for gram, count in _difference(foil).items()
        if gram in columns
    ]
    rows, places, values = zip(*found, strict=True) if found else ((), (), ())
    return torch.tensor(rows).long(), torch.tensor(places).long(), torch.tensor(values).double()


def _difference(foil: Foil) -> dict[Hashable, int]:
    """How much oftener the true caption says each word and pair than the false one, where it does or does less."""
    counts = _grams(foil.true)
    counts.subtract(_grams(foil.false))
    return {gram: count for gram, count in counts.items() if count}


def _grams(caption: str) -> Counter[Hashable]:
    words = tidy(caption).split()
    return Counter((*words, *zip(words, words[1:], strict=False)))
