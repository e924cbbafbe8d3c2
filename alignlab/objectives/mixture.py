"""Mixture: a weighted sum of objectives on one backbone."""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from alignlab.backbones import Backbone
from alignlab.batch import Batch
from alignlab.data import AlignmentData
from alignlab.errors import InputError
from alignlab.functional import total
from alignlab.objectives.base import Loss, Objective


class Mixture(Objective):
    """Minimise a weighted sum of other objectives on the same batch and backbone.

        sum over parts p of weights_p * mean_p

    The parts' means are over different things (tokens, pairs), each over all processes; micro-batches count by samples.
    Of the parts' hooks ``prepare``, ``begin``, ``after_step`` and ``train`` are called, no other.

    Args:
        parts: Name -> objective, still to be given its backbone; the names prefix what each part reports.
        weights: Name -> factor; 1 where not named.

    Raises:
        InputError: A part has a hook that would not be called, or trains alone.
    """

    coupled = "its parts average over different things, so micro-batches are weighted by samples"

    def __init__(
        self,
        backbone: Backbone,
        *,
        parts: Mapping[str, Callable[[Backbone], Objective]],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(backbone)
        if not parts:
            raise InputError("Mixture needs at least one part")
        if unknown := set(weights or {}) - set(parts):
            raise InputError(
                f"Mixture: weights name {', '.join(sorted(unknown))}, but its parts are {', '.join(parts)}"
            )
        self.parts = nn.ModuleDict({name: part(backbone) for name, part in parts.items()})
        self.weights = {name: (weights or {}).get(name, 1.0) for name in parts}
        for name, part in self.parts.items():
            if part.alone:
                raise InputError(f"Mixture: part {name} is a {type(part).__name__}, which trains alone: {part.alone}")
            if unheard := _hooks(part):
                raise InputError(
                    f"Mixture: part {name} has the hook {', '.join(sorted(unheard))}, which a mixture does not call; "
                    f"train {type(part).__name__} alone, or move what it does there into its loss or after_step"
                )
        self.per_process = "; ".join(part.per_process for part in self.parts.values() if part.per_process)
        self.requires = tuple(dict.fromkeys(field for part in self.parts.values() for field in part.requires))

    def prepare(self, data: AlignmentData, num_processes: int) -> None:
        for part in self.parts.values():
            part.prepare(data, num_processes)

    def begin(self, trainer: Trainer) -> None:
        for part in self.parts.values():
            part.begin(trainer)

    def loss(self, batch: Batch) -> Loss:
        losses = {name: part.loss(batch) for name, part in self.parts.items()}
        samples = total(float(len(batch)), device=self.backbone.device) / len(batch)
        mean = sum(self.weights[name] * loss.mean * _share(loss) * samples for name, loss in losses.items())
        report = {f"{name}/loss": loss.mean.detach() for name, loss in losses.items()}
        report |= {f"{name}/{key}": value for name, loss in losses.items() for key, value in loss.report.items()}
        return Loss(mean, len(batch), report)

    def after_step(self) -> None:
        for part in self.parts.values():
            part.after_step()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.parts.values():
            if type(part).train is not Objective.train:  # keeps something of the backbone in evaluation mode
                part.train(mode)
        return self


def _hooks(part: Objective) -> set[str]:
    """What a part has of its own of what Lightning calls."""
    steps = ("setup", "training_step", "validation_step", "optimizer_step")
    names = [name for name in dir(type(part)) if name.startswith(("on_", "configure_")) or name in steps]
    return {name for name in names if getattr(type(part), name) is not getattr(Objective, name, None)}


def _share(loss: Loss) -> Tensor:
    """How much of what a part averages over, in all processes, is this process's; 1 where there is only one."""
    weight = torch.as_tensor(loss.weight, dtype=loss.mean.dtype, device=loss.mean.device).detach()
    everywhere = total(weight)
    return torch.where(everywhere > 0, weight / everywhere, 1.0)
