"""LaVITTokenizer: a picture becomes as few visual tokens as give the vision tower's features back, and then codes."""

from collections.abc import Callable
from typing import Literal, Self, get_args

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.backbones.patches import patch_grid
from alignlab.batch import Batch, Tokens
from alignlab.errors import InputError
from alignlab.functional import code_usage, cosine_reconstruction_loss, keep_ratio_loss, stop_gradient
from alignlab.modules import LearnedSelection, PatchPixels, Quantizer, Selection, VisualTokenizer
from alignlab.modules.parted import evaluating
from alignlab.objectives.base import Loss, Objective
from alignlab.objectives.chance import gumbel_noise
from alignlab.objectives.tokenizing import check_same, continue_tokenizer, make_tokenizer, some_rows

Reduction = Literal["per_image", "batch_mean"]

START = 10
"""Rows for each code that the codebook begins with."""

CALIBRATION = 30_000
"""Patches by which a selection is calibrated."""


class LaVITTokenizer(Objective):
    """Minimise how far the features that a visual tokenizer gives back are from those of the frozen vision tower.

        mean over patches of (1 - cos(F', F))  +  keep_weight * mean over pictures of (keep_ratio - kept / N)^2
        + the quantizer's own loss, a mean over each picture's tokens  +  pixel_weight * squared error of the pixels

    First stage of LaVIT, Jin et al. 2023, https://arxiv.org/abs/2309.04669, equations 3 and 4. Its training code was
    never released, and its authors' two answers on the order of training differ: first the token predictor alone,
    without quantization, then the rest (jy0205/LaVIT, issue 10), or first selector and merger without quantization,
    then everything with it (issue 29). Here the first phase is a stage with ``quantizer: null``, in which selector,
    merger and decoder train; the second continues its tokenizer with a quantizer; ``freeze_selector`` tells the answers
    apart.
    The pixels are decoded from F' without gradient to it, so they decide nothing of the tokens.

    Everything else of the backbone is frozen. The Gumbel noise of a picture is drawn by its example and the step; a
    frozen selector decides as in evaluation.

    Args:
        quantizer: What makes a code of a row; None: rows go on as they are, normalised.
        selection: Which patches are kept, the same in both phases. One with a ``ratio`` of its own keeps that share.
        freeze_selector: In the second phase.
        keep_ratio: The share of patches to keep.
        keep_weight: Of the keep ratio's loss.
        keep_reduction: ``per_image`` draws each picture to the ratio, ``batch_mean`` the mean of the batch.
        keep_warmup: Steps over which the ratio falls from 1 to ``keep_ratio``, evenly, in the first phase; 0 as in the
            paper. With a selection that begins in favour of keeping, the decoder learns before patches are missing.
        calibrated: Before the second phase with a frozen selector, let the share that evaluation keeps be
            ``keep_ratio`` (``LearnedSelection.calibrate``).
        depth: Blocks of the merger, and of the decoder.
        num_heads: Of their attention.
        mlp_ratio: Width of their hidden layers, in multiples of the features'.
        code_dim: Width of a code.
        exact_masking: Attention is blind to what it must not see; False: as released, where some of it leaks.
        positions: The merger is told a patch's place, which the features of a small vision tower hardly say.
        pixel_weight: Of the pixels' squared error; 0: no decoder of pixels.

    Raises:
        InputError: The tokenizer that is continued has another form, or the backbone's pictures can have none.
    """

    requires = ("conversation",)
    alone = "it freezes all of the backbone but the visual tokenizer; make it a stage before the others"

    def __init__(
        self,
        backbone: Backbone,
        *,
        quantizer: Callable[[int], Quantizer] | None = None,
        selection: Callable[[int], Selection] = LearnedSelection,
        freeze_selector: bool = True,
        keep_ratio: float = 1 / 3,
        keep_weight: float = 2.0,
        keep_reduction: Reduction = "per_image",
        keep_warmup: int = 0,
        calibrated: bool = False,
        depth: int = 12,
        num_heads: int = 16,
        mlp_ratio: float = 4.3637,
        code_dim: int = 32,
        exact_masking: bool = True,
        positions: bool = False,
        pixel_weight: float = 1.0,
    ) -> None:
        if not 0 < keep_ratio <= 1 or min(keep_weight, keep_warmup, pixel_weight) < 0:
            given = f"{keep_ratio = }, {keep_weight = }, {keep_warmup = }, {pixel_weight = }"
            raise InputError(f"LaVITTokenizer needs 0 < keep_ratio <= 1 and no number below 0, got {given}")
        if keep_reduction not in get_args(Reduction):
            raise InputError(
                f"LaVITTokenizer.keep_reduction is one of {', '.join(get_args(Reduction))}, not {keep_reduction!r}"
            )
        super().__init__(backbone)
        self.keep_ratio, self.keep_weight, self.keep_reduction = keep_ratio, keep_weight, keep_reduction
        self.keep_warmup, self.calibrated, self.pixel_weight = keep_warmup, calibrated, pixel_weight
        backbone.requires_grad_(False)
        form = {
            "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio, "code_dim": code_dim,
            "exact_masking": exact_masking, "positions": positions,
        }  # fmt: skip
        self.is_continued = backbone.visual_tokenizer is not None
        take = continue_tokenizer if self.is_continued else make_tokenizer
        tokenizer = take(backbone, selection, form)
        if pixel_weight and tokenizer.pixel_decoder is None:
            grid, patch_size = patch_grid(backbone, tokenizer.num_patches)
            tokenizer.pixel_decoder = PatchPixels(tokenizer.dim, grid=grid, patch_size=patch_size)
        if calibrated and getattr(tokenizer.selection, "decision", "") != "threshold":
            raise InputError("LaVITTokenizer.calibrated sets the threshold of a LearnedSelection that decides by one")
        if tokenizer.quantizer is not None:
            check_same(tokenizer.quantizer, None if quantizer is None else quantizer(tokenizer.code_dim))
        elif quantizer is not None:
            tokenizer.quantize_by(quantizer)
        tokenizer.to(backbone.device, torch.promote_types(backbone.model.dtype, torch.float32)).requires_grad_(True)
        self.is_decided = self.is_continued and quantizer is not None and freeze_selector
        tokenizer.selection.requires_grad_(not self.is_decided)
        if tokenizer.quantizer is not None:
            self.coupled = tokenizer.quantizer.coupled
        if keep_reduction == "batch_mean":
            self.coupled = self.coupled or "keep_reduction: batch_mean compares the batch's mean"
        self.per_process = self.coupled
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.train(self.training)

    @property
    def tokenizer(self) -> VisualTokenizer:
        return self.backbone.visual_tokenizer

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        features = self.features(chat)
        noise = None
        if self.tokenizer.selection.training:
            noise = gumbel_noise(batch.ids, chat.num_images.tolist(), (features.shape[1], 2), int(self.step))
        tokens = self.tokenizer(features, noise)
        decoded = self.tokenizer.decode(tokens.vectors, tokens.counts)
        terms = {
            "reconstruction_loss": cosine_reconstruction_loss(decoded, features),
            "keep_loss": keep_ratio_loss(
                tokens.keep, ratio=self._ratio(), weight=self.keep_weight, reduction=self.keep_reduction
            ),
            "quantizer_loss": _by_picture(tokens.losses, tokens.counts),
        }
        if self.pixel_weight:
            drawn = self.tokenizer.pixels(stop_gradient(decoded))
            shown = self.backbone.pixels(chat) if len(drawn) else drawn
            errors = (drawn - shown).square().flatten(1).mean(1)  # (P,)
            terms["pixel_loss"] = self.pixel_weight * errors.sum() / max(len(errors), 1)
        report = {name: value.detach() for name, value in terms.items()}
        report["kept"] = tokens.keep.detach().sum() / max(tokens.keep.numel(), 1)
        if tokens.codes is not None:
            report["usage"], report["perplexity"] = code_usage(tokens.codes, self.tokenizer.quantizer.num_codes)
            report |= self.tokenizer.quantizer.report()
        return Loss(sum(terms.values()), len(features), report)

    def begin(self, trainer: Trainer) -> None:
        """Find the selection's threshold and let the codebook begin with the rows that there are, each once."""
        tokenizer, quantizer = self.tokenizer, self.tokenizer.quantizer
        if int(self.step) or not len(trainer.datamodule.filled("train")):
            return
        with evaluating(self), torch.no_grad(), trainer.precision_plugin.forward_context():
            if self.is_decided and self.calibrated:
                found = some_rows(self, trainer, tokenizer.selection.log_probs, CALIBRATION)
                tokenizer.selection.calibrate(found.view(-1, tokenizer.num_patches, 2), self.keep_ratio)
            if quantizer is not None and not quantizer.started:
                count = START * quantizer.num_codes
                quantizer.start(some_rows(self, trainer, lambda features: tokenizer(features).projected, count))

    def _ratio(self) -> float:
        """The share of patches to keep by now."""
        if self.is_continued or not self.training or not self.keep_warmup:
            return self.keep_ratio
        return self.keep_ratio + (1 - self.keep_ratio) * max(0.0, 1 - int(self.step) / self.keep_warmup)

    def after_step(self) -> None:
        self.step += 1
        if self.tokenizer.quantizer is not None:
            self.tokenizer.quantizer.update()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.model.eval()  # its features are what is to come back
        if self.is_decided:
            self.tokenizer.selection.eval()
        return self

    @torch.no_grad()
    def features(self, chat: Tokens) -> Tensor:
        """The vision tower's features (P, N, C), also of no picture, whose loss is 0 and still has its graph."""
        if not chat.num_images.any():
            return torch.zeros(0, self.tokenizer.num_patches, self.tokenizer.dim, device=self.backbone.device)
        return self.backbone.patch_features(chat)


def _by_picture(values: Tensor, counts: Tensor) -> Tensor:
    """The mean over pictures of the mean over each one's rows."""
    picture = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return (values / counts[picture]).sum() / max(len(counts), 1)
