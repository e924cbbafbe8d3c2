"""Processes: what all of them hold, with exact gradients; a single process sees what it has."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable


def several() -> bool:
    """Whether training runs in more than one process."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather(rows: Tensor) -> tuple[Tensor, int]:
    """Join the rows of all processes in the order of their ranks.

    In the backward pass a row's gradient is the sum of what the losses of all processes ask of it, so the gradients of
    the processes together are those of the sum of their losses. Every process has to call it, on rows that need a
    gradient in all of them or in none, as the backward pass waits for all.

    Args:
        rows: (B, ...); B may differ between processes.

    Returns:
        (N, ...) the rows of all processes, and the place where one's own begin.
    """
    if not several():
        return rows, 0
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    sizes = [int(count) for count in counts]
    start = sum(sizes[: distributed.get_rank()])
    return _Gather.apply(rows, sizes, start), start


def total(value: Tensor | float, *, device: torch.device | None = None) -> Tensor:
    """Sum a number over all processes; without gradient. Every process has to call it."""
    value = torch.as_tensor(value, device=device).detach().clone()
    if several():
        distributed.all_reduce(value)
    return value


def pieces(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of tensors, of which some may be cut over processes; the same memory."""
    if not several():
        return list(tensors)
    from torch.distributed.tensor import DTensor  # slow to import, and there where a tensor is cut

    return [each.to_local() if isinstance(each, DTensor) else each for each in tensors]


def in_pieces(module: nn.Module) -> bool:
    """Whether no process has all weights of a module."""
    weights = list(module.parameters())
    return any(piece is not each for piece, each in zip(pieces(weights), weights, strict=True))


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together; every process has to call it where some are cut."""
    own = pieces(tensors)
    cut = [piece for piece, each in zip(own, tensors, strict=True) if piece is not each]
    if not cut:
        return torch.nn.utils.get_total_norm(tensors)
    whole = [piece for piece, each in zip(own, tensors, strict=True) if piece is each]
    squares = total(torch.nn.utils.get_total_norm(cut).square())
    return (squares + torch.nn.utils.get_total_norm(whole).to(squares).square()).sqrt()


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums over processes; torch's own wants as many rows of each."""

    @staticmethod
    def forward(context, rows: Tensor, sizes: list[int], start: int) -> Tensor:
        context.own = slice(start, start + len(rows))
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        received = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(received, padded)
        return torch.cat([each[:size] for each, size in zip(received, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(context, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient[context.own], None, None
