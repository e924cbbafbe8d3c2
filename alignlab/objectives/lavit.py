"""LaVIT: one language model reads pictures as visual tokens, and writes them as codes."""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.batch import IGNORE, Batch, Tokens
from alignlab.errors import InputError, NoTokenizer
from alignlab.objectives.base import Loss, Objective
from alignlab.objectives.chance import dropped
from alignlab.objectives.mle import likelihood


class LaVIT(Objective):
    """Minimise the negative log-likelihood of texts that follow pictures, and of pictures' codes that follow texts.

        mean over all supervised tokens of -w log p(token | what stands before it),   w = text_weight or image_weight
        [start] visual tokens [end] prompt text,   and   caption [start] codes [end]

    Second stage of LaVIT, Jin et al. 2023, https://arxiv.org/abs/2309.04669, section 3.2, on the tokenizer that
    ``LaVITTokenizer`` trains in an earlier one; the authors released no training code. A picture that is read enters as
    continuous rows, whose merger is a copy that trains along; one that is written is the codes of the tokenizer as it
    came. The vocabulary grows by them, and by a start and an end. Text tokens of answers are supervised in the first
    kind of sequence, codes and end in the second. Both are of the same examples: ``target`` has to be the caption.

    The embedding and the head train whatever the adapter says, as the new rows are random; the vision tower never does,
    as the codes are of its features.

    Args:
        text_weight: Of the tokens of texts.
        image_weight: Of the codes; there are more of them than of a caption's words.
        drop_text: Share of texts left out before codes, drawn by the example and the step, for guidance.
        discrete_input: Pictures are read as codes, too, the all-discrete form.
        read_images_supervised: Also supervise the codes of pictures that are read.
        captions_supervised: Also supervise the captions before codes.

    Raises:
        NoTokenizer: The backbone has none, or one without codes.
        InputError: The language model has adapters, whose vocabulary cannot grow, or a setting is out of range.
    """

    requires = ("conversation", "target")

    def __init__(
        self,
        backbone: Backbone,
        *,
        text_weight: float = 1.0,
        image_weight: float = 1.0,
        drop_text: float = 0.1,
        discrete_input: bool = False,
        read_images_supervised: bool = False,
        captions_supervised: bool = False,
    ) -> None:
        if min(text_weight, image_weight) < 0 or not text_weight + image_weight or not 0 <= drop_text <= 1:
            given = f"{text_weight = }, {image_weight = }, {drop_text = }"
            raise InputError(f"LaVIT needs weights of at least 0, not both 0, and drop_text in [0, 1], got {given}")
        tokenizer = backbone.visual_tokenizer
        if tokenizer is None or not tokenizer.num_codes:
            has = "has no visual tokenizer" if tokenizer is None else "has a visual tokenizer without a quantizer"
            raise NoTokenizer(
                f"LaVIT writes pictures as codes, but {backbone.path} {has}; train one by LaVITTokenizer, as a stage "
                "before this one, and set backbone.path to that stage"
            )
        if getattr(tokenizer.selection, "decision", None) == "sample" and (discrete_input or read_images_supervised):
            raise InputError(
                "LaVIT with discrete_input or read_images_supervised needs a picture to have the same codes each time, "
                "but the tokenizer's selection samples; train it with decision threshold or topk"
            )
        super().__init__(backbone)
        self.weights = (text_weight, image_weight)
        self.drop_text = drop_text
        self.read_images_supervised, self.captions_supervised = read_images_supervised, captions_supervised
        backbone.add_visual_tokens()
        for module in (backbone.model.get_input_embeddings(), backbone.head):
            module.requires_grad_(True)
        backbone.parts["vision_tower"].requires_grad_(False)  # its features are what the codes are of
        tokenizer.discrete = discrete_input
        tokenizer.requires_grad_(False)
        if discrete_input:
            backbone.parts["projector"].requires_grad_(False)  # no row passes through it
        else:
            tokenizer.split()
            tokenizer.input_merger.requires_grad_(True)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.train(self.training)

    def loss(self, batch: Batch) -> Loss:
        chat, counts = batch.conversation, batch.conversation.num_images[:0]
        read, written = chat, None
        seen = self.backbone.features(chat)
        if seen is not None:  # there are pictures
            codes, counts = self.backbone.visual_tokenizer.codes(seen.patches)  # (M,), (P,)
            read, written = self._read(chat, seen.keep, codes), self._written(batch, codes, counts)
        read = likelihood(self.backbone, read, features=seen)
        written = torch.zeros_like(read[0]).expand(3) if written is None else likelihood(self.backbone, written)
        weights = [weight * count for weight, (_, count, _) in zip(self.weights, (read, written), strict=True)]
        total = sum(weights)
        mean = sum(weight * nll for weight, (nll, *_) in zip(self.weights, (read, written), strict=True))
        report = {"visual_tokens": counts.sum() / max(len(counts), 1)}
        for name, (nll, count, right) in (("text", read), ("image", written)):
            report[f"{name}_loss"] = nll.detach() / count.clamp(min=1)
            report[f"{name}_accuracy"] = right / count.clamp(min=1)
        return Loss(mean / total.clamp(min=1e-30), total, report)

    def after_step(self) -> None:
        self.step += 1

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in (self.backbone.visual_tokenizer, self.backbone.parts["vision_tower"]):
            module.eval()  # so that a picture's codes stay the same
        return self

    def _read(self, chat: Tokens, keep: Tensor, codes: Tensor) -> Tokens:
        """Conversations, with the codes as labels of the pictures where these are supervised, too."""
        if not self.read_images_supervised:
            return chat
        kept = chat.image_mask.masked_scatter(chat.image_mask, keep.flatten())
        ids = self.backbone.encoder.visual.ids(codes)
        return replace(chat, labels=chat.labels.masked_scatter(kept, ids))

    def _written(self, batch: Batch, codes: Tensor, counts: Tensor) -> Tokens:
        """Captions with the codes of their pictures, of the samples that have one."""
        shown, captions = batch.conversation.num_images, batch.target
        if captions.num_images.any():
            raise InputError("LaVIT writes the picture of a text, but a target of the data has pictures itself")
        rows = shown.nonzero().flatten()
        first = (shown.cumsum(0) - shown)[rows]  # of several pictures the first
        parts = codes.split(counts.tolist())
        written = self.backbone.picture_sequences(
            captions.select(rows),
            torch.cat([parts[index] for index in first.tolist()]),
            counts[first],
            drop=dropped(batch.ids, self.drop_text if self.training else 0.0, int(self.step)).to(rows.device)[rows],
        )
        if not self.captions_supervised:
            return written
        said = (written.attention_mask.cumsum(1) > 1) & written.attention_mask.bool()  # nothing predicts the first one
        said &= (written.labels == IGNORE) & (written.input_ids != self.backbone.encoder.visual.start)
        return replace(written, labels=torch.where(said, written.input_ids, written.labels))
