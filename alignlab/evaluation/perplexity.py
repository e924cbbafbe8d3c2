"""TextPerplexity: what a backbone's language model still knows of texts without pictures."""

import math

import torch

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch
from alignlab.evaluation.likelihood import likelihood


class TextPerplexity(Evaluator):
    """Likelihood of the answers in conversations without pictures, ``Example.text``, to measure what was forgotten.

    ``nats`` is the mean of -log p(token) over all supervised tokens (each counts at most 100), ``perplexity`` its
    exponential, and ``accuracy`` the share of them that are the likeliest ones, given the true tokens before them. The
    score of an item is minus the nats per token of one conversation.
    """

    name = "text"
    requires = ("text",)

    def __init__(
        self,
        *,
        num_examples: int = 256,
        batch_size: int = 64,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label)

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        items, totals = [], torch.zeros(3, dtype=torch.float64)
        for part in self.batches(examples, on_batch):
            tokens = backbone.encoder.conversations([(example.id, example.text) for example in part])
            read = likelihood(backbone, tokens.to(backbone.device))
            scores = (read.logps / read.counts).tolist()
            items += [{"id": example.id, "score": score} for example, score in zip(part, scores, strict=True)]
            totals += torch.stack(read).sum(1)
        logps, correct, count = totals.tolist()
        nats = -logps / count
        return Evaluation({"perplexity": math.exp(nats), "nats": nats, "accuracy": correct / count}, items)
