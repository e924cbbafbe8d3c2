"""TokenWeights: how much a backbone's picture adds to each token of an answer, and how CAL would weigh the tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from alignlab.backbones import Backbone
from alignlab.backbones.dynamic import check_hides
from alignlab.backbones.words import answer_texts, token_roles
from alignlab.batch import IGNORE, ROLES, Example, Role, Tokens
from alignlab.data.base import AlignmentData, Split
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, thumbnail
from alignlab.functional import supervised, visual_weights

APART: tuple[Role, Role] = ("visual", "filler")
"""The roles whose tokens weights should tell apart."""

DECIMALS = 6
"""Weights that are the same to so many places are equal but for rounding."""

UNFINISHED = "\ufffd"
"""What a tokenizer writes for a part of a letter."""


class Weighed(NamedTuple):
    """The M supervised tokens of one conversation, all of its answers, in order; on the CPU.

    Args:
        texts: What each of them adds to the text; one answer stands in a line of its own behind another.
        gains: (M,) float64, logits; one that is not finite counts as 0.
        weights: (M,) float64 in [low, high].
        roles: (M,) long, places in ``ROLES``; -1 where not known.
    """

    texts: list[str]
    gains: Tensor
    weights: Tensor
    roles: Tensor


class TokenWeights(Evaluator):
    """How a backbone, whatever trained it, would weigh the tokens of the conversations' answers as CAL does.

        w_t = mean over the window around t of clamp(logit_t(y_t) - logit_t(y_t) without the image, low, high)

    Xiao et al. 2024, https://arxiv.org/abs/2405.17871; in brackets is the gain. ``mean_weight``, ``p10``, ``p50`` and
    ``p90`` are the mean and the deciles of the weights over all supervised tokens, ``gain`` is the mean gain, and
    ``at_low`` and ``at_high`` are the shares of tokens whose gain is clamped.

    Where the data know the words' roles, ``auroc`` is how often a visual token outweighs a filler one, a tie counting
    half; ``gain_visual``, ``weight_visual`` and the like are means over the tokens of one role; ``gain_other`` is the
    mean over all supervised tokens that are not visual, closing tokens and earlier answers included. What has no token
    has no score. The score of an item is then the mean weight of its visual tokens minus that of its filler ones, 0
    where it lacks either; without roles, its mean weight. The blind audit measures what another picture adds.

    The lab makes words wrong in training alone, so contradictory tokens are measured with ``split: train``.

    Args:
        low: Least weight.
        high: Largest weight.
        window: Odd number of neighbouring supervised tokens that a weight is the mean of.
        num_pictures: Items that keep their picture, for a report.
    """

    name = "weights"
    requires = ("conversation",)
    blindfolds = ("shuffled_images",)

    def __init__(
        self,
        *,
        low: float = 1.0,
        high: float = 5.0,
        window: int = 3,
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
        if not 0 <= low <= high or high == 0 or window < 1 or window % 2 == 0:
            given = f"{low = }, {high = }, {window = }"
            raise InputError(f"TokenWeights needs 0 <= low <= high, high > 0 and an odd window >= 1, got {given}")
        self.low, self.high, self.window = low, high, window
        self.num_pictures = num_pictures

    def check_backbone(self, backbone: Backbone) -> None:
        super().check_backbone(backbone)
        check_hides(backbone, type(self).__name__)

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        weighed = [each for part in self.batches(examples, on_batch) for each in self._weigh(backbone, part)]
        pairs = list(zip(examples, weighed, strict=True))
        known = [each for example, each in pairs if example.roles]
        items = [
            {
                "id": example.id,
                "score": _lead(each) if known else each.weights.mean().item(),
                **_asked(example),
                # A conversation without a picture shows none, though the query may have one.
                "picture": thumbnail(replace(example, query=())) if index < self.num_pictures else None,
                "weights": [
                    [text, round(weight, 3)] for text, weight in zip(each.texts, each.weights.tolist(), strict=True)
                ],
                "bounds": [self.low, self.high],
            }
            for index, (example, each) in enumerate(pairs)
        ]
        return Evaluation(self._overall(weighed) | self._by_role(known), items)

    def _weigh(self, backbone: Backbone, examples: Sequence[Example]) -> Iterator[Weighed]:
        tokens, roles = _encoded(backbone, examples)
        gains, kept = picture_gains(backbone, tokens.to(backbone.device)).cpu().double(), supervised(tokens.labels)
        weights = visual_weights(gains, kept, low=self.low, high=self.high, window=self.window)
        columns = zip(tokens.labels[:, 1:], gains, weights, roles[:, 1:], kept, strict=True)
        for labels, *row, here in columns:
            texts = answer_tokens(backbone.encoder.tokenizer, labels.tolist())
            yield Weighed(texts, *(values[here] for values in row))

    def _overall(self, weighed: Sequence[Weighed]) -> dict[str, float]:
        gains, weights = torch.cat([each.gains for each in weighed]), torch.cat([each.weights for each in weighed])
        ordered = weights.sort().values
        return {
            "mean_weight": weights.mean().item(),
            **{f"p{p}": ordered[round(p / 100 * (len(ordered) - 1))].item() for p in (10, 50, 90)},
            "at_low": (gains <= self.low).double().mean().item(),
            "at_high": (gains >= self.high).double().mean().item(),
            "gain": gains.mean().item(),
        }

    def _by_role(self, known: Sequence[Weighed]) -> dict[str, float]:
        """Scores of the conversations that have roles."""
        if not known:
            return {}
        gains, weights, roles = (torch.cat(each) for each in list(zip(*known, strict=True))[1:])
        visual, filler = (roles == ROLES.index(role) for role in APART)
        scores = {"auroc": self._auroc(weights[visual], weights[filler])} if visual.any() and filler.any() else {}
        for place, role in enumerate(ROLES):
            if (of := roles == place).any():
                scores |= {f"gain_{role}": gains[of].mean().item(), f"weight_{role}": weights[of].mean().item()}
        return scores if visual.all() else {**scores, "gain_other": gains[~visual].mean().item()}

    def _auroc(self, visual: Tensor, filler: Tensor) -> float:
        weights = torch.cat([visual, filler]).round(decimals=DECIMALS)
        # In [0, 1], since torchmetrics takes anything else for logits, whose sigmoids soon are all 1.
        shares = ((weights - self.low) / ((self.high - self.low) or 1.0)).clamp(0, 1)
        return binary_auroc(shares, torch.arange(len(shares)) < len(visual)).item()


def picture_gains(backbone: Backbone, tokens: Tokens) -> Tensor:
    """How much the pictures add to each label's logit, (B, T - 1); one that is not finite counts as 0."""
    features = backbone.features(tokens)  # the pictures are encoded once for both passes
    blind = backbone.without_images(tokens, features=features)
    gains = backbone.label_gains(tokens, backbone.hidden(tokens, features=features), backbone.label_states(blind))
    return gains.where(gains.isfinite(), 0.0)


def answer_tokens(tokenizer: Any, labels: Sequence[int]) -> list[str]:
    """What each supervised label adds to the text; an answer behind another begins in a new line."""
    texts: list[str] = []
    for trained, run in groupby(labels, key=lambda label: label != IGNORE):
        if trained:
            first, *rest = token_texts(tokenizer, list(run))
            texts += [f"\n{first}" if texts else first, *rest]
    return texts


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of those before it; a letter that is several tokens is added by the last."""
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    texts, start, done = [], 0, 0
    for end in range(1, len(ids) + 1):
        # A token is read behind another, since alone it loses the space in front of it.
        text = decode(ids[start:end])
        if text.endswith(UNFINISHED) and end < len(ids):
            texts.append("")
        else:
            texts.append(text[len(decode(ids[start:done])) :])
            start, done = done, end
    return texts


def _encoded(backbone: Backbone, examples: Sequence[Example]) -> tuple[Tokens, Tensor]:
    """The conversations and their tokens' roles, (B, T) long, -1 in those that have none."""
    turns = [(example.id, example.conversation) for example in examples]
    having = [index for index, example in enumerate(examples) if example.roles]
    if not having:
        tokens = backbone.encoder.conversations(turns)
        return tokens, torch.full_like(tokens.labels, -1)
    tokens, words = backbone.encoder.words(turns)
    roles = torch.full_like(words, -1)
    roles[having] = token_roles([examples[index] for index in having], words[having])
    return tokens, roles


def _asked(example: Example) -> dict[str, str]:
    """The last question, and the last answer, which nobody has to give: it is read."""
    asked = [turn.content for turn in example.conversation if turn.role == "user"]
    prompt = " ".join(part for part in asked[-1] if isinstance(part, str)) if asked else ""
    answer = " ".join(answer_texts(example.conversation))
    return {"prompt": prompt, "output": answer, "reference": answer}


def _lead(weighed: Weighed) -> float:
    """Mean weight of the visual tokens minus that of the filler ones; 0 where either are missing."""
    visual, filler = (weighed.weights[weighed.roles == ROLES.index(role)] for role in APART)
    return (visual.mean() - filler.mean()).item() if len(visual) and len(filler) else 0.0
