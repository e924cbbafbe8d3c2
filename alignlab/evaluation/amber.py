"""amber: AMBER's counts of what descriptions invent and of what questions are answered rightly, as pure functions."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import NamedTuple

Similar = Callable[[str, str], bool]
"""Whether two words mean the same."""

EMPTY = 0.001
"""What every denominator of the authors' script starts from."""


class Counts(NamedTuple):
    """What one description, or all of them, add up to.

    Args:
        unsafe: Nouns that are of nothing there.
        nouns: Nouns.
        covered: Objects there that are mentioned.
        objects: Objects there.
        lured: Objects looked for because they are often imagined, mentioned though they are not there.
        lures: Objects so looked for.
        invented: Descriptions with an unsafe noun.
        descriptions: Descriptions.
    """

    unsafe: int
    nouns: int
    covered: int
    objects: int
    lured: int
    lures: int
    invented: int
    descriptions: int = 1


def count_nouns(
    nouns: Sequence[str],
    *,
    truth: Sequence[str],
    lures: Sequence[str],
    association: Mapping[str, Sequence[str]],
    safe: Set[str] = frozenset(),
    similar: Similar = operator.eq,
) -> Counts:
    """Count what one description says (Wang et al. 2023, https://arxiv.org/abs/2311.07397, inference.py).

    Nouns that no association knows do not count. Another is safe if it is always safe, or means an object that is there
    or one of its associates; only a noun that equals none of those can mean a lure. It covers the first object it
    equals, else the first it is similar to, associates standing before the objects themselves.

    Args:
        nouns: Of the description, as often as they stand there; how they are found is the caller's.
        truth: The objects that are there.
        lures: Objects that are not there and are often imagined (the annotations' ``hallu``).
        association: Object -> words that mean it or a part of it; it has all of truth and lures.
        safe: Words that are safe in any description.
        similar: The authors' is a cosine above 0.8 of spaCy's en_core_web_lg.
    """
    known = {*association, *(word for words in association.values() for word in words)}
    there, imagined = _meanings(truth, association), _meanings(lures, association)
    counted = [noun for noun in nouns if noun in known]
    covered, lured, unsafe = set(), set(), 0
    for noun in counted:
        if noun in safe:
            continue
        place = _first(noun, there, operator.eq)
        if place is None:
            lured |= {_first(noun, imagined, operator.eq), _first(noun, imagined, similar)}
            place = _first(noun, there, similar)
            unsafe += place is None
        covered.add(place)
    return Counts(
        unsafe, len(counted), len(covered - {None}), len(truth), len(lured - {None}), len(lures), int(unsafe > 0)
    )


def _meanings(objects: Sequence[str], association: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """Words and the place of the object that they mean: all associates, then the objects themselves."""
    associates = [(word, place) for place, name in enumerate(objects) for word in association[name]]
    return [*associates, *((name, place) for place, name in enumerate(objects))]


def _first(noun: str, meanings: Sequence[tuple[str, int]], same: Similar) -> int | None:
    return next((place for word, place in meanings if same(noun, word)), None)


def generative(counts: Iterable[Counts]) -> dict[str, float]:
    """The scores of all descriptions, in percent, to one decimal as the authors round them; 0 of none.

    ``chair``: nouns that are unsafe; ``cover``: objects there that are mentioned; ``hal``: descriptions with an unsafe
    noun; ``cog``: lures that are mentioned, where the paper divides by the objects of the description.
    """
    totals = [sum(column) for column in zip(*counts, strict=True)]
    if not totals:
        return dict.fromkeys(("chair", "cover", "hal", "cog"), 0.0)
    total = Counts(*totals)
    return {
        "chair": _percent(total.unsafe, total.nouns),
        "cover": _percent(total.covered, total.objects),
        # So 0.1, not 0, of a single description that invents nothing.
        "hal": round(100 - (total.descriptions - total.invented) / (total.descriptions + EMPTY) * 100, 1),
        "cog": _percent(total.lured, total.lures),
    }


class Judged(NamedTuple):
    """A yes-or-no question with its answer.

    Args:
        type: The annotations' type of question, e.g. ``discriminative-attribute-state``.
        truth: yes or no.
        answer: Read exactly: it is Yes, or No, or wrong.
    """

    type: str
    truth: str
    answer: str


def discriminative(judged: Sequence[Judged]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of all questions and, with the part's name in front, of each part.

    In percent, to one decimal as the authors round them; F1 is of the rounded two. What counts as found is a no: the
    answer No, where the truth is no. So precision is of the answers No, recall of what is not there. No denominator
    starts from 0 (``EMPTIES``), so a share of nothing is 0, and F1 of existence at most 99.9 or so.

    The parts: ``existence``, ``attribute`` (which is ``state``, ``number`` and ``action`` together) and ``relation``,
    which takes every type that is none of the others.
    """
    scores = _scores(judged)
    for part, empties in EMPTIES.items():
        found = _scores([each for each in judged if part in PARTS.get(each.type, ("relation",))], *empties)
        scores |= {f"{part}_{name}": score for name, score in found.items()}
    return scores


PARTS = {f"discriminative-attribute-{kind}": ("attribute", kind) for kind in ("state", "number", "action")}
PARTS |= {"discriminative-hallucination": ("existence",)}
"""Type -> the parts that its questions count in; of any other type, relation."""

EMPTY_F1 = 0.0001
EMPTIES = {
    "existence": (EMPTY, 0.001),
    "attribute": (3 * EMPTY, EMPTY_F1),
    **dict.fromkeys(("state", "number", "action", "relation"), (EMPTY, EMPTY_F1)),
}
"""What the denominators of a part start from: those of its shares, which for attributes are three sums, and of F1."""


def _scores(judged: Sequence[Judged], empty: float = EMPTY, empty_f1: float = EMPTY_F1) -> dict[str, float]:
    denied, absent = [e for e in judged if e.answer == "No"], [e for e in judged if e.truth == "no"]
    found = sum(each.truth == "no" for each in denied)
    right = sum(each.answer == each.truth.capitalize() for each in judged)
    precision, recall = _percent(found, len(denied), empty), _percent(found, len(absent), empty)
    f1 = 2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + empty_f1)
    return {
        "accuracy": _percent(right, len(judged), empty),
        "precision": precision,
        "recall": recall,
        "f1": round(f1 * 100, 1),
    }


def _percent(part: int, whole: int, empty: float = EMPTY) -> float:
    return round(part / (whole + empty) * 100, 1)
