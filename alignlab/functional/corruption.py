"""Pictures made less telling: noise, crops, colours, blur and masks, as pure functions of tensors.

Pictures are (..., C, H, W); what is drawn is drawn once a call, so all pictures of a call are changed alike. Where
chance is involved, ``generator`` decides it; None is torch's global one.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a colour (ITU-R BT.601)."""


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
    """
    if not 0 <= step < num_steps:
        raise ValueError(f"0 <= step < {num_steps} needed, got {step = }")
    if noise is None:
        noise = torch.randn(pixels.shape, generator=generator, dtype=pixels.dtype, device=pixels.device)
    betas = torch.linspace(-6, 6, num_steps).sigmoid() * (0.005 - 1e-5) + 1e-5
    kept = (1 - betas).cumprod(0)[step]
    return kept.sqrt().item() * pixels + (1 - kept).sqrt().item() * noise


def moco(pixels: Tensor, *, size: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """Augment pictures as MoCo-v2 does, so strongly that what was asked about may be gone.

    A resized crop of (0.2, 1) of the area; colour jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, its four changes in
    random order; grey with 0.2; a blur of U(0.1, 2) pixels with 0.5; a flip with 0.5.

    Source: Chen et al. 2020, https://arxiv.org/abs/2003.04297, and main_moco.py of its code (--aug-plus).

    Args:
        pixels: (..., 3, H, W) in [0, 1].
        size: Height and width of the result; None: those of ``pixels``.
    """
    height, width = pixels.shape[-2:] if size is None else (size, size)
    pixels = random_crop(pixels, (0.2, 1.0), size=(height, width), generator=generator)
    if _chance(0.8, generator):
        brightness, contrast, saturation = (_uniform(0.6, 1.4, generator) for _ in range(3))
        hue = _uniform(-0.1, 0.1, generator)
        changes = (
            lambda x: adjust_brightness(x, brightness),
            lambda x: adjust_contrast(x, contrast),
            lambda x: adjust_saturation(x, saturation),
            lambda x: adjust_hue(x, hue),
        )
        for index in torch.randperm(len(changes), generator=generator).tolist():
            pixels = changes[index](pixels)
    if _chance(0.2, generator):
        pixels = adjust_saturation(pixels, 0.0)
    if _chance(0.5, generator):
        pixels = gaussian_blur(pixels, _uniform(0.1, 2.0, generator))
    pixels = pixels.clamp(0, 1)  # resampling rounds
    return flip(pixels) if _chance(0.5, generator) else pixels


def flip(pixels: Tensor) -> Tensor:
    """Mirror pictures, left to right."""
    return pixels.flip(-1)


def random_crop(
    pixels: Tensor,
    scale: tuple[float, float],
    *,
    size: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cut a random part out of pictures and bring it to a size.

    The part's area is a share U(scale) of the picture's, its width over its height is log-uniform in (3/4, 4/3); where
    ten draws do not fit in, it is the largest in the middle whose ratio lies there, as in torchvision.

    Args:
        pixels: (..., C, H, W).
        scale: The least and the largest share, 0 < least <= largest <= 1.
        size: Height and width of the result; None: those of ``pixels``.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale (least, largest) with 0 < least <= largest <= 1 needed, got {scale}")
    height, width = pixels.shape[-2:]
    top, left, rows, columns = _part(height, width, scale, generator)
    part = pixels[..., top : top + rows, left : left + columns]
    return _resized(part, (height, width) if size is None else size)


def adjust_brightness(pixels: Tensor, factor: float) -> Tensor:
    """Mix pictures (..., C, H, W) in [0, 1] with black: 0 is black, 1 changes nothing, above 1 it is brighter."""
    return (factor * pixels).clamp(0, 1)


def adjust_contrast(pixels: Tensor, factor: float) -> Tensor:
    """Mix pictures (..., 3, H, W) in [0, 1] with the mean of their grey: 0 is that grey, 1 changes nothing."""
    return _mixed(pixels, _grey(pixels).mean((-2, -1), keepdim=True), factor)


def adjust_saturation(pixels: Tensor, factor: float) -> Tensor:
    """Mix pictures (..., 3, H, W) in [0, 1] with their grey: 0 is grey, 1 changes nothing."""
    return _mixed(pixels, _grey(pixels), factor)


def adjust_hue(pixels: Tensor, turn: float) -> Tensor:
    """Turn the colours of pictures (..., 3, H, W) in [0, 1] by so many rounds of the colour circle."""
    red, green, blue = pixels.unbind(-3)
    value, low = pixels.amax(-3), pixels.amin(-3)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1)
    # Where two colours are the largest, either formula gives the same.
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (hue + 6 * turn) % 6
    # Of the way from `value` down to `low`, how far each colour is: 0 within one sixth of the circle of its own place.
    places = torch.tensor([5.0, 3.0, 1.0], dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
    along = (places + hue.unsqueeze(-3)) % 6
    return value.unsqueeze(-3) - chroma.unsqueeze(-3) * torch.minimum(along, 4 - along).clamp(0, 1)


def adjust_gamma(pixels: Tensor, gamma: float) -> Tensor:
    """Raise pictures in [0, 1] to a power > 0: above 1 the shadows get darker, below 1 lighter."""
    if gamma <= 0:
        raise ValueError(f"gamma > 0 needed, got {gamma = }")
    return pixels**gamma


def gaussian_blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur pictures; beyond their edges the edge goes on.

    Args:
        pixels: (..., C, H, W).
        sigma: Standard deviation of the blur in pixels, > 0; it is cut off at three of them.
    """
    if pixels.ndim < 3 or sigma <= 0:
        raise ValueError(f"pixels (..., C, H, W) and sigma > 0 needed, got {tuple(pixels.shape)} and {sigma = }")
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-((torch.arange(-radius, radius + 1, device=pixels.device) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).to(pixels.dtype)
    planes = pixels.reshape(-1, 1, *pixels.shape[-2:])
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return blurred.reshape(pixels.shape)


def mask_patches(pixels: Tensor, share: float, patch: int, generator: torch.Generator | None = None) -> Tensor:
    """Paint a random share of the patches of pictures with the picture's mean colour.

    Args:
        pixels: (..., C, H, W).
        share: In [0, 1], of the patches, rounded to a whole number of them.
        patch: Height and width of a patch in pixels; those at the right and bottom edges may be smaller.
    """
    if not 0 <= share <= 1 or patch < 1:
        raise ValueError(f"share in [0, 1] and patch >= 1 needed, got {share = }, {patch = }")
    height, width = pixels.shape[-2:]
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    hidden = torch.randperm(rows * columns, generator=generator) < round(share * rows * columns)
    mask = hidden.view(rows, columns).repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]
    return torch.where(mask.to(pixels.device), pixels.mean((-2, -1), keepdim=True), pixels)


def _grey(pixels: Tensor) -> Tensor:
    """(..., 1, H, W) of colours (..., 3, H, W)."""
    return (pixels * pixels.new_tensor(GREY).view(3, 1, 1)).sum(-3, keepdim=True)


def _mixed(pixels: Tensor, other: Tensor, factor: float) -> Tensor:
    return (factor * pixels + (1 - factor) * other).clamp(0, 1)


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*pixels.shape[:-2], *size)


def _part(
    height: int, width: int, scale: tuple[float, float], generator: torch.Generator | None
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part."""
    for _ in range(10):
        area = height * width * _uniform(*scale, generator)
        ratio = math.exp(_uniform(math.log(3 / 4), math.log(4 / 3), generator))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top = torch.randint(height - rows + 1, (), generator=generator)
            left = torch.randint(width - columns + 1, (), generator=generator)
            return int(top), int(left), rows, columns
    rows, columns = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _uniform(low: float, high: float, generator: torch.Generator | None) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _chance(probability: float, generator: torch.Generator | None) -> bool:
    return _uniform(0.0, 1.0, generator) < probability
