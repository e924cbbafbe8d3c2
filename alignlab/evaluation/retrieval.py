"""Retrieval: pictures find their captions, and captions their pictures, among those of N examples."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.batch import Content, Example
from alignlab.data.base import AlignmentData, Split, check_supplies
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean

RANKS = (1, 5, 10)

NUM_SHOWN = 50
"""Queries whose similarities to one another's targets are kept, as in UniME's figure."""


class Retrieval(Evaluator):
    """Recall at 1, 5 and 10, in both directions, among the ``query`` and ``target`` of N examples, by cosine.

    A search is answered at k if one of its right candidates is among the k nearest. What several examples share (one
    picture with several captions, one caption of several pictures) is one candidate, right for all it came with, and
    what examples of one ``group`` hold is right for all of them. Ties count against the model: a wrong candidate as
    near as the best right one stands before it, so embeddings that have collapsed to a point score 0, not the chance
    level, and so do embeddings that are not finite. ``chance_r1`` is what a random order would give at 1. Recall
    depends on N: compare only runs of the same ``num_examples`` and ``num_captions``.

    Items are searches, of pictures and then of texts; those of the first 50 pictures hold their ``similarities`` to one
    another's targets.

    Args:
        num_examples: N.
        num_captions: Targets an example. 1: its ``target``; more: the first so many of its ``captions``, each in the
            form of the target, and each searched for its picture by itself.
    """

    name = "retrieval"
    requires = ("query", "target")
    generative = False
    blindfolds = ("shuffled_images",)

    def __init__(
        self,
        *,
        num_examples: int = 256,
        num_captions: int = 1,
        batch_size: int = 64,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
        blind: bool = False,
    ) -> None:
        super().__init__(
            num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label, blind=blind
        )
        if num_captions < 1:
            raise InputError(f"Retrieval needs num_captions >= 1, got {num_captions}")
        self.num_captions = num_captions

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if self.num_captions > 1:
            check_supplies("Retrieval of several captions", (*self.requires, "captions"), data)

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        candidates = [self._candidates(example) for example in examples]
        queries, rows = distinct(example.query for example in examples)
        targets, columns = distinct(content for each in candidates for content in each)
        right = right_pairs(examples, [len(each) for each in candidates], rows, columns)
        total = len(queries) + len(targets)
        query_vectors = self.embeddings(backbone, queries, lambda done, _: on_batch(done, total))
        target_vectors = self.embeddings(backbone, targets, lambda done, _: on_batch(len(queries) + done, total))
        similarity = query_vectors @ target_vectors.T
        ahead = {"image_to_text": wrong_ahead(similarity, right), "text_to_image": wrong_ahead(similarity.T, right.T)}
        scores = {
            f"{direction}_r{k}": mean((counts < k).tolist()) for direction, counts in ahead.items() for k in RANKS
        }
        query_ids, target_ids, target_of = {}, {}, {}  # of what several examples share, the first one's
        places = iter(columns)
        for example, row, each in zip(examples, rows, candidates, strict=True):
            query_ids.setdefault(row, example.id)
            for number in range(len(each)):
                target_ids.setdefault(column := next(places), f"{example.id}-text{number}")
                target_of.setdefault(row, column)
        items = _items("image_to_text", query_ids.values(), ahead["image_to_text"])
        own = list(target_of.values())[:NUM_SHOWN]
        for item, row in zip(items, similarity[: len(own), own].tolist(), strict=False):
            item["similarities"] = [round(value, 3) for value in row]
        items += _items("text_to_image", target_ids.values(), ahead["text_to_image"])
        return Evaluation(scores | {"chance_r1": right.double().mean().item()}, items)

    def _candidates(self, example: Example) -> list[Content]:
        if self.num_captions == 1:
            return [example.target]
        return [example.phrased(caption) for caption in example.captions[: self.num_captions]]


def _items(direction: str, ids: Iterable[str], ahead: Tensor) -> list[dict[str, Any]]:
    """One for each search."""
    found = [{k: float(count < k) for k in RANKS} for count in ahead.tolist()]
    return [
        {"id": id, "score": at[1], "metrics": {f"{direction}_r{k}": at[k] for k in RANKS}}
        for id, at in zip(ids, found, strict=True)
    ]


def right_pairs(
    examples: Sequence[Example], counts: Sequence[int], rows: Sequence[int], columns: Sequence[int]
) -> Tensor:
    """Say which candidates are right for which query.

    Args:
        examples: N.
        counts: N, how many targets each has.
        rows: N, the place of each example's query among the distinct ones.
        columns: sum of counts, the place of each target among the distinct ones, example by example.

    Returns:
        (distinct queries, distinct targets) bool.
    """
    places = iter(columns)
    queries, targets = defaultdict(list), defaultdict(list)
    for index, (example, count, row) in enumerate(zip(examples, counts, rows, strict=True)):
        group = example.group or index  # an example without a group is one by itself
        queries[group].append(row)
        targets[group] += [next(places) for _ in range(count)]
    right = torch.zeros(max(rows) + 1, max(columns) + 1, dtype=torch.bool)
    for group, of in queries.items():
        right[torch.tensor(of)[:, None], torch.tensor(targets[group])[None]] = True
    return right


def wrong_ahead(similarity: Tensor, right: Tensor) -> Tensor:
    """Count the wrong candidates at least as near as the best right one.

    Args:
        similarity: (N, K).
        right: (N, K) bool, True at right candidates, of which every row has one.

    Returns:
        (N,) long; a search is answered at k where this is less than k.
    """
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    behind = similarity < best  # False against NaN, so what is not a number is never found
    return (~behind & ~right).sum(1)


def distinct(contents: Iterable[Content]) -> tuple[list[Content], list[int]]:
    """The different contents, and the place of each content among them; a decoded picture equals itself alone."""
    found: dict[tuple[Any, ...], tuple[int, Content]] = {}
    places = []
    for content in contents:
        key = tuple(part if isinstance(part, str) else (type(part).__name__, str(part)) for part in content)
        places.append(found.setdefault(key, (len(found), content))[0])
    return [content for _, content in found.values()], places
