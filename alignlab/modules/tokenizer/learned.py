"""learned: a small network selects patches."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.errors import InputError
from alignlab.functional import gather, stop_gradient, straight_through, upcast
from alignlab.modules.tokenizer.attention import start_weights
from alignlab.modules.tokenizer.selection import Kept, Selection, check_ratio, top

Decision = Literal["threshold", "topk", "sample"]


class LearnedSelection(Selection):
    """A small network says how probable it is that a patch is kept; training samples, and evaluation decides.

        h = gelu(W norm(F));  its second half becomes its mean over the picture's patches
        log pi = log_softmax(W3 gelu(W2 gelu(W1 h)))                                               channel 0 = keep
        y = softmax((log pi + g) / tau), g of Gumbel;  M = 1 where y_keep >= y_drop, with the gradient of y_keep

    Jin et al. 2023, https://arxiv.org/abs/2309.04669, section 3.1; the network is DynamicViT's, Rao et al. 2021,
    https://arxiv.org/abs/2106.02034. All of it is computed in float32 or wider. Three departures from the released
    code: that one samples in evaluation, too (here ``decision="sample"``), so that a picture has other tokens each
    time; it lets a picture lose all patches, where here the most probable one stays, with the gradients unchanged; and
    ``topk`` rounds where DynamicViT cuts off, so that it keeps as many as ``RandomSelection``.

    Args:
        dim: Width C of the patch features, a multiple of 4.
        decision: How evaluation decides. threshold: what has log-odds of being kept above ``threshold``, 0 unless it
            has been calibrated; topk: the most probable share ``ratio`` of each picture, the first of equal ones;
            sample: as training does.
        ratio: Share that ``topk`` keeps, in (0, 1].
        tau: Temperature of the relaxation.
        bias: By how much a new selection's logit is in favour of keeping; 0 as released.
    """

    threshold: Tensor
    """Scalar, the log-odds in nats above which ``decision="threshold"`` keeps a patch."""

    def __init__(
        self, dim: int, *, decision: Decision = "threshold", ratio: float = 1 / 3, tau: float = 1.0, bias: float = 0.0
    ) -> None:
        super().__init__()
        if decision not in get_args(Decision):
            raise InputError(f"LearnedSelection.decision is one of {', '.join(get_args(Decision))}, not {decision!r}")
        if dim % 4 or dim < 4:
            raise InputError(f"LearnedSelection needs features whose width is a multiple of 4, got {dim}")
        if not tau > 0:
            raise InputError(f"LearnedSelection.tau must be above 0, got {tau}")
        check_ratio("LearnedSelection", ratio)
        self.dim, self.decision, self.ratio, self.tau = dim, decision, ratio, tau
        self.settings = {"decision": decision, "ratio": ratio, "tau": tau, "bias": bias}
        self.register_buffer("threshold", torch.tensor(0.0))
        self.norm = nn.LayerNorm(dim)
        widths = (dim, dim, dim // 2, dim // 4, 2)
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.apply(start_weights)
        with torch.no_grad():
            self.linears[-1].bias[0] = bias

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Kept:
        return self._sample(features, noise) if self.training else self.decide(features, noise)

    def decide(self, features: Tensor, noise: Tensor | None = None) -> Kept:
        if self.decision == "sample":
            return self._sample(features, noise)
        log_probs = self.log_probs(features)
        keep, drop = log_probs.unbind(-1)
        mask = top(keep, self.ratio) if self.decision == "topk" else (keep - drop > self.threshold).to(keep.dtype)
        return Kept(stop_gradient(_at_least_one(mask, keep)), log_probs)

    @torch.no_grad()
    def calibrate(self, log_probs: Tensor, ratio: float) -> None:
        """Let evaluation keep a share of all patches by what the selection says of some: as many as it is to keep.

        A selection that is not yet sure of anything says less than 1/2 of nearly all. Then the threshold that keeps
        the share on average still keeps more of a picture where there is more to keep.

        Args:
            log_probs: (P, N, 2) of pictures of this process; those of all processes count, and each has to call it.
            ratio: The share, in (0, 1).
        """
        odds = gather(log_probs[..., 0] - log_probs[..., 1])[0].flatten().sort().values
        kept = max(1, min(round(ratio * len(odds)), len(odds) - 1))
        self.threshold.copy_((odds[-kept - 1] + odds[-kept]) / 2)  # between what is dropped and what is kept

    def log_probs(self, features: Tensor) -> Tensor:
        """(P, N, 2) of keeping and of dropping, in nats, float32 or wider."""
        with torch.autocast(features.device.type, enabled=False):
            first, *others = self.linears
            x = upcast(features)
            x = F.layer_norm(x, (self.dim,), upcast(self.norm.weight), upcast(self.norm.bias), self.norm.eps)
            x = F.gelu(_linear(first, x))
            local, rest = x.chunk(2, dim=-1)
            x = torch.cat([local, rest.mean(1, keepdim=True).expand_as(rest)], dim=-1)
            for linear in others[:-1]:
                x = F.gelu(_linear(linear, x))
            return F.log_softmax(_linear(others[-1], x), dim=-1)

    def _sample(self, features: Tensor, noise: Tensor | None) -> Kept:
        log_probs = self.log_probs(features)
        if noise is None:
            noise = -torch.empty_like(log_probs).exponential_().log()
        return Kept(sampled(log_probs, noise.to(log_probs), tau=self.tau), log_probs)


def sampled(log_probs: Tensor, noise: Tensor, *, tau: float = 1.0) -> Tensor:
    """(P, N) of 0 and 1 with a straight-through gradient, of log-probabilities and Gumbel noise (P, N, 2)."""
    keep, drop = F.softmax((log_probs + noise) / tau, dim=-1).unbind(-1)
    mask = _at_least_one((keep >= drop).to(keep.dtype), log_probs[..., 0])
    return straight_through(keep, mask)


def _at_least_one(mask: Tensor, scores: Tensor) -> Tensor:
    best = torch.zeros_like(mask).scatter(1, scores.argmax(1, keepdim=True), 1.0)
    return torch.where(mask.sum(1, keepdim=True) == 0, best, mask)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, upcast(layer.weight), upcast(layer.bias))
