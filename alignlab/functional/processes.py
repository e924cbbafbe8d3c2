"""Processes: what all of them hold, with exact gradients; a single process sees what it has."""

import torch
from torch import Tensor, distributed
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
