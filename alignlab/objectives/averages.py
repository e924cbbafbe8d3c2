"""Averages: weighted means of losses and reports, kept on the device until they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from alignlab.functional import upcast

if TYPE_CHECKING:
    from alignlab.objectives.base import Loss


class Averages:
    """Collects without waiting for the device: one small kernel a batch, one transfer at ``flush``."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, ...], list[Tensor]] = {}
        """By the names reported together: a row (weight, values in the names' order) a batch."""
        self.latest: dict[str, Tensor | float] = {}

    def add(self, loss: Loss) -> Tensor:
        """Keep a loss and its report, detached, with the loss's weight; gives that weight, in the loss's type."""
        mean = upcast(loss.mean.detach())  # and with it the row, since stacking promotes
        weight = torch.as_tensor(loss.weight, dtype=mean.dtype, device=mean.device)
        report = [_on(mean.device, value) for value in loss.report.values()]
        if loss.report_weight is None:
            self.rows.setdefault(("loss", *loss.report), []).append(torch.stack([weight, mean, *report]).detach())
        else:
            over = torch.as_tensor(loss.report_weight, dtype=mean.dtype, device=mean.device)
            self.rows.setdefault(("loss",), []).append(torch.stack([weight, mean]).detach())
            self.rows.setdefault(tuple(loss.report), []).append(torch.stack([over, *report]).detach())
        return weight.detach()

    def flush(self, strategy: Strategy) -> dict[str, float]:
        """Weighted means over all rows of all processes, and the latest of ``latest``; forgets them."""
        names = sorted({name for together in self.rows for name in together})
        means = {}
        if names:
            device = next(iter(self.rows.values()))[0].device
            totals = torch.zeros(2, len(names), dtype=torch.float64, device=device)  # of weighted values, of weights
            for together, rows in self.rows.items():
                table = torch.stack(rows).double()
                columns = [names.index(name) for name in together]
                totals[0, columns] += table[:, 0] @ table[:, 1:]
                totals[1, columns] += table[:, 0].sum()
            sums, weights = strategy.reduce(totals, reduce_op="sum").tolist()
            means = {name: s / w if w else 0.0 for name, s, w in zip(names, sums, weights, strict=True)}
        means |= {name: float(value) for name, value in self.latest.items()}
        self.rows, self.latest = {}, {}
        return means


def _on(device: torch.device, value: Tensor | float) -> Tensor:
    if isinstance(value, Tensor) and value.device == device:  # nearly always, and as_tensor is slow to find out
        return value
    return torch.as_tensor(value, device=device)
