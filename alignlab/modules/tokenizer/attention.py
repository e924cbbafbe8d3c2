"""attention: how patches read one another, with a visibility that may carry a gradient."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.errors import InputError
from alignlab.functional import upcast

SOFTMAX_EPS = 1e-6

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From queries (P, heads, Q, width), keys and values (P, heads, S, width) to (P, heads, Q, width)."""


class Attention(nn.Module):
    """Multi-head attention with biases: (P, Q, C), (P, S, C) -> (P, Q, C)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"the visual tokenizer needs num_heads that divides the width {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor, attend: Attend) -> Tensor:
        found = attend(*(self._heads(each) for each in (self.query(x), self.key(source), self.value(source))))
        return self.out(found.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def attending(visible: Tensor | None = None, *, causal: bool = False) -> Attend:
    """Softmax over the keys that are visible, (P, 1, Q or 1, S) bool with one at least for each query; None: all."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=causal)

    return attend


def weighing(visibility: Tensor, *, exact: bool) -> Attend:
    """Softmax with a visibility in [0, 1], (P, 1, Q or 1, S), whose gradient is that of ``visible_softmax``."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return visible_softmax(logits, visibility, exact=exact).to(value.dtype) @ value

    return attend


def visible_softmax(logits: Tensor, visibility: Tensor, *, exact: bool) -> Tensor:
    """The weights of keys, each multiplied by its visibility, in float32 or wider.

        exact:     vis_j exp(min(a_j - max_visible a, 0)) / sum of these;   zeros where none is visible
        official:  (vis_j exp(a_j - max a) + eps / S) / (sum of vis exp + eps),   eps = 1e-6

    The official one, DynamicViT's, takes its maximum over all keys and leaves eps / S to hidden ones: a hidden key
    whose logit is 14 above the visible ones takes 41 % from them. The exact one is the softmax over the visible keys.
    There the exponent of a hidden key stops at 0, which changes no value, so that its visibility has a bounded
    gradient.

    Args:
        logits: (P, heads, Q, S).
        visibility: (P, 1, Q or 1, S) of 0 and 1, with gradient.
        exact: Which of the two.
    """
    logits = upcast(logits)
    visibility = visibility.to(logits.dtype)
    if not exact:
        weights = (logits - logits.amax(-1, keepdim=True)).exp() * visibility
        return (weights + SOFTMAX_EPS / logits.shape[-1]) / (weights.sum(-1, keepdim=True) + SOFTMAX_EPS)
    visible = visibility > 0.5
    highest = logits.detach().masked_fill(~visible, -torch.inf).amax(-1, keepdim=True)
    weights = (logits - highest).clamp(max=0).exp() * visibility
    return weights / weights.sum(-1, keepdim=True).where(visible.any(-1, keepdim=True), 1.0)


def mlp(dim: int, ratio: float) -> nn.Sequential:
    """(..., C) -> (..., C) by way of the whole part of C ``ratio``."""
    hidden = int(dim * ratio)
    if hidden < 1:
        raise InputError(f"the visual tokenizer's mlp_ratio {ratio} leaves nothing of the width {dim}")
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def start_weights(module: nn.Module) -> None:
    """Draw a linear map's weights anew, normal of deviation 0.75 / sqrt(its inputs), and set its bias to 0.

    At the released width of 1408 that is the released deviation of 0.02, with which small widths hardly begin to learn.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.75 * module.in_features**-0.5)
        nn.init.zeros_(module.bias)
