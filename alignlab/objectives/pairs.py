"""pairs: what objectives on pairs of pictures and texts share, a learned scale and what is reported of the cosines."""

import math

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from alignlab.backbones import Backbone, DualEncoder
from alignlab.errors import InputError


def learned_scale(who: str, backbone: Backbone | DualEncoder, scale: float | None, default: float) -> nn.Parameter:
    """The logarithm of a scale, to be trained: the model's own parameter where it has one, else a new one.

    Args:
        scale: Where it starts; None: where the model left it, and at the default where it has none.
    """
    if scale is not None and scale <= 0:
        raise InputError(f"{who} needs scale > 0, or null for the model's own, got {scale}")
    parameter = _learned(backbone.logit_scale, None if scale is None else math.log(scale), math.log(default))
    if isinstance(backbone, DualEncoder):
        backbone.keep(logit_scale=parameter)
    return parameter


def learned_bias(backbone: Backbone | DualEncoder, bias: float | None, default: float) -> nn.Parameter:
    """A bias of cosines, to be trained, in the same way."""
    parameter = _learned(backbone.logit_bias, bias, default)
    if isinstance(backbone, DualEncoder):
        backbone.keep(logit_bias=parameter)
    return parameter


def upper_end(who: str, log_scale: nn.Parameter, scale: float | None, max_scale: float | None) -> float | None:
    """Where a scale is to be clamped: nowhere, where the model came with a larger one, which would fall at a step.

    Released SigLIP weights have a scale of 112, for example (open_clip#746).
    """
    if scale is not None and max_scale is not None and scale > max_scale:
        raise InputError(f"{who} needs scale <= max_scale, got {scale = }, {max_scale = }; max_scale: null lifts it")
    if max_scale is None or log_scale.is_meta:
        return max_scale
    start = float(log_scale.detach().exp())
    if start <= max_scale * (1 + 1e-4):  # a scale that was clamped there before may be above by rounding
        return max_scale
    rank_zero_warn(f"{who}: the model's own scale is {start:.1f}, so max_scale = {max_scale:g} is lifted")
    return None


def clamp(log_scale: nn.Parameter, max_scale: float | None) -> None:
    """Clamp a scale's logarithm in place; after a step, as a clamped loss gives a scale at its end no way back."""
    if max_scale is not None:
        with torch.no_grad():
            log_scale.clamp_(max=math.log(max_scale))


def cosine_report(cosines: Tensor, own: Tensor) -> dict[str, Tensor]:
    """How often a row's positive is its largest, and the mean cosines of positives and negatives.

    Args:
        cosines: (B, N).
        own: (B,) long, the column of each row's positive.
    """
    cosines = cosines.detach()
    positives = cosines.gather(1, own[:, None])
    return {
        "accuracy": (cosines.argmax(1) == own).float().mean(),
        "positive_cosine": positives.mean(),
        "negative_cosine": (cosines.sum() - positives.sum()) / max(1, cosines.numel() - len(own)),
    }


def _learned(own: nn.Parameter | None, given: float | None, default: float) -> nn.Parameter:
    if own is None:
        return nn.Parameter(torch.tensor(default if given is None else given))
    if given is not None:
        with torch.no_grad():
            own.fill_(given)
    return own.requires_grad_()
