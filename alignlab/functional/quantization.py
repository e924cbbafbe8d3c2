"""Quantisation: codes of vectors, how codebooks follow them, and the losses of a visual tokenizer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from alignlab.functional.constants import stop_gradient
from alignlab.functional.contrastive import normalize
from alignlab.functional.likelihood import upcast

BLOCK = 64
"""Codes that one maximum is taken over; a maximum is several times cheaper than its place."""


@torch.no_grad()
def nearest_codes(x: Tensor, codebook: Tensor) -> Tensor:
    """The code at the smallest Euclidean distance of each row; of equal ones the first.

        argmin_k |x - c_k|^2 = argmax_k <x, c_k> - |c_k|^2 / 2

    In float32 or wider whatever autocast and the precision of matrix products say, as bfloat16 gives 0.7 % of rows
    another code of 16384. No more than a chunk of the distances exists at a time. A row that is not finite gets some
    code.

    Args:
        x: (M, d).
        codebook: (K, d), of any length.

    Returns:
        (M,) long in [0, K).
    """
    dtype = torch.promote_types(upcast(x).dtype, codebook.dtype)
    x, codebook = x.to(dtype), codebook.to(dtype)
    num_codes = len(codebook)
    blocks = -(-num_codes // BLOCK)
    codes = codebook.new_zeros(blocks * BLOCK, codebook.shape[1])
    codes[:num_codes] = codebook
    bias = codebook.new_full((len(codes),), -torch.inf)  # so that what fills the last block is never the nearest
    bias[:num_codes] = codebook.square().sum(-1) / -2
    found = torch.empty(len(x), dtype=torch.long, device=x.device)
    rows = max(1, (2**20 if x.device.type == "cpu" else 2**25) // len(codes))  # 4 MiB, about what a cache holds
    scores = codes.new_empty(min(rows, len(x)), len(codes))
    with torch.autocast(x.device.type, enabled=False), _exact_products():
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            near = torch.mm(part, codes.T, out=scores[: len(part)]).add_(bias).view(-1, blocks, BLOCK)
            block = near.amax(-1).argmax(-1)
            inside = near[torch.arange(len(part), device=x.device), block]  # (rows, BLOCK)
            found[start : start + rows] = block * BLOCK + inside.argmax(-1)
    return found.clamp_(max=num_codes - 1)  # a row that is not finite may have ended in the filling


@contextmanager
def _exact_products() -> Iterator[None]:
    """Matrix products of float32 in float32, whatever the user chose for the rest of the model."""
    if torch.__version__ < "2.9":  # a TorchVersion, which compares numbers; later ones raise where both ways are used
        chosen = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(chosen)
        return
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    each = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, each, strict=True):
            backend.fp32_precision = precision


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """The value, exactly, with the gradient of x.

    ``x + stop_gradient(value - x)`` in other words, which would round: what is decoded in training is bit for bit what
    is decoded of codes.
    """
    return stop_gradient(value) + (x - stop_gradient(x))


def rotation_trick(x: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient turned and scaled by what takes x to it (Fifty et al. 2024, arXiv 2410.06424).

        |v| / |x| (x - 2 w <w, x> + 2 q <u, x>),   u = x / |x|, q = v / |v|, w = (u + q) / |u + q|, all held

    Args:
        x: (M, d).
        value: (M, d); opposite to x, or either zero: the result is not the value, but finite.
    """
    length, u, q = (
        stop_gradient(each) for each in (_length(value) / _length(x).clamp(min=1e-6), _unit(x), _unit(value))
    )
    w = _unit(u + q)
    return length * (x - 2 * w * (w * x).sum(-1, keepdim=True) + 2 * q * (u * x).sum(-1, keepdim=True))


def code_sums(x: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many rows each code has, (K,) long, and their sum, (K, d)."""
    counts = torch.zeros(num_codes, dtype=torch.long, device=x.device)
    sums = x.new_zeros(num_codes, x.shape[1])
    return counts.index_add_(0, indices, torch.ones_like(indices)), sums.index_add_(0, indices, x)


def norm_ema_update(codebook: Tensor, x: Tensor, indices: Tensor, *, decay: float = 0.99) -> Tensor:
    """Turn each code that has rows towards their mean direction.

        c <- normalise(decay c + (1 - decay) normalise(mean of its rows)),   unused codes stay

    One row turns a code as far as a thousand do. Source: BEiT v2, Peng et al. 2022, https://arxiv.org/abs/2208.06366,
    norm_ema_quantizer.py.

    Args:
        codebook: (K, d), unit rows.
        x: (M, d), unit rows.
        indices: (M,) long, the code of each row.

    Returns:
        (K, d), unit rows.
    """
    return norm_ema(codebook, *code_sums(upcast(x), indices, len(codebook)), decay=decay)


def norm_ema(codebook: Tensor, counts: Tensor, sums: Tensor, *, decay: float) -> Tensor:
    """``norm_ema_update`` of the counts (K,) and sums (K, d) of rows."""
    moved = normalize(decay * codebook + (1 - decay) * normalize(sums).to(codebook.dtype))
    return torch.where((counts > 0)[:, None], moved, codebook)


def count_ema(usage: Tensor, totals: Tensor, *, cosine: bool, epsilon: float = 1e-5) -> Tensor:
    """The codes (K, d) of a codebook that keeps moving averages of counts and of sums.

        N_k = (n_k + epsilon) / (sum n + K epsilon) * sum n,   c_k = E_k / N_k,   of length 1 where cosine

    Source: VQ-VAE, van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, appendix A.1.

    Args:
        usage: (K,) n, moving average of each code's rows.
        totals: (K, d) E, moving average of their sums.
    """
    smoothed = (usage + epsilon) / (usage.sum() + len(usage) * epsilon) * usage.sum()
    codes = totals / smoothed[:, None]
    return normalize(codes) if cosine else codes


def k_means(x: Tensor, means: Tensor, *, cosine: bool = True, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Move means to where the rows are (Lloyd's algorithm); a mean without rows stays.

    Args:
        x: (M, d); unit rows where cosine.
        means: (K, d), where to begin.
        cosine: Means are scaled to length 1.

    Returns:
        (K, d) means, and (K,) long how many rows each had before it moved last.
    """
    counts = torch.zeros(len(means), dtype=torch.long, device=x.device)
    for _ in range(iterations):
        counts, sums = code_sums(x, nearest_codes(x, means), len(means))
        moved = sums / counts.clamp(min=1)[:, None]
        means = torch.where((counts > 0)[:, None], normalize(moved) if cosine else moved, means)
    return means, counts


def fsq(z: Tensor, levels: Sequence[int], *, epsilon: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Round each channel to one of a few levels (Mentzer et al. 2023, https://arxiv.org/abs/2309.15505).

        t = tanh(z + atanh(o / h)) h - o,   h = (L - 1)(1 + epsilon) / 2,   o = 1/2 for even L, else 0

    Args:
        z: (..., n), any reals.
        levels: n numbers L >= 3.

    Returns:
        (..., n) values round(t) / floor(L / 2) in [-1, 1], with the gradient of t, and (...) long codes, the first
        channel's level counting least.
    """
    size = torch.tensor(levels, dtype=z.dtype, device=z.device)
    half, offset = (size - 1) * (1 + epsilon) / 2, (1 - size % 2) / 2
    t = torch.tanh(z + torch.atanh(offset / half)) * half - offset
    digits = torch.nan_to_num(t.detach().round()).long() + _integers(levels, z.device) // 2
    codes = (digits * _strides(levels, z.device)).sum(-1)
    return straight_through(t, t.round()) / (size // 2), codes


def fsq_values(codes: Tensor, levels: Sequence[int], *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values (..., n) of codes (...) long, as ``fsq`` gives them."""
    size = _integers(levels, codes.device)
    digits = codes[..., None] // _strides(levels, codes.device) % size
    return (digits - size // 2).to(dtype) / (size // 2).to(dtype)


def lfq_values(codes: Tensor, bits: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values (..., bits), each scale or -scale, of codes (...) long; the first channel is the highest bit."""
    places = torch.arange(bits - 1, -1, -1, device=codes.device)
    return ((codes[..., None] >> places & 1) * 2 - 1).to(dtype) * scale


def lfq_codes(x: Tensor) -> Tensor:
    """The signs of the channels (..., bits) as codes (...) long; zero counts as negative."""
    places = torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)
    return ((x > 0).long() << places).sum(-1)


def lfq_entropy(x: Tensor, *, scale: float, inverse_temperature: float) -> tuple[Tensor, Tensor]:
    """How undecided each row is between all codes, and the sum of the rows' probabilities of codes.

        p(c) = softmax_c(2 inverse_temperature <x, c>),   c in {-scale, scale}^bits

    Codes are all patterns of signs, so p is a product over channels: a row's entropy is the sum of its channels', and
    the sum of p over rows one product of two matrices with 2^(bits/2) columns, where M x 2^bits numbers would be needed
    to write p down. Source: Yu et al. 2023, https://arxiv.org/abs/2310.05737, section 3.1.

    Args:
        x: (M, bits).

    Returns:
        (M,) entropies in nats, and (2^bits,) summed probabilities in the order of the codes.
    """
    slope = 2 * inverse_temperature * scale
    odds = (2 * slope * x).abs()  # log-odds of the likelier sign
    entropy = (torch.nn.functional.softplus(-odds) + odds * torch.sigmoid(-odds)).sum(-1)
    halves = []
    for part in x.tensor_split([x.shape[-1] // 2], dim=-1):
        bits = part.shape[-1]
        patterns = lfq_values(torch.arange(2**bits, device=x.device), bits, dtype=x.dtype)
        halves.append((slope * part @ patterns.T).softmax(-1))
    return entropy, (halves[0].T @ halves[1]).flatten()


def entropy(p: Tensor) -> Tensor:
    """-sum p log p of probabilities (K,), in nats; zeros contribute nothing, and get a finite gradient."""
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the shares of counts (K,) >= 0: how many codes are in use, in effect; 1 without counts."""
    counts = upcast(counts.detach() if counts.is_floating_point() else counts.double())
    return entropy(counts / counts.sum().clamp(min=torch.finfo(counts.dtype).tiny)).exp()


def code_usage(codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """The share of the codes that occur in codes (M,) long, and the perplexity of how often they do."""
    counts = torch.bincount(codes, minlength=num_codes)
    return (counts > 0).double().mean(), perplexity(counts)


def keep_ratio_loss(
    keep: Tensor,
    *,
    ratio: float = 1 / 3,
    weight: float = 2.0,
    reduction: Literal["per_image", "batch_mean"] = "per_image",
) -> Tensor:
    """How far the share of kept patches is from what it should be.

        weight * mean over pictures of (ratio - mean over patches of keep)^2

    With "batch_mean" the mean over patches is of all pictures, which may then trade patches with each other. Sources:
    LaVIT, Jin et al. 2023, https://arxiv.org/abs/2309.04669, Eq. 4; DynamicViT, losses.py.

    Args:
        keep: (P, N) in {0, 1}, with the selector's gradient.
        ratio: In [0, 1].

    Returns:
        Scalar >= 0.
    """
    keep = upcast(keep)
    if not keep.numel():
        return keep.sum()
    shares = keep.mean(-1) if reduction == "per_image" else keep.mean()
    return weight * (shares - ratio).square().mean()


def cosine_reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """mean (1 - cosine) of rows (..., C) in [0, 2]; a row shorter than 1e-8 has cosine 0, and no gradient.

    Source: VQ-KD of BEiT v2, https://arxiv.org/abs/2208.06366, Eq. 1, whose code gives NaN for a row of zeros.
    """
    cosines = (_unit(upcast(prediction)) * _unit(upcast(target))).sum(-1)
    return (1 - cosines).mean() if cosines.numel() else cosines.sum()


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    length = _length(x)
    return x * (length > 1e-8) / length.clamp(min=1e-8)


def _integers(levels: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(levels, dtype=torch.long, device=device)


def _strides(levels: Sequence[int], device: torch.device) -> Tensor:
    sizes = _integers([1, *levels[:-1]], device)
    return sizes.cumprod(0)
