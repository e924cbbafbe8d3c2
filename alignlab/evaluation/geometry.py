"""Geometry: how embeddings of queries and targets lie, and what a contrastive loss makes of it."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_precision, binary_recall

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean
from alignlab.evaluation.retrieval import distinct
from alignlab.functional import info_nce


class Geometry(Evaluator):
    """Measures of the embeddings q of N ``query`` and t of their ``target``, all of length 1.

    - ``alignment``: mean |q_i - t_i|^2 in [0, 4]; lower is better; and ``uniformity_query``, ``uniformity_target``:
      log mean over pairs of exp(-2 |x_i - x_j|^2) <= 0; lower is more spread; 0 when collapsed to a point. Wang & Isola
      2020, https://arxiv.org/abs/2005.10242, Eqs. 4 and 5.
    - ``effective_rank_query``, ``effective_rank_target``: exp of the entropy of the singular values over their sum, in
      [1, min(N, D)]; 1 when collapsed to a line. Roy & Vetterli 2007, The effective rank.
    - ``modality_gap``: |mean q - mean t| in [0, 2]. Liang et al. 2022, https://arxiv.org/abs/2203.02053.
    - ``positive_cosine``, mean <q_i, t_i>; ``negative_cosine``, mean <q_i, t_j> of other groups; ``hard_margin``, mean
      of the positive minus the largest negative one, which is also the score of an item.
    - ``info_nce``: the symmetric loss of all N pairs at the given scale, beside ``chance_info_nce`` = ln N, in nats.
    - ``filtered``: share of the N (N - 1) other targets that UniME's filter takes for right ones, those more similar
      than the positive by over ``margin``; ``filter_precision``, how many of these are of the query's group;
      ``filter_recall``, how many of those of its group are filtered. Both are 0 where there are none. Gu et al. 2025,
      https://arxiv.org/abs/2504.17432, section 3.3.

    An example without a ``group`` is one by itself. ``finite`` is the share of embeddings that are finite; one that is
    not counts as zero. Most of these depend on N.

    Args:
        num_examples: N.
        scale: Multiplier on the cosines, = 1 / temperature.
        margin: Of the filter, in cosines.
    """

    name = "geometry"
    requires = ("query", "target")
    generative = False

    def __init__(
        self,
        *,
        num_examples: int = 256,
        scale: float = 50.0,
        margin: float = 0.1,
        batch_size: int = 64,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
        blind: bool = False,
    ) -> None:
        super().__init__(
            num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label, blind=blind
        )
        if scale <= 0:
            raise InputError(f"Geometry needs scale > 0, got {scale}")
        self.scale = scale
        self.margin = margin

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if isinstance(data, type):
            return
        examples = self._examples(data)
        if same_group(examples).all():
            raise InputError(
                f"Geometry: the {len(examples)} {self.split} examples of {type(data).__name__} are one group, "
                "so no target is wrong for a query; it needs two groups"
            )

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        contents, places = distinct(content for example in examples for content in (example.query, example.target))
        vectors = self.embeddings(backbone, contents, on_batch).double()[places]
        finite = vectors.isfinite().all(1, keepdim=True)
        queries, targets = vectors.where(finite, 0.0).unflatten(0, (-1, 2)).unbind(1)
        same = same_group(examples)
        cosines = queries @ targets.T
        margins = hard_margins(cosines, same).tolist()
        scores = {
            "alignment": alignment(queries, targets),
            "uniformity_query": uniformity(queries),
            "uniformity_target": uniformity(targets),
            "effective_rank_query": effective_rank(queries),
            "effective_rank_target": effective_rank(targets),
            "modality_gap": (queries.mean(0) - targets.mean(0)).norm().item(),
            "positive_cosine": cosines.diagonal().mean().item(),
            "negative_cosine": cosines[~same].mean().item(),
            "hard_margin": mean(margins),
            "info_nce": info_nce(queries, targets, scale=self.scale, symmetric=True).item(),
            "chance_info_nce": math.log(len(examples)),
            "finite": finite.double().mean().item(),
        }
        items = [{"id": example.id, "score": score} for example, score in zip(examples, margins, strict=True)]
        return Evaluation(scores | filter_quality(cosines, same, self.margin), items)


def same_group(examples: list[Example]) -> Tensor:
    """Which of N examples are of one group. (N, N) bool, True on the diagonal"""
    names = [example.group or index for index, example in enumerate(examples)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    groups = torch.tensor([numbers[name] for name in names])
    return groups[:, None] == groups[None]


def alignment(queries: Tensor, targets: Tensor) -> float:
    """Mean squared distance of the rows of one (N, D) to those of another."""
    return (queries - targets).square().sum(1).mean().item()


def uniformity(embeddings: Tensor) -> float:
    """Log of the mean, over pairs of different rows of (N, D), of exp(-2 squared distance); N >= 2."""
    return torch.pdist(embeddings).square().mul(-2).exp().mean().log().item()


def effective_rank(embeddings: Tensor) -> float:
    """Exp of the entropy of the singular values of (N, D) over their sum; 1 where all are zero."""
    values = torch.linalg.svdvals(embeddings)
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp().item()


def hard_margins(cosines: Tensor, same: Tensor) -> Tensor:
    """How much nearer the own target is than the nearest of another group, of which every query needs one.

    Args:
        cosines: (N, N), of queries and targets.
        same: (N, N) bool, True within a group.

    Returns:
        (N,) in [-2, 2].
    """
    return cosines.diagonal() - cosines.masked_fill(same, -math.inf).amax(1)


def filter_quality(cosines: Tensor, same: Tensor, margin: float) -> dict[str, float]:
    """What a filter of false negatives finds among cosines (N, N), given the pairs of one group (N, N) bool."""
    others = ~torch.eye(len(cosines), dtype=torch.bool)
    filtered = (cosines > cosines.diagonal()[:, None] + margin)[others].int()
    wanted = same[others].int()
    return {
        "filtered": filtered.double().mean().item(),
        "filter_precision": binary_precision(filtered, wanted).item(),
        "filter_recall": binary_recall(filtered, wanted).item(),
    }
