"""Triangle: how compact, how lossless and how discrete a visual tokenizer is; arithmetic for the three corners."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from alignlab.functional import upcast

LEAST_ERROR = 1e-10
"""A mean squared error below this counts as this, so that equal pictures have 100 dB instead of infinitely many."""


def code_bits(tokens: float, codes: float) -> float:
    """Bits of so many tokens, each one of so many codes.

    The nominal number with the size of the codebook; with its perplexity what an ideal entropy coder needs, which
    knows how often each code comes but not what it stands beside.
    """
    return tokens * math.log2(max(codes, 1.0))


def continuous_bits(tokens: float, dim: int, dtype: torch.dtype) -> float:
    """Bits of so many vectors of width ``dim`` as they are kept."""
    return tokens * dim * dtype.itemsize * 8


def compression(height: int, width: int, bits: float) -> float:
    """How many times as many bits a picture of 3 x 8 bits a pixel has; bits >= 1 are counted."""
    return 24 * height * width / max(bits, 1.0)


def quantization_error(vectors: Tensor, quantized: Tensor) -> Tensor:
    """Squared distance to what stands for a vector, in shares of the vectors' squares: sum |z - q|^2 / sum |z|^2.

    Args:
        vectors: (M, d), M >= 1.
        quantized: (M, d).

    Returns:
        Scalar, >= 0.
    """
    vectors, quantized = upcast(vectors), upcast(quantized)
    return (vectors - quantized).square().sum() / vectors.square().sum()


def feature_cosines(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cosine of each picture's patch features with those to be rebuilt: (P, N, C) twice -> (P,) in [-1, 1]."""
    return cosine_similarity(upcast(prediction), upcast(target), dim=-1).mean(-1)


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, 10 log10(1 / MSE), at most 100.

    The mean over pictures is another number than the ratio of one MSE over all of them, which many papers give.

    Args:
        prediction: (P, 3, H, W) in [0, 1].
        target: (P, 3, H, W) in [0, 1].

    Returns:
        (P,)
    """
    ratios = peak_signal_noise_ratio(
        upcast(prediction), upcast(target), data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    return ratios.clamp(max=-10 * math.log10(LEAST_ERROR))


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each picture, windows of 11 x 11 with a Gaussian of 1.5 (Wang et al. 2004).

    Args:
        prediction: (P, 3, H, W) in [0, 1], H and W at least 6.
        target: (P, 3, H, W) in [0, 1].

    Returns:
        (P,) in [-1, 1]
    """
    # Of one picture torchmetrics gives a scalar.
    found = structural_similarity_index_measure(upcast(prediction), upcast(target), data_range=1.0, reduction="none")
    return found.reshape(len(prediction))
