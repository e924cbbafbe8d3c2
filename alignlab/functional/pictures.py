"""Pictures made less telling."""

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur pictures; beyond their edges the edge goes on.

    Args:
        pixels: (..., C, H, W).
        sigma: Standard deviation of the blur in pixels, > 0; it is cut off at three of them.
    """
    if pixels.ndim < 4 or sigma <= 0:
        raise ValueError(f"pixels (..., C, H, W) and sigma > 0 needed, got {tuple(pixels.shape)} and {sigma = }")
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-((torch.arange(-radius, radius + 1, device=pixels.device) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).to(pixels.dtype)
    planes = pixels.reshape(-1, 1, *pixels.shape[-2:])
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return blurred.reshape(pixels.shape)
