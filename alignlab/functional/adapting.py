"""Low-rank branches beside linear layers."""

import torch
from torch import Tensor


def partial_lora(hidden: Tensor, mask: Tensor, lora_a: Tensor, lora_b: Tensor, *, scaling: float) -> Tensor:
    """The low-rank branch of Partial LoRA, which some tokens alone take.

        scaling * B A x at the tokens of the mask, 0 at the others

    Source: PLoRA of InternLM-XComposer2, Dong et al. 2024, https://arxiv.org/abs/2401.16420 (build_mlp.py). What is not
    chosen is not computed, so it may hold anything; where nothing is chosen, gradients of the weights are zeros, where
    the official class runs row 0 times 0, which is NaN where that row is infinite.

    Args:
        hidden: (B, T, in).
        mask: (B, T) bool.
        lora_a: (r, in).
        lora_b: (out, r).
        scaling: alpha / r.

    Returns:
        (B, T, out).
    """
    rank, width = lora_a.shape
    if mask.dtype != torch.bool or hidden.shape != (*mask.shape, width) or lora_b.shape[1:] != (rank,):
        shapes = [tuple(each.shape) for each in (hidden, mask, lora_a, lora_b)]
        raise ValueError(
            "hidden (B, T, in), mask (B, T) bool, lora_a (r, in) and lora_b (out, r) needed, got shapes "
            f"{', '.join(map(str, shapes))} and a mask of {mask.dtype}"
        )
    chosen = scaling * (hidden[mask] @ lora_a.T @ lora_b.T)  # (M, out)
    return chosen.new_zeros(*mask.shape, len(lora_b)).masked_scatter(mask[..., None], chosen)
