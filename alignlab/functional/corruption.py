"""Pictures spoiled on purpose, so that what is said of them gets worse."""

import torch
from torch import Tensor


def diffusion_noise(
    pixels: Tensor,
    step: int,
    *,
    num_steps: int = 1000,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mix pictures with noise as the forward process of a diffusion model does after so many steps.

        sqrt(abar_t) x + sqrt(1 - abar_t) eps,   abar_t = product over k <= t of 1 - beta_k
        beta_k = sigmoid(-6 + 12 k / (num_steps - 1)) * (0.005 - 0.00001) + 0.00001

    Source: SeVa (data/step2/generate_with_aug.py), as in VCD (Leng et al. 2023, arXiv 2311.16922).

    Args:
        pixels: Of any shape, normalised as the vision tower takes them.
        step: The index t, 0 <= step < num_steps; of 1000, the noise's factor is 0.51 at 500 and 0.96 at 999.
        num_steps: Length of the schedule.
        noise: Of the same shape, standard normal; None: drawn.
        generator: What draws it; None: torch's global one.
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"0 <= step < {num_steps} needed, got {step = }")
    if noise is None:
        noise = torch.randn(pixels.shape, generator=generator, dtype=pixels.dtype, device=pixels.device)
    betas = torch.linspace(-6, 6, num_steps).sigmoid() * (0.005 - 1e-5) + 1e-5
    kept = (1 - betas).cumprod(0)[step]
    return kept.sqrt().item() * pixels + (1 - kept).sqrt().item() * noise
