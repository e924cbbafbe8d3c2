"""dropping: which texts a training step leaves out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.data.identity import seed_of


def dropped(ids: Sequence[str], share: float, step: int) -> Tensor:
    """Whether each example's text is left out, (B,) bool; the same ones at a step, whatever the batch."""
    draws = [torch.rand((), generator=torch.Generator().manual_seed(seed_of(step, id))) for id in ids]
    return torch.stack(draws) < share
