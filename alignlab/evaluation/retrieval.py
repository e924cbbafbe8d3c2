"""Retrieval: pictures find their captions, and captions their pictures, among the pairs of N examples."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.batch import Content, Example
from alignlab.data.base import AlignmentData
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean
from alignlab.functional import normalize

RANKS = (1, 5, 10)


class Retrieval(Evaluator):
    """Recall at 1, 5 and 10, in both directions, among the ``query`` and ``target`` of N examples, by cosine.

    A search is answered at k if one of its right candidates is among the k nearest. What several examples share (one
    picture with several captions, one caption of several pictures) is one candidate, right for all it came with. Ties
    count against the model: a wrong candidate as near as the best right one stands before it, so embeddings that have
    collapsed to a point score 0, not the chance level, and so do embeddings that are not finite. ``chance_r1`` is what
    a random order would give at 1. Recall depends on N: compare only runs of the same ``num_examples``.

    Args:
        num_examples: N.
    """

    name = "retrieval"
    requires = ("query", "target")

    def __init__(
        self, *, num_examples: int = 256, batch_size: int = 64, split: Literal["train", "val", "test"] = "test"
    ) -> None:
        super().__init__(num_examples=num_examples, batch_size=batch_size, split=split)

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        queries, rows = _distinct(example.query for example in examples)
        targets, columns = _distinct(example.target for example in examples)
        right = torch.zeros(len(queries), len(targets), dtype=torch.bool)
        right[rows, columns] = True
        total = len(queries) + len(targets)
        query_vectors = self._embed(backbone, queries, lambda done: on_batch(done, total))
        target_vectors = self._embed(backbone, targets, lambda done: on_batch(len(queries) + done, total))
        similarity = query_vectors @ target_vectors.T
        ahead = {"image_to_text": wrong_ahead(similarity, right), "text_to_image": wrong_ahead(similarity.T, right.T)}
        scores = {
            f"{direction}_r{k}": mean((counts < k).tolist()) for direction, counts in ahead.items() for k in RANKS
        }
        first = [rows.index(row) for row in range(len(queries))]
        items = [
            {"id": examples[index].id, "score": float(count < 1)}
            for index, count in zip(first, ahead["image_to_text"].tolist(), strict=True)
        ]
        return Evaluation(scores | {"chance_r1": right.double().mean().item()}, items)

    def _embed(self, backbone: Backbone, contents: list[Content], on_batch: Any) -> Tensor:
        vectors = []
        for start in range(0, len(contents), self.batch_size):
            tokens = backbone.encoder.contents(contents[start : start + self.batch_size]).to(backbone.device)
            vectors.append(normalize(backbone.embed(tokens)).cpu())
            on_batch(min(start + self.batch_size, len(contents)))
        return torch.cat(vectors)


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


def _distinct(contents: Iterable[Content]) -> tuple[list[Content], list[int]]:
    """The different contents, and the place of each content among them; a decoded picture equals itself alone."""
    found: dict[tuple[Any, ...], tuple[int, Content]] = {}
    places = []
    for content in contents:
        key = tuple(part if isinstance(part, str) else (type(part).__name__, str(part)) for part in content)
        places.append(found.setdefault(key, (len(found), content))[0])
    return [content for _, content in found.values()], places
