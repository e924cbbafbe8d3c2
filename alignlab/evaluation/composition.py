"""Composition: a right caption against a wrong one that differs in one thing."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.batch import Example, Foil, Turn
from alignlab.data.base import AlignmentData, Split, check_supplies
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean, thumbnail
from alignlab.evaluation.language import foil_margins, train_examples
from alignlab.evaluation.likelihood import likelihood

TIES = {"likelihood": 1e-4, "similarity": 1e-6}
"""Margins (nats, cosines) too small to be more than rounding."""

Pair = tuple[Example, Foil]


class Composition(Evaluator):
    """How often a backbone prefers the true caption of a foil to the false one; a tie counts half.

    By likelihood: the caption with the larger sum of token log-probabilities, as an answer to the data's
    ``caption_prompt`` about the picture. By similarity: the caption whose embedding, in the form of the example's
    target, has the larger cosine with that of the query. ``accuracy`` is the mean over the kinds of foils, each of
    which has its own score; 0.5 is chance. In the blind audit ``length_only`` prefers the caption of fewer words, and
    ``bag_of_words`` is a logistic regression over counts of words and of pairs of neighbouring words, fitted on the
    foils of the train split.

    The authors of SugarCrepe (Hsieh et al. 2023, https://arxiv.org/abs/2306.14610) count ties as wrong, CLIP_benchmark
    counts them as right; half keeps a backbone that cannot tell at chance. ``strict`` is the authors' number, ``ties``
    the share of ties, each as a mean over the kinds, too.

    Args:
        num_examples: Examples whose foils are judged.
        by: What decides; similarity also requires ``query`` and ``target``.
        num_pictures: Items that keep their picture, for a report.
    """

    name = "composition"
    requires = ("foils",)
    blindfolds = ("shuffled_images", "text_only")

    def __init__(
        self,
        *,
        by: Literal["likelihood", "similarity"] = "likelihood",
        num_examples: int = 256,
        batch_size: int = 64,
        num_pictures: int = 12,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
        blind: bool = False,
    ) -> None:
        super().__init__(
            num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label, blind=blind
        )
        self.by = by
        self.num_pictures = num_pictures

    @property
    def generative(self) -> bool:
        return self.by == "likelihood"

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if self.by == "similarity":
            check_supplies("Composition by similarity", (*self.requires, "query", "target"), data)

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        judged = _pairs(examples)
        if not judged:
            raise InputError(f"Composition: the {len(examples)} {self.split} examples hold no foil")
        if self.by == "likelihood":
            margins = self._nats(backbone, data.caption_prompt, judged, on_batch)
        else:
            margins = self._cosines(backbone, judged, on_batch)
        won = wins(margins, TIES[self.by])
        items = [
            {
                "id": f"{example.id}-{foil.kind}",
                "score": score,
                "metrics": {foil.kind: score},
                "prompt": foil.kind,  # what was asked is always the same
                "output": {1.0: foil.true, 0.5: "", 0.0: foil.false}[score],
                "reference": foil.true,
                "picture": thumbnail(example) if index < self.num_pictures else None,
            }
            for index, ((example, foil), score) in enumerate(zip(judged, won, strict=True))
        ]
        return Evaluation(by_kind([foil for _, foil in judged], won), items)

    def baselines(self, data: AlignmentData, examples: list[Example]) -> Mapping[str, dict[str, float]]:
        foils = [foil for _, foil in _pairs(examples)]
        shorter = torch.tensor([len(foil.false.split()) - len(foil.true.split()) for foil in foils])
        learned = foil_margins([foil for _, foil in _pairs(train_examples(data))], foils)
        margins = {"length_only": shorter, "bag_of_words": learned}
        return {how: by_kind(foils, wins(each, 1e-6)) for how, each in margins.items()}

    def _nats(self, backbone: Backbone, prompt: str, judged: Sequence[Pair], on_batch: OnBatch) -> Tensor:
        """How much likelier each true caption is; one that stands in several foils of an example is read once."""
        said = {(example.id, text): example for example, foil in judged for text in (foil.true, foil.false)}
        logps: dict[tuple[str, str], float] = {}
        for part in self.batches(list(said), on_batch):
            turns = [
                (id, (Turn("user", (*said[id, text].images[:1], prompt)), Turn("assistant", (text,))))
                for id, text in part
            ]
            tokens = backbone.encoder.conversations(turns).to(backbone.device)
            logps |= zip(part, likelihood(backbone, tokens).logps.tolist(), strict=True)
        margins = [logps[example.id, foil.true] - logps[example.id, foil.false] for example, foil in judged]
        return torch.tensor(margins, dtype=torch.float64)

    def _cosines(self, backbone: Backbone, judged: Sequence[Pair], on_batch: OnBatch) -> Tensor:
        """How much nearer each true caption is to the query; nearness that is not a number decides nothing."""
        seen = {example.id: example for example, _ in judged}
        said = {(example.id, text): example for example, foil in judged for text in (foil.true, foil.false)}
        contents = [seen[id].query for id in seen] + [example.phrased(text) for (_, text), example in said.items()]
        vectors = self.embeddings(backbone, contents, on_batch).double()
        of = dict(zip((*seen, *said), vectors, strict=True))
        queries = torch.stack([of[example.id] for example, _ in judged])
        apart = torch.stack([of[example.id, foil.true] - of[example.id, foil.false] for example, foil in judged])
        return (queries * apart).sum(1).nan_to_num(nan=0.0)


def wins(margins: Tensor, tie: float) -> list[float]:
    """1 where the margin is positive, 0 where it is negative, 0.5 where it is at most ``tie`` either way."""
    return ((margins > tie) + 0.5 * (margins.abs() <= tie)).tolist()


def winoground(similarities: Tensor) -> dict[str, float]:
    """Scores of N pairs of pictures with their captions of the same words in another order; a tie counts as wrong.

    Thrush et al. 2022, https://arxiv.org/abs/2204.03162, section 3.2. Chance is 1/4 for ``text`` (both pictures prefer
    their own captions) and ``image`` (both captions prefer their own pictures), and 1/6 for ``group`` (both).

    Args:
        similarities: (N, 2, 2), of pictures (rows) and captions (columns), the right ones on the diagonal.
    """
    right, wrong = similarities.diagonal(dim1=1, dim2=2), similarities.flip(2).diagonal(dim1=1, dim2=2)
    text = (right > wrong).all(1)
    image = (right > wrong.flip(1)).all(1)
    return {name: mean(won.tolist()) for name, won in (("text", text), ("image", image), ("group", text & image))}


def _pairs(examples: Sequence[Example]) -> list[Pair]:
    return [(example, foil) for example in examples for foil in example.foils]


def by_kind(foils: Sequence[Foil], won: Sequence[float]) -> dict[str, float]:
    kinds = sorted({foil.kind for foil in foils})
    of = {kind: [win for foil, win in zip(foils, won, strict=True) if foil.kind == kind] for kind in kinds}
    accuracies = {kind: mean(each) for kind, each in of.items()}
    return {
        "accuracy": mean(accuracies.values()),
        "strict": mean(mean(win == 1 for win in each) for each in of.values()),
        "ties": mean(mean(win == 0.5 for win in each) for each in of.values()),
    } | accuracies
