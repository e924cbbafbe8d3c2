"""selection: which patches of a picture are kept."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.functional import stop_gradient, upcast


@dataclass(frozen=True)
class Kept:
    """Which patches are kept.

    Args:
        mask: (P, N) float, 0 or 1 exactly, at least one 1 a picture; with a straight-through gradient in training.
        log_probs: (P, N, 2) of keeping and of dropping, in nats; None: nothing says how probable it is.
    """

    mask: Tensor
    log_probs: Tensor | None = None


class Selection(nn.Module, ABC):
    """Base of what selects patches, made by ``cls(dim, **settings)``."""

    dim: int
    settings: dict[str, float | str]
    """Keyword arguments that make it again besides ``dim``, plain values of JSON."""

    @abstractmethod
    def decide(self, features: Tensor, noise: Tensor | None = None) -> Kept:
        """Select as in evaluation, whatever the mode; arguments are those of ``forward``."""

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Kept:
        """Select.

        Args:
            features: (P, N, C).
            noise: (P, N, 2) Gumbel noise to use where some would be drawn; None: it is drawn.
        """
        return self.decide(features, noise)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


class RandomSelection(Selection):
    """The placebo: a random share of the patches, the same for the same features, without weights.

    Patches are kept by cos(w_n t + u_n), the highest first, with t the sum of all the picture's features over the root
    of their number, and w_n in [100, 1000] and u_n drawn once for all. So pictures that differ keep other patches, and
    rounding changes none but by rare chance.

    Args:
        dim: Width of the patch features.
        ratio: Share that is kept, in (0, 1]; rounded, at least one.
    """

    def __init__(self, dim: int, *, ratio: float = 1 / 3) -> None:
        super().__init__()
        check_ratio("RandomSelection", ratio)
        self.dim, self.ratio, self.settings = dim, ratio, {"ratio": ratio}

    def decide(self, features: Tensor, noise: Tensor | None = None) -> Kept:
        features = upcast(features.detach())
        draws = torch.rand(2, features.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        speed, shift = draws.to(features.device)
        place = features.double().sum((1, 2)) / (features.shape[1] * self.dim) ** 0.5  # (P,)
        score = torch.cos((100 + 900 * speed) * place[:, None] + 2 * torch.pi * shift)
        return Kept(stop_gradient(top(score, self.ratio).to(features.dtype)))


class AllPatches(Selection):
    """Every patch is kept."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.settings = dim, {}

    def decide(self, features: Tensor, noise: Tensor | None = None) -> Kept:
        return Kept(upcast(features.detach()).new_ones(features.shape[:2]))


def top(scores: Tensor, ratio: float) -> Tensor:
    """(P, N) with 1 at the highest ``round(ratio N)`` scores of each row, at least one; the first of equal ones."""
    count = max(1, round(ratio * scores.shape[1]))
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores).scatter(1, order[:, :count], 1.0)


def check_ratio(who: str, ratio: float) -> None:
    """Raise InputError for a share that is none."""
    if not 0 < ratio <= 1:
        raise InputError(f"{who}.ratio is a share of the patches above 0 and up to 1, got {ratio}")
