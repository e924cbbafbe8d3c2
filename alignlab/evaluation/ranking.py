"""Ranking: each query finds its target among candidates of its own, as in MMEB."""

from collections.abc import Sequence

from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean
from alignlab.evaluation.retrieval import distinct

TIE = 1e-6
"""Cosines that differ by no more are equal but for rounding; so are embeddings that vary by no more."""


class Ranking(Evaluator):
    """Hit@1, or precision@1: how often the ``target`` is nearer to the ``query``, by cosine, than all ``negatives``.

    The protocol of MMEB (Jiang et al. 2025, https://arxiv.org/abs/2410.05160): a score for each ``source``, by its
    name, and ``accuracy``, their mean; ``micro_accuracy`` is the mean over examples, ``chance`` what a random order
    would give in place of ``accuracy``. A candidate that stands in a list twice counts once. ``collapsed`` is 1 where
    all queries or all candidates have the same embedding, or one is not finite, else 0.

    Differs on purpose where candidates tie: the authors' ``argsort`` puts the target first, since it stands first in
    the list, so that embeddings that have collapsed to a point score 1; here a tie counts as wrong, and they score 0,
    as do embeddings that are not numbers. In the blind audit, queries without a picture stay as they are.

    Args:
        num_examples: Queries; give enough for each source to have its share.
    """

    name = "ranking"
    requires = ("query", "target", "negatives")
    generative = False
    blindfolds = ("shuffled_images",)

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if isinstance(data, type):
            return
        if alone := [e.id for e in self._examples(data) if len(distinct((e.target, *e.negatives))[0]) < 2]:
            raise InputError(
                f"Ranking compares targets with negatives, but example {alone[0]!r} of {type(data).__name__} has none "
                "beside its target; give every example one, or use Retrieval, where candidates are all targets"
            )

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        queries, rows = distinct(example.query for example in examples)
        candidates, columns = distinct(c for example in examples for c in (example.target, *example.negatives))
        total = len(queries) + len(candidates)
        of_queries = self.embeddings(backbone, queries, lambda done, _: on_batch(done, total)).double()
        of_candidates = self.embeddings(
            backbone, candidates, lambda done, _: on_batch(len(queries) + done, total)
        ).double()
        places = iter(columns)
        lists = [list(dict.fromkeys(next(places) for _ in range(1 + len(e.negatives)))) for e in examples]
        won = [float(is_found(of_candidates[each] @ of_queries[row])) for each, row in zip(lists, rows, strict=True)]
        sources = [example.source for example in examples]
        by_source = _by_source(sources, won)
        scores = {
            "accuracy": mean(by_source.values()),
            "micro_accuracy": mean(won),
            "chance": mean(_by_source(sources, [1 / len(each) for each in lists]).values()),
            "collapsed": float(is_collapsed(of_queries) or is_collapsed(of_candidates)),
        }
        items = [
            {"id": e.id, "score": score, "metrics": {name: score for name in ("micro_accuracy", e.source) if name}}
            for e, score in zip(examples, won, strict=True)
        ]
        return Evaluation({source: score for source, score in by_source.items() if source} | scores, items)


def is_found(similarities: Tensor) -> bool:
    """Whether the first of (K,) similarities is the largest, by more than rounding; False where one is not a number."""
    return bool((similarities[1:] < similarities[0] - TIE).all())


def is_collapsed(embeddings: Tensor) -> bool:
    """Whether several embeddings (N, D) are one, or some are not finite."""
    if not embeddings.isfinite().all():
        return True
    return len(embeddings) > 1 and embeddings.var(0, correction=0).sum().item() <= TIE


def _by_source(sources: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    pairs = list(zip(sources, scores, strict=True))
    return {source: mean(score for each, score in pairs if each == source) for source in sorted(set(sources))}
