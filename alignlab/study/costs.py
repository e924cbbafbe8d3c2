"""costs: what a cell used up, by itself and together with the stages that it builds on."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.study.state import METRICS, read_json

STAGES = "stages.json"


@dataclass(frozen=True)
class Costs:
    """What one or several trainings used up; None where it is not known.

    Args:
        samples: Each as often as it was trained on; a preference pair is one.
        tokens: Those that are no padding.
        forward: Floating-point operations of training's forward passes, those without gradient included.
        backward: The same of its backward passes, with what they compute again.
        trained: Weights that any of the trainings trains.
        total: Weights of the largest of the models.
        training: Seconds of training and of building pairs.
        evaluation: Seconds of judging.
        memory: Most MiB at a time.
        parts: Trained weights by part, of which ``trained`` is made; empty where the parts are not known.
    """

    steps: float | None = 0
    samples: float | None = 0
    tokens: float | None = 0
    forward: float | None = 0
    backward: float | None = 0
    trained: float | None = 0
    total: float | None = 0
    training: float | None = 0
    evaluation: float | None = 0
    memory: float | None = 0
    parts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> "Costs":
        """What ``metrics.json`` of a run or of one of its stages says."""
        seconds, memory = metrics.get("seconds") or {}, metrics.get("peak_memory_mib")
        if "pairs" in metrics:  # nothing is trained to build them
            return cls(training=seconds.get("pairs"), memory=memory)
        flops, parameters = metrics.get("flops") or {}, metrics.get("parameters") or {}
        return cls(
            **{name: metrics.get(name) for name in ("steps", "samples", "tokens")},
            **{name: flops.get(name) for name in ("forward", "backward")},
            **{name: parameters.get(name) for name in ("trained", "total")},
            training=seconds.get("fit"),
            evaluation=seconds.get("evaluate"),
            memory=memory,
            parts={name: part["trained"] for name, part in parameters.get("parts", {}).items()},
        )


SUMMED = ("steps", "samples", "tokens", "forward", "backward", "training", "evaluation")
LARGEST = ("total", "memory")


def together(costs: Iterable[Costs]) -> Costs:
    """Of several trainings one after the other; what is not known of one is not known of all."""
    costs = tuple(costs)
    values = {name: _known([getattr(each, name) for each in costs], sum) for name in SUMMED}
    values |= {name: _known([getattr(each, name) for each in costs], _largest) for name in LARGEST}
    parts = {name: max(each.parts.get(name, 0) for each in costs) for each in costs for name in each.parts}
    trained = _known([each.trained for each in costs], _largest)
    if trained is not None and all(each.parts for each in costs if each.trained):
        trained = sum(parts.values())
    return Costs(**values, trained=trained, parts=parts)


def _known(values: list[float | None], combine: Any) -> float | None:
    return None if None in values else combine(values)


def _largest(values: list[float]) -> float:
    return max(values, default=0)


def stage_costs(directory: Path) -> dict[Path, Costs]:
    """Those of each stage that a finished run builds on, by the stage's directory; all unknown where it is gone."""
    found = {}
    for place in (read_json(directory / STAGES) or {}).values():
        folder = Path(os.path.normpath(directory / place))  # several cells name one stage from different places
        found[folder] = Costs.of(read_json(folder / METRICS) or {})
    return found
