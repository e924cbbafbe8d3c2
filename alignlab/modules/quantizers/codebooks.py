"""Codebooks: quantisers with a table of codes, which follows its inputs or is trained."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

from alignlab.errors import InputError
from alignlab.functional import normalize, stop_gradient, total, upcast
from alignlab.functional.processes import gather, several
from alignlab.functional.quantization import (
    count_ema,
    k_means,
    nearest_codes,
    norm_ema,
    perplexity,
    straight_through,
)
from alignlab.modules.quantizers.base import Quantized, Quantizer, recomputing

DEAD = 0.03
"""A code is reported as dead below this share of the mean count, where nothing is revived and no share is told."""
SAMPLE = 1024
"""Rows kept for revival, at most; as many codes are revived an update."""
LOWEST = torch.iinfo(torch.long).min


class Codebook(Quantizer):
    """Base of quantisers with a table of codes, of which each row takes the nearest.

    Training forward passes count how often each code is taken, and ``update`` folds the counts of all processes into
    moving averages. Nothing is counted in evaluation, nor when a forward pass is repeated for its gradients. Rows that
    are not finite get some code, and leave no trace in the codebook.

    Args:
        cosine: Rows and codes have length 1.
        decay: Of the moving average of counts, in [0, 1), an update.
    """

    codebook: Tensor
    counts: Tensor
    usage: Tensor
    updates: Tensor
    fresh: float = 0.0
    """What the moving average of counts begins with."""

    def __init__(self, dim: int, num_codes: int, *, cosine: bool, decay: float) -> None:
        super().__init__(dim, num_codes)
        self.check(0 <= decay < 1, f"decay in [0, 1), got {decay}")
        self.cosine, self.decay, self.dead_below = cosine, decay, DEAD
        self.register_buffer("counts", torch.zeros(num_codes, dtype=torch.long))
        self.register_buffer("usage", torch.full((num_codes,), self.fresh))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def entries(self) -> Tensor:
        """The codes (K, d), in float32 or wider."""
        return normalize(self.codebook) if self.cosine else upcast(self.codebook)

    def lookup(self, codes: Tensor) -> Tensor:
        chosen = self.codebook[codes]
        return normalize(chosen) if self.cosine else upcast(chosen)

    def quantize(self, x: Tensor) -> Quantized:
        rows = normalize(x) if self.cosine else x
        codes = nearest_codes(rows, self.entries().detach())
        if self.training and not recomputing():
            self.observe(rows.detach().to(self.codebook.dtype), codes)
        chosen = self.lookup(codes).to(rows.dtype)
        return Quantized(straight_through(rows, chosen), codes, self.losses(rows, chosen))

    @abstractmethod
    def losses(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """The losses (M,) of rows (M, d), whose codes are (M, d)."""

    @torch.no_grad()
    def observe(self, rows: Tensor, codes: Tensor) -> None:
        """Gather statistics of rows (M, d) with codes (M,)."""
        self.counts.index_add_(0, codes, rows.isfinite().all(-1).long())

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """K-means, from rows drawn at random without replacement; where they are too few, other codes stay as drawn.

        Raises:
            InputError: No process has a row that is finite and not zero.
        """
        rows = upcast(gather(x.detach())[0]).to(self.codebook.dtype)
        rows = rows[rows.isfinite().all(-1) & rows.any(-1)]
        if not len(rows):
            raise InputError(f"{type(self).__name__}.start needs rows that are finite and not zero, got none")
        rows = normalize(rows) if self.cosine else rows
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: self.num_codes]
        means = self.entries().clone()
        means[: len(drawn)] = rows[drawn.to(rows.device)]
        means, _ = k_means(rows, means, cosine=self.cosine)
        if several():
            distributed.broadcast(means, 0)  # sums on GPUs round in another order every time
        self.place(slice(None), means, self.fresh)
        self.updates.zero_()
        self.clear()  # what was gathered is of other codes
        self.started.fill_(True)

    @torch.no_grad()
    def place(self, index: Tensor | slice, codes: Tensor, usage: Tensor | float) -> None:
        """Put codes where they are told, used as often as said."""
        self.codebook[index], self.usage[index] = codes, usage

    @torch.no_grad()
    def update(self) -> None:
        counts = total(self.counts)
        if counts.any():
            self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
            self.move(counts)
            self.updates += 1
        self.clear()

    def clear(self) -> None:
        """Forget what was gathered since the last update."""
        self.counts.zero_()

    def move(self, counts: Tensor) -> None:
        """Move the codes after an update's counts (K,)."""

    def dead(self) -> Tensor:
        """(K,) bool, codes taken less often than a share of the mean."""
        return self.usage < self.dead_below * self.usage.mean()

    def report(self) -> dict[str, Tensor]:
        dead = self.dead().sum()
        used = 1 - dead / self.num_codes
        return {"dead": dead.float(), "usage": used, "perplexity": perplexity(self.usage).float()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and convert, but never to half precision, in which a step of 1 % is rounded away."""

        def wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrow = moved.is_floating_point() and moved.dtype.itemsize < 4
            return tensor.to(moved.device) if narrow else moved

        return super()._apply(wide, recurse)


class Following(Codebook):
    """Base of codebooks that follow moving averages of their rows, without gradient.

    A code is dead when its moving average of counts is below a share of the mean, so that it does not depend on the
    batch's size. Dead codes are put on rows of the last update, drawn at random and the same in all processes, and are
    counted as used as often as the mean from then on, so that they have time to be found.

    Which rows are kept for that is decided by a hash of their values, with keys that change every update: so it does
    not matter how rows were spread over processes and micro-batches.

    Args:
        commitment: Weight of the squared distance of a row to its code, the mean over d.
        revive_below: Share of the mean count below which a code is dead; 0: none ever is.
        revive_after: Updates before the first revival.
    """

    sums: Tensor
    sample: Tensor
    priority: Tensor
    keys: Tensor

    def __init__(
        self, dim: int, num_codes: int, *, cosine: bool, decay: float, commitment: float, revive_below: float,
        revive_after: int,
    ) -> None:  # fmt: skip
        super().__init__(dim, num_codes, cosine=cosine, decay=decay)
        self.check(commitment >= 0, f"commitment >= 0, got {commitment}")
        self.check(0 <= revive_below < 1, f"revive_below in [0, 1), as a share of the mean count, got {revive_below}")
        self.check(revive_after >= 0, f"revive_after >= 0 updates, got {revive_after}")
        self.commitment, self.revive_below, self.revive_after = commitment, revive_below, revive_after
        self.dead_below = revive_below or DEAD
        codes = torch.randn(num_codes, dim)
        kept = min(SAMPLE, num_codes) if revive_below > 0 else 0
        self.register_buffer("codebook", normalize(codes) if cosine else codes)
        self.register_buffer("sums", torch.zeros(num_codes, dim))
        self.register_buffer("sample", torch.zeros(kept, dim))
        self.register_buffer("priority", torch.full((kept,), LOWEST))
        self.register_buffer("keys", _keys(0, dim))

    def entries(self) -> Tensor:
        return upcast(self.codebook)  # of length 1 already, where cosine

    def lookup(self, codes: Tensor) -> Tensor:
        return upcast(self.codebook)[codes]

    def losses(self, rows: Tensor, chosen: Tensor) -> Tensor:
        return self.commitment * (rows - stop_gradient(chosen)).square().mean(-1)

    @torch.no_grad()
    def observe(self, rows: Tensor, codes: Tensor) -> None:
        super().observe(rows, codes)
        finite = rows.isfinite().all(-1)
        rows = torch.where(finite[:, None], rows, 0)
        self.sums.index_add_(0, codes, rows)
        if len(self.sample):
            bits = rows.view(torch.int32 if rows.dtype == torch.float32 else torch.long)
            priority = torch.where(rows.any(-1), (bits * self.keys).sum(-1), LOWEST)
            priority, kept = torch.cat([self.priority, priority]).topk(len(self.sample))
            self.priority.copy_(priority)
            self.sample.copy_(torch.cat([self.sample, rows])[kept])

    def clear(self) -> None:
        super().clear()
        self.sums.zero_()
        self.sample.zero_()
        self.priority.fill_(LOWEST)
        self.keys.copy_(_keys(int(self.updates), self.dim))

    def move(self, counts: Tensor) -> None:
        moved = self.moved(counts, total(self.sums))
        self.codebook.copy_(torch.where(moved.isfinite().all(-1, keepdim=True), moved, self.codebook))
        if self.revive_below > 0 and self.updates >= self.revive_after:
            self.revive()

    @abstractmethod
    def moved(self, counts: Tensor, sums: Tensor) -> Tensor:
        """The codes (K, d) after an update's counts (K,) and sums of rows (K, d)."""

    def revive(self) -> None:
        dead = self.dead().nonzero()[:, 0]
        if not len(dead):
            return
        priority, order = gather(self.priority)[0].sort(descending=True)
        rows = gather(self.sample)[0][order[priority > LOWEST][: len(self.sample)]]
        dead = dead[: len(rows)]
        self.place(dead, rows[: len(dead)], self.usage.mean())


class VectorQuantizer(Following):
    """Codes of length 1 that turn towards the mean direction of their rows, once an update.

        c <- normalise(decay c + (1 - decay) normalise(mean of its rows))
        loss of a row = commitment * mean over d of (x / |x| - sg(c))^2

    Source: BEiT v2, Peng et al. 2022, https://arxiv.org/abs/2208.06366, norm_ema_quantizer.py, whose names LaVIT's
    tokenizer has (Jin et al. 2023, https://arxiv.org/abs/2309.04669). Departures: an update an optimizer step, not a
    micro-batch, so that accumulation changes nothing; counts are not taken in evaluation; k-means runs on the rows of
    all processes; dead codes are revived.

    Args:
        num_codes: K.
        decay: Of codes and of counts, an update, in [0, 1).
        commitment: Weight of the loss.
        revive_below: Share of the mean count below which a code is dead; 0: none ever is.
        revive_after: Updates before the first revival.
    """

    def __init__(
        self, dim: int, *, num_codes: int = 16384, decay: float = 0.99, commitment: float = 1.0,
        revive_below: float = 0.03, revive_after: int = 100,
    ) -> None:  # fmt: skip
        super().__init__(
            dim, num_codes, cosine=True, decay=decay, commitment=commitment, revive_below=revive_below,
            revive_after=revive_after,
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_codes": self.num_codes, "decay": self.decay, "commitment": self.commitment,
                "revive_below": self.revive_below, "revive_after": self.revive_after}  # fmt: skip

    def moved(self, counts: Tensor, sums: Tensor) -> Tensor:
        return norm_ema(self.codebook, counts, sums, decay=self.decay)


class CountEMA(Following):
    """Codes at the mean of their rows, by moving averages of counts and sums: often used ones move faster.

        N <- decay N + (1 - decay) n,   E <- decay E + (1 - decay) S,   c = E / N, with N smoothed
        loss of a row = commitment * mean over d of (x - sg(c))^2

    Source: VQ-VAE, van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, appendix A.1; the arithmetic is
    lucidrains/vector-quantize-pytorch's, with its departures as those of ``VectorQuantizer``.

    Args:
        num_codes: K.
        decay: In [0, 1), an update.
        commitment: Weight of the loss.
        cosine: Rows and codes have length 1.
        revive_below: Share of the mean count below which a code is dead; 0: none ever is.
        revive_after: Updates before the first revival.
    """

    totals: Tensor
    fresh = 1.0  # so that E / N is the code from the beginning

    def __init__(
        self, dim: int, *, num_codes: int = 16384, decay: float = 0.99, commitment: float = 1.0, cosine: bool = True,
        revive_below: float = 0.03, revive_after: int = 100,
    ) -> None:  # fmt: skip
        super().__init__(
            dim, num_codes, cosine=cosine, decay=decay, commitment=commitment, revive_below=revive_below,
            revive_after=revive_after,
        )  # fmt: skip
        self.register_buffer("totals", self.codebook.clone())

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_codes": self.num_codes, "decay": self.decay, "commitment": self.commitment, "cosine": self.cosine,
                "revive_below": self.revive_below, "revive_after": self.revive_after}  # fmt: skip

    def moved(self, counts: Tensor, sums: Tensor) -> Tensor:
        self.totals.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        codes = count_ema(self.usage, self.totals, cosine=self.cosine)
        # A code that was never taken again fades to nothing, which has no direction.
        return torch.where(codes.any(-1, keepdim=True), codes, self.codebook)

    @torch.no_grad()
    def place(self, index: Tensor | slice, codes: Tensor, usage: Tensor | float) -> None:
        super().place(index, codes, usage)
        self.totals[index] = codes * self.usage[index][:, None]


class GradientCodebook(Codebook):
    """Codes that are weights, trained by the loss.

        loss of a row = mean over d of (sg(x) - c)^2 + commitment * mean over d of (x - sg(c))^2

    Source: VQ-VAE, van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, Eq. 3. Nothing is revived, as the
    optimizer has a memory of each code. Weight decay would shrink unused codes; without ``cosine`` it has to be 0.

    Args:
        num_codes: K.
        commitment: Weight of the second term.
        cosine: Rows and codes are scaled to length 1.
        decay: Of the moving average of counts that ``report`` reads, in [0, 1).
    """

    def __init__(
        self, dim: int, *, num_codes: int = 16384, commitment: float = 0.25, cosine: bool = True, decay: float = 0.99
    ) -> None:
        super().__init__(dim, num_codes, cosine=cosine, decay=decay)
        self.check(commitment >= 0, f"commitment >= 0, got {commitment}")
        self.commitment = commitment
        codes = torch.randn(num_codes, dim)
        self.codebook = nn.Parameter(normalize(codes) if cosine else codes / num_codes)

    @property
    def settings(self) -> dict[str, Any]:
        return {"num_codes": self.num_codes, "commitment": self.commitment, "cosine": self.cosine, "decay": self.decay}

    def losses(self, rows: Tensor, chosen: Tensor) -> Tensor:
        codebook = (stop_gradient(rows) - chosen).square().mean(-1)
        return codebook + self.commitment * (rows - stop_gradient(chosen)).square().mean(-1)


def _keys(seed: int, dim: int) -> Tensor:
    """Odd random factors (d,) long, by which values are hashed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(LOWEST, -(LOWEST + 1), (dim,), generator=generator) | 1
