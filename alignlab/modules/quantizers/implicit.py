"""Implicit codebooks: quantisers whose codes are a grid, so that none can die and processes share nothing."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.functional import total, upcast
from alignlab.functional.processes import gather
from alignlab.functional.quantization import (
    entropy,
    fsq,
    fsq_values,
    lfq_codes,
    lfq_entropy,
    lfq_values,
    normalize,
    stop_gradient,
    straight_through,
)
from alignlab.modules.quantizers.base import Quantized, Quantizer


class Grid(Quantizer):
    """Base of quantisers that map rows to a width of their own and back, by linear maps where it is another.

    Args:
        width: Channels of the grid.
    """

    started = True

    def __init__(self, dim: int, num_codes: int, *, width: int) -> None:
        super().__init__(dim, num_codes)
        self.down = nn.Linear(dim, width) if width != dim else nn.Identity()
        self.up = nn.Linear(width, dim) if width != dim else nn.Identity()
        self.register_buffer("one", torch.ones(()), persistent=False)  # tells what the model was converted to

    @property
    def dtype(self) -> torch.dtype:
        """What codes are turned into: float32 or wider."""
        return upcast(self.one).dtype


class FSQ(Grid):
    """Each channel rounded to a few levels; no loss, nothing to start, nothing to follow.

    Source: Mentzer et al. 2023, https://arxiv.org/abs/2309.15505; the arithmetic of lucidrains/vector-quantize-pytorch.

    Args:
        levels: How many levels each channel has, each >= 3; [8, 8, 8, 6, 5] makes 15360 codes.
    """

    def __init__(self, dim: int, *, levels: Sequence[int]) -> None:
        levels = list(levels)
        good = bool(levels) and all(type(each) is int and each >= 3 for each in levels) and prod(levels) < 2**31
        self.check(good, f"levels, whole numbers of at least 3 that make less than 2^31 codes, got {levels}")
        super().__init__(dim, prod(levels), width=len(levels))
        self.levels = levels

    @property
    def settings(self) -> dict[str, Any]:
        return {"levels": self.levels}

    def quantize(self, x: Tensor) -> Quantized:
        values, codes = fsq(_linear(self.down, x), self.levels)
        return Quantized(_linear(self.up, values), codes, (0 * x).sum(-1))

    def lookup(self, codes: Tensor) -> Tensor:
        return _linear(self.up, fsq_values(codes, self.levels, dtype=self.dtype))


class LFQ(Grid):
    """The signs of the channels are the code; an entropy term makes rows decided, and all codes used.

        loss of a row = entropy * (H(p) - diversity * H(mean of p)) + commitment * mean over channels of (x - sg(q))^2
        q = scale * sign(x),   p(c) = softmax_c(2 inverse_temperature <x, c>) over all codes c

    The mean of p is over the rows of all processes in training, each of which has to call it then, with any number of
    rows, and over one's own in evaluation. Sources: Yu et al.
    2023, https://arxiv.org/abs/2310.05737, section 3.1; with ``spherical`` binary spherical quantisation, Zhao et al.
    2024, https://arxiv.org/abs/2406.07548; the arithmetic of lucidrains/vector-quantize-pytorch, whose entropies take
    no logarithm below log 1e-5, while these are exact.

    Args:
        bits: Channels; 2^bits codes, at most 2^24.
        spherical: Rows have length 1, and so do codes.
        inverse_temperature: How sharp p is.
        entropy: Weight of both entropies.
        diversity: Weight of the second in that of the first.
        commitment: Weight of the distance of rows to codes.
    """

    coupled = "the entropy of the mean probabilities is of all rows of a batch"

    def __init__(
        self, dim: int, *, bits: int, spherical: bool = False, inverse_temperature: float = 100.0,
        entropy: float = 0.1, diversity: float = 1.0, commitment: float = 0.25,
    ) -> None:  # fmt: skip
        self.check(1 <= bits <= 24, f"bits in [1, 24], got {bits}")
        self.check(inverse_temperature > 0, f"inverse_temperature > 0, got {inverse_temperature}")
        weights = {"entropy": entropy, "diversity": diversity, "commitment": commitment}
        self.check(min(weights.values()) >= 0, f"weights >= 0, got {weights}")
        super().__init__(dim, 2**bits, width=bits)
        self.bits, self.spherical, self.inverse_temperature = bits, spherical, inverse_temperature
        self.entropy, self.diversity, self.commitment = entropy, diversity, commitment

    @property
    def settings(self) -> dict[str, Any]:
        return {"bits": self.bits, "spherical": self.spherical, "inverse_temperature": self.inverse_temperature,
                "entropy": self.entropy, "diversity": self.diversity, "commitment": self.commitment}  # fmt: skip

    @property
    def scale(self) -> float:
        return self.bits**-0.5 if self.spherical else 1.0

    def quantize(self, x: Tensor) -> Quantized:
        x = _linear(self.down, x)
        x = normalize(x) if self.spherical else x
        codes = lfq_codes(x)
        values = lfq_values(codes, self.bits, scale=self.scale, dtype=x.dtype)
        own, summed = lfq_entropy(x, scale=self.scale, inverse_temperature=self.inverse_temperature)
        number = torch.tensor(len(x), device=x.device)
        if self.training:  # an evaluation may have more batches in one process than in another
            summed, number = gather(summed[None])[0].sum(0), total(number)
        spread = entropy(summed / number.clamp(min=1))
        losses = self.entropy * (own - self.diversity * spread)
        losses = losses + self.commitment * (x - stop_gradient(values)).square().mean(-1)
        return Quantized(_linear(self.up, straight_through(x, values)), codes, losses)

    def lookup(self, codes: Tensor) -> Tensor:
        return _linear(self.up, lfq_values(codes, self.bits, scale=self.scale, dtype=self.dtype))


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear map in float32 or wider, whatever its weights are kept in, and whatever autocast says."""
    if isinstance(layer, nn.Identity):
        return x
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, upcast(layer.weight).to(x.dtype), upcast(layer.bias).to(x.dtype))
