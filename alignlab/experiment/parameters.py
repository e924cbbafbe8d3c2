"""parameters: how many numbers each part of a model has, and how many of them train."""

from collections.abc import Iterator
from typing import TypedDict

from torch import nn

from alignlab.adapters import adapter_parameters
from alignlab.objectives import Objective


class Count(TypedDict):
    """How many numbers there are, and how many of them train."""

    total: int
    trained: int


class Parameters(Count):
    """Those of an objective and its backbone, and of each part; the parts' add up to the whole."""

    parts: dict[str, Count]


def parameters_of(objective: Objective) -> Parameters:
    """Count every weight once.

    The rows are the backbone's parts, adapters in them apart, what the backbone has beside its parts (a scale, say),
    and what the objective has itself; those without a weight are left out.
    """
    rows: dict[str, Count] = {}
    for parameter, row in _rows(objective):
        count = rows.setdefault(row, {"total": 0, "trained": 0})
        count["total"] += parameter.numel()
        count["trained"] += parameter.numel() if parameter.requires_grad else 0
    total, trained = (sum(count[name] for count in rows.values()) for name in ("total", "trained"))
    return {"total": total, "trained": trained, "parts": rows}


def _rows(objective: Objective) -> Iterator[tuple[nn.Parameter, str]]:
    backbone = objective.backbone
    adapters = {id(parameter) for parameter in adapter_parameters(backbone)}
    seen = set()
    for parameter, part in backbone.part_of():
        seen.add(id(parameter))
        yield parameter, f"adapters in {part}" if id(parameter) in adapters else part
    for parameter in backbone.parameters():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            yield parameter, "adapters" if id(parameter) in adapters else "beside the parts"
    yield from ((parameter, "objective") for parameter in objective.parameters() if id(parameter) not in seen)
