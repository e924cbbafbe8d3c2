"""Averages: weighted means of losses and reports, kept on the device until they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

if TYPE_CHECKING:
    from alignlab.objectives.base import Loss


class Averages:
    """Collects without waiting for the device; one transfer at ``flush``."""

    def __init__(self) -> None:
        self.rows: list[tuple[Tensor, dict[str, Tensor]]] = []
        self.latest: dict[str, Tensor] = {}

    def add(self, loss: Loss) -> None:
        """Keep a loss and its report, detached, with the loss's weight."""
        weight = torch.as_tensor(loss.weight, device=loss.mean.device).detach()
        values = {"loss": loss.mean.detach(), **loss.report}
        self.rows.append((weight, {name: torch.as_tensor(value).detach() for name, value in values.items()}))

    def flush(self, strategy: Strategy) -> dict[str, float]:
        """Weighted means over all rows of all processes, and the latest of ``latest``; forgets them."""
        names = sorted({name for _, values in self.rows for name in values})
        sums = [torch.zeros((), dtype=torch.float64)] * len(names)
        weights = list(sums)
        for weight, values in self.rows:
            for index, name in enumerate(names):
                if name in values:
                    sums[index] = sums[index] + weight.double() * values[name].double()
                    weights[index] = weights[index] + weight.double()
        means = {}
        if names:
            table = strategy.reduce(torch.stack(sums + weights), reduce_op="sum").tolist()
            means = {n: s / w if w else 0.0 for n, s, w in zip(names, table, table[len(names) :], strict=False)}
        means |= {name: float(value) for name, value in self.latest.items()}
        self.rows, self.latest = [], {}
        return means
