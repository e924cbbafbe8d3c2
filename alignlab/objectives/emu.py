"""Emu: one language model predicts the next word, or the next patch features of a picture, by regression."""

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.backbones import Backbone
from alignlab.backbones.dynamic import Reading, chosen, read
from alignlab.backbones.patches import check_patchwise, patch_grid, state_width
from alignlab.backbones.regressing import caption_tokens, follows, visual_tokens
from alignlab.batch import IGNORE, Batch, Tokens
from alignlab.errors import InputError
from alignlab.functional import stop_gradient, upcast
from alignlab.modules import ContinuousTokenizer, PatchPixels
from alignlab.objectives.base import Loss, Objective
from alignlab.objectives.chance import dropped
from alignlab.objectives.mle import predicting, scored


class Emu(Objective):
    """Minimise the likelihood loss of texts and the squared error of the visual tokens that are said to come next.

        mean over all supervised positions t of   text_weight * -log p(y_t+1 | ...)   or
            image_weight * |W h_t - F_t+1|^2 / C,   F the frozen vision tower's features, before the projector
        visual tokens, prompt, text,   and   caption, visual tokens

    Sun et al. 2023, https://arxiv.org/abs/2307.05222, in the form of its successor, https://arxiv.org/abs/2312.13286,
    which regresses in the encoder's space; no released code computes the term. Visual tokens are all N patches or
    averages over squares of them; they enter through the backbone's projector, and are predicted in both kinds of
    sequence, which are of the same examples: ``target`` has to be the caption. Texts of answers are supervised in the
    first kind.

    Three departures. A LLaVA has no token for the start of a picture: the last token of a prompt predicts the first
    visual token, as Emu's [IMG] does, and stays where a text is left out. The last visual token predicts no end of the
    picture, which has no features in the encoder's space; each picture has n tokens. Words before a picture are
    supervised on wish alone.

    The vision tower is frozen whatever the adapter says, as its features are the targets. The pixel decoder learns from
    these features, so it decides nothing; each visual token that is read counts as one position of its loss's sum.

    Args:
        text_weight: Of the tokens of texts.
        image_weight: Of the visual tokens.
        num_tokens: Visual tokens n of a picture, averages over squares of its patches; None: all patches.
        drop_text: Share of texts left out before pictures, drawn by the example and the step; drawing by regression has
            no guidance that would use what is learned so.
        captions_supervised: Also supervise the captions before pictures.
        pixel_weight: Of the pixels' squared error; 0: no decoder of pixels.

    Raises:
        InputError: The backbone's pictures cannot be read so, it has another tokenizer, or a setting is out of range.
    """

    requires = ("conversation", "target")

    def __init__(
        self,
        backbone: Backbone,
        *,
        text_weight: float = 1.0,
        image_weight: float = 1.0,
        num_tokens: int | None = None,
        drop_text: float = 0.0,
        captions_supervised: bool = False,
        pixel_weight: float = 1.0,
    ) -> None:
        weights = (text_weight, image_weight)
        if min(*weights, pixel_weight) < 0 or not any(weights) or not 0 <= drop_text <= 1:
            given = f"{text_weight = }, {image_weight = }, {pixel_weight = }, {drop_text = }"
            raise InputError(f"Emu needs weights of at least 0, not all 0, and drop_text in [0, 1], got {given}")
        super().__init__(backbone)
        self.weights, self.pixel_weight = weights, pixel_weight
        self.drop_text, self.captions_supervised = drop_text, captions_supervised
        _prepare(backbone, num_tokens, with_pixels=pixel_weight > 0)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.train(self.training)

    @property
    def tokenizer(self) -> ContinuousTokenizer:
        return self.backbone.visual_tokenizer

    def loss(self, batch: Batch) -> Loss:
        chat, reading = batch.conversation, None
        passes = [(chat, reading)]
        if chat.num_images.any():
            reading = read(self.backbone, chat)
            passes = [(chat, reading), self._written(batch, reading)]
        words, predicted, wanted = zip(*(self._pass(*each) for each in passes), strict=True)
        nll, num_words, right = (sum(values) for values in zip(*words, strict=True))
        predicted, wanted = upcast(torch.cat(predicted)), upcast(torch.cat(wanted))  # (M, C)
        errors = (predicted - wanted).square().mean(-1).sum()
        painting = self._painting_error(chat, reading) if self.pixel_weight else 0.0
        total = self.weights[0] * num_words + self.weights[1] * len(wanted)
        loss = self.weights[0] * nll + self.weights[1] * errors + self.pixel_weight * painting
        words, tokens = num_words.clamp(min=1), max(len(wanted), 1)
        report = {
            "text_loss": nll.detach() / words,
            "text_accuracy": right / words,
            "image_loss": errors.detach() / tokens,
            "cosine": (1 - F.cosine_similarity(predicted.detach(), wanted, dim=-1)).sum() / tokens,
            "target_variance": _variance(wanted),
            "prediction_variance": _variance(predicted.detach()),
        }
        if self.pixel_weight and reading is not None:
            report["pixel_loss"] = painting.detach() / reading.keep.sum()
        return Loss(loss / total.clamp(min=1e-30), total, report)

    def after_step(self) -> None:
        self.step += 1

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.parts["vision_tower"].eval()  # what is to be predicted stays the same
        return self

    def _pass(self, tokens: Tokens, reading: Reading | None) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """What ``scored`` says of the texts, and the predicted and the true features, (M, C) each."""
        output = self.backbone(tokens, logits_at=predicting(tokens), features=reading)
        words, states = scored(output.logits, tokens), output.hidden.to(self.tokenizer.predict.weight.dtype)
        if reading is None:
            return words, self.tokenizer.predict(states[:0, 0]), states.new_zeros(0, self.tokenizer.dim)
        visual = visual_tokens(tokens, reading.keep)
        wanted = visual & follows(tokens)
        features = stop_gradient(self.tokenizer.tokens(reading.patches)).flatten(0, 1)  # (P n, C)
        return words, self.tokenizer.predict(states[:, :-1][wanted[:, 1:]]), features[wanted[visual]]

    def _written(self, batch: Batch, reading: Reading) -> tuple[Tokens, Reading]:
        """Captions with their pictures behind them, of the samples that have one."""
        shown = batch.conversation.num_images
        rows = shown.nonzero().flatten()
        first = (shown.cumsum(0) - shown)[rows]  # of several pictures the first
        drop = dropped(batch.ids, self.drop_text if self.training else 0.0, int(self.step)).to(rows.device)[rows]
        written = self.backbone.feature_sequences(batch.target.select(rows), drop=drop)
        if self.captions_supervised:
            written = replace(written, labels=written.input_ids.masked_fill(~caption_tokens(written), IGNORE))
        return written, chosen(reading, first)

    def _painting_error(self, chat: Tokens, reading: Reading | None) -> Tensor:
        """The pixels' mean squared error of each picture, times its tokens, summed."""
        tokenizer = self.tokenizer
        if reading is None:  # so that every parameter has a gradient
            return tokenizer.pixels(tokenizer.predict.weight.new_zeros(0, tokenizer.num_patches, tokenizer.dim)).sum()
        drawn = tokenizer.pixels(stop_gradient(reading.patches))
        return tokenizer.num_tokens * (drawn - self.backbone.pixels(chat)).square().mean((1, 2, 3)).sum()


def _prepare(backbone: Backbone, num_tokens: int | None, *, with_pixels: bool) -> None:
    """Freeze the vision tower, and let the backbone have a tokenizer that trains."""
    tokenizer = backbone.visual_tokenizer
    if tokenizer is None:
        num_patches, dim = check_patchwise(backbone)
        tokenizer = ContinuousTokenizer(dim, num_patches, state_width(backbone), num_tokens=num_tokens)
        backbone.visual_tokenizer = tokenizer
    elif not isinstance(tokenizer, ContinuousTokenizer):
        raise InputError(
            f"Emu predicts features by a ContinuousTokenizer, but {backbone.path} has a {type(tokenizer).__name__}; "
            "begin with a backbone that has none"
        )
    elif num_tokens not in (None, tokenizer.num_tokens):
        raise InputError(
            f"Emu continues a tokenizer of {tokenizer.num_tokens} tokens a picture, not {num_tokens}; leave num_tokens "
            "out, or begin with a backbone that has none"
        )
    if with_pixels and tokenizer.pixel_decoder is None:
        grid, patch_size = patch_grid(backbone, tokenizer.num_patches)
        grid, patch_size = [count // tokenizer.side for count in grid], patch_size * tokenizer.side
        tokenizer.pixel_decoder = PatchPixels(tokenizer.dim, grid=grid, patch_size=patch_size)
    tokenizer.to(backbone.device, torch.promote_types(backbone.model.dtype, torch.float32)).requires_grad_(True)
    backbone.parts["vision_tower"].requires_grad_(False)


def _variance(rows: Tensor) -> Tensor:
    """The variance (M, C) -> () of each channel over the rows, their mean; 0 of no rows."""
    if not len(rows):
        return rows.new_zeros(())
    return rows.var(0, correction=0).mean()
