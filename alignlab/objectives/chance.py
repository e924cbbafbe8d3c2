"""chance: what is drawn by the example and the step, whatever the seed: the same in any batch and process."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignlab.data.identity import seed_of


def gumbel_noise(ids: Sequence[str], counts: Sequence[int], shape: tuple[int, ...], step: int) -> Tensor:
    """Gumbel noise for the pictures of some examples, (P, *shape), float32 on the CPU.

    Args:
        counts: How many pictures each example has.
    """
    drawn = []
    for id, count in zip(ids, counts, strict=True):
        generator = torch.Generator().manual_seed(seed_of(step, id))
        drawn.append(-torch.empty(count, *shape).exponential_(generator=generator).log())
    return torch.cat(drawn)


def dropped(ids: Sequence[str], share: float, step: int) -> Tensor:
    """Whether each example's text is left out, (B,) bool; the same ones at a step, whatever the batch."""
    draws = [torch.rand((), generator=torch.Generator().manual_seed(seed_of(step, id))) for id in ids]
    return torch.stack(draws) < share
