"""Retention: what tuning costs the language model, against the model that training began with."""

import math

import torch

from alignlab.backbones import Backbone, DualEncoder
from alignlab.backbones.opening import embeds_only
from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch
from alignlab.evaluation.likelihood import compared


class Retention(Evaluator):
    """How far a backbone has moved from its start, on conversations without pictures, ``Example.text``, and with.

    ``text_kl`` is the mean of KL(start || tuned) over all supervised tokens of the texts, in nats (each counts at most
    100), exactly 0 where both give the same logits; ``text_perplexity`` is as TextPerplexity has it,
    ``text_perplexity_start`` the same of the start, and ``text_log_ratio`` the logarithm of the first over the second,
    the nats a token by which texts have become less likely. ``image_kl`` is the divergence at the answers of
    ``Example.conversation`` where that shows a picture, and is missing where none does. The score of an item is minus
    the nats per token by which the two differ on one text.

    A backbone that has learned visual tokens since its start is compared on the start's words: each reads the
    conversations in its own form, and of the tuned one's logits those of visual tokens are left out, so that its
    perplexity is that of the words that remain, renormalised.

    Costs a second model of the same size on the same device, read anew in each call and freed behind it.

    Args:
        base: The start, a directory or name as ``backbone.path`` takes it; None: the path of the backbone that training
            began with, as it stands there: where a fresh projector took the place of its own, ``image_kl`` tells how
            far the pictures have moved from that one.
    """

    name = "retention"
    requires = ("text",)

    def __init__(
        self,
        *,
        base: str | None = None,
        num_examples: int = 256,
        batch_size: int = 64,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label)
        self.base = base

    def check_backbone(self, backbone: Backbone | DualEncoder) -> None:
        super().check_backbone(backbone)
        if self.base is not None:
            try:
                only_embeds = embeds_only(self.base)
            except InputError as error:
                raise _of_base(error) from None
            if only_embeds:
                raise InputError(f"Retention: base: {self.base} is a dual encoder, which generates no text")
        elif backbone.start is None:
            raise InputError(
                f"Retention compares with the language model that training began with, but that of {backbone.path} was "
                "drawn anew, or taken from elsewhere; set base to a directory or name to compare with"
            )

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        start = self._start(backbone)
        texts = [(example.id, example.text) for example in examples]
        shown = [(example.id, example.conversation) for example in examples if _shows(example)]
        rows = []
        for part in self.batches(texts + shown, on_batch):
            tokens = backbone.encoder.conversations(part).to(backbone.device)
            read = start.encoder.conversations(part).to(backbone.device) if _has_learned(backbone, start) else None
            before, after, nats = compared(start, backbone, tokens, before=read)
            rows.append(torch.stack([nats, before.logps, after.logps, after.counts], 1))
        of_texts, of_pictures = torch.cat(rows).split([len(texts), len(shown)])  # (number of conversations, 4)
        scores = -of_texts[:, 0] / of_texts[:, 3]
        nats, before, after, count = of_texts.sum(0).tolist()
        found = {
            "text_kl": nats / count,
            "text_perplexity": math.exp(-after / count),
            "text_perplexity_start": math.exp(-before / count),
            "text_log_ratio": (before - after) / count,
        }
        if shown:
            nats, _, _, count = of_pictures.sum(0).tolist()
            found["image_kl"] = nats / count
        items = [{"id": id, "score": score} for (id, _), score in zip(texts, scores.tolist(), strict=True)]
        return Evaluation(found, items)

    def _start(self, backbone: Backbone) -> Backbone:
        """The start as the backbone itself is read, so that what did not train gives the same numbers."""
        path = backbone.start if self.base is None else self.base
        dtype = str(backbone.model.dtype).removeprefix("torch.")
        try:
            start = Backbone(path, dtype=dtype, attention=backbone.model.config._attn_implementation)
        except InputError as error:
            raise _of_base(error) from None
        vocabulary, visual = backbone.encoder.tokenizer.get_vocab(), backbone.encoder.visual
        if _has_learned(backbone, start):
            among = visual.tokens(max(vocabulary.values()) + 1, torch.device("cpu")).tolist()
            vocabulary = {word: id for word, id in vocabulary.items() if not among[id]}
        if start.encoder.tokenizer.get_vocab() != vocabulary:
            raise InputError(
                f"Retention compares distributions over one vocabulary, but {path} has another tokenizer than "
                f"{backbone.path}; set base to a model of the same"
            )
        return start.to(backbone.device).eval()


def _of_base(error: InputError) -> InputError:
    return InputError(f"Retention: base: {str(error).removeprefix('backbone.path: ')}")


def _has_learned(backbone: Backbone, start: Backbone) -> bool:
    """Whether it has visual tokens that its start does not have."""
    return backbone.encoder.visual is not None and start.encoder.visual is None


def _shows(example: Example) -> bool:
    return any(not isinstance(part, str) for turn in example.conversation for part in turn.content)
