"""Case: one objective on a tiny model, and what its loss and gradients are."""

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alignlab.adapters import Adapter
from alignlab.backbones import Backbone, open_backbone
from alignlab.backbones.tiny import give_tokenizer, make_exact, write_tiny
from alignlab.batch import Batch, Example
from alignlab.errors import NoTokenizer
from alignlab.objectives import Contrastive, Objective

EXACT = 1e-9
"""Bound on what should agree but for rounding in float64."""


@dataclass(frozen=True)
class Trace:
    """A loss and the gradients it sends to what trains.

    Args:
        weight: What the loss is a mean over.
    """

    loss: Tensor
    gradients: Mapping[str, Tensor]
    weight: float = 1.0

    def deviations(self, other: "Trace") -> dict[str, float]:
        """How far another one is off, relative to this one: its loss and the gradient of each parameter.

        A gradient is measured against its own size, or where that is nothing, against a millionth of all gradients'.
        """
        floor = 1e-6 * self.norm()
        found = {"the loss": relative(other.loss - self.loss, self.loss.abs().clamp(min=floor))}
        for name, gradient in self.gradients.items():
            size = gradient.norm().clamp(min=floor)
            found[f"the gradient of {name}"] = relative(other.gradients[name] - gradient, size)
        return found

    def norm(self) -> float:
        return float(torch.stack([gradient.norm() for gradient in self.gradients.values()]).norm())


@dataclass(frozen=True)
class Case:
    """What is certified.

    Args:
        objective: On a tiny random model in float64; never used, only copied.
        examples: What it is certified on.
        folder: Where runs may leave files.
    """

    objective: Objective
    examples: Sequence[Example]
    folder: Path

    def replica(self, *, dropout: float = 0.0) -> Objective:
        """The objective anew, in training mode, embedding all at once.

        Args:
            dropout: Of the model's attention; at 0 no module drops anything, else its own modules do as they are set.
        """
        replica = copy.deepcopy(self.objective).train()
        for module in replica.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = dropout
            if hasattr(module, "config") and isinstance(getattr(module, "dropout", None), float):
                module.dropout = dropout  # the attention of CLIP calls it so
            if isinstance(module, nn.modules.dropout._DropoutNd) and not dropout:
                module.p = 0.0
            if isinstance(module, Contrastive):
                module.chunk_size = None
        return replica

    def batch(self, examples: Sequence[Example] | None = None) -> Batch:
        objective = self.objective
        return objective.backbone.encoder.batch(list(examples or self.examples), tuple(objective.requires))


def make_case(
    make: Callable[[Backbone], Objective], examples: Sequence[Example], folder: Path, adapter: Adapter, *, dual: bool
) -> Case:
    """Give an objective its tiny model, with a visual tokenizer if it asks for one.

    Draws from torch's global generator.

    Args:
        dual: A dual encoder of the tiny model's towers, instead of the model itself.
    """
    write_tiny(folder / "tiny", layers=2)
    path = str(folder / "tiny")
    backbone = open_backbone(path, text_tower=path if dual else None, dtype="float64")
    make_exact(backbone.model)
    adapter.apply(backbone)
    try:
        objective = make(backbone)
    except NoTokenizer:
        give_tokenizer(backbone)
        objective = make(backbone)
    objective = objective.double()
    _move(objective)
    return Case(objective, list(examples), folder)


def _move(objective: Objective) -> None:
    """Let what trains be a little way from where it began, to which some objectives relate it: so do most of its steps.

    Draws from torch's global generator.
    """
    for parameter in objective.parameters():
        if parameter.requires_grad:
            size = torch.where(parameter.data == 0, 0.05, parameter.data)  # zeros, as of new adapters, move as well
            parameter.data += 0.1 * size * torch.randn_like(parameter)


def packed(objective: Objective) -> bytes:
    """An objective to be sent to another process.

    Without the hooks that transformers leaves in a model that has run, which cannot be pickled; where they are missing,
    they are put back.
    """
    sent = copy.deepcopy(objective)
    for module in sent.modules():
        for key, hook in list(module._forward_hooks.items()):
            if hook.__module__ == "transformers.utils.output_capturing":
                del module._forward_hooks[key]
        vars(module).pop("_output_capturing_hooks_installed", None)
    return pickle.dumps(sent)


def trace(objective: Objective, batch: Batch) -> Trace:
    """One forward and backward pass; of a fresh replica, as an objective may keep a state that every pass moves."""
    objective.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss = objective.loss(batch)
    loss.mean.backward()
    return Trace(loss.mean.detach(), gradients(objective), float(loss.weight))


def gradients(objective: Objective) -> dict[str, Tensor]:
    """The gradient of everything that trains; zero where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in objective.named_parameters()
        if parameter.requires_grad
    }


def relative(difference: Tensor, size: Tensor | float) -> float:
    """How large a difference is beside a size; 0 where both are nothing."""
    difference, size = float(difference.norm()), float(size)
    return 0.0 if difference == 0 else difference / max(size, 1e-300)
