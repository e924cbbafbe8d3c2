"""Optimization: AdamW settings, learning rates of each part, warm-up and decay."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from alignlab.backbones import PARTS
from alignlab.errors import InputError
from alignlab.modules import GradientCodebook

if TYPE_CHECKING:
    from alignlab.objectives.base import Objective


@dataclass(frozen=True)
class Optimization:
    """How fast what trains is trained; *what* trains is the adapter's choice.

    Args:
        lr: Peak learning rate.
        part_lr: Peak learning rate of single parts: vision_tower, projector, language_model.
        weight_decay: Decoupled; matrices only, but no codebook, whose rows are places and not weights.
        betas: AdamW's averages of gradient and squared gradient.
        warmup_steps: Optimizer steps of linear warm-up.
        schedule: Course after warm-up; cosine and linear end at 0.
    """

    lr: float = 1e-3
    part_lr: Mapping[Literal["vision_tower", "projector", "language_model"], float] = field(default_factory=dict)
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"

    def __post_init__(self) -> None:
        if wrong := [name for name in self.part_lr if name not in PARTS]:
            raise InputError(
                f"optimization.part_lr: a backbone has the parts {', '.join(PARTS)}, not {', '.join(wrong)}"
            )
        if min((self.lr, *self.part_lr.values())) <= 0:
            raise InputError(
                "optimization: learning rates must be positive; to freeze a part use adapter Full(parts=...)"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimization.betas must lie in [0, 1), got {list(self.betas)}")
        if self.weight_decay < 0 or self.warmup_steps < 0:
            raise InputError(
                f"optimization needs weight_decay >= 0 and warmup_steps >= 0, "
                f"got {self.weight_decay} and {self.warmup_steps}"
            )


def optimizer_and_schedule(objective: "Objective", settings: Optimization, num_steps: int) -> dict:
    """AdamW over what trains, one group a part, and its learning-rate schedule, in Lightning's form."""
    part = {id(parameter): name for parameter, name in objective.backbone.part_of()}
    codebooks = {id(module.codebook) for module in objective.modules() if isinstance(module, GradientCodebook)}
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for parameter in objective.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in codebooks
            groups.setdefault((part.get(id(parameter), "objective"), decays), []).append(parameter)
    if not groups:
        raise InputError(f"{type(objective).__name__} has nothing to train: the adapter froze every parameter")
    optimizer = torch.optim.AdamW(
        [
            {
                "params": parameters,
                "name": f"{name}{'' if decays else '_vectors'}",
                "lr": settings.part_lr.get(name, settings.lr),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (name, decays), parameters in groups.items()
        ],
        betas=settings.betas,
        foreach=True,  # fused ones do not tell torch that weights changed, by which kept features would go stale
    )
    factor = lambda step: schedule_factor(step, settings, num_steps)  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def schedule_factor(step: int, settings: Optimization, num_steps: int) -> float:
    """The share of the peak learning rate at optimizer step ``step``, in [0, 1]."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = min(1.0, (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps))
    match settings.schedule:
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "linear":
            return 1 - progress
        case "constant":
            return 1.0
