"""alignlab: which vision-language alignment objective helps, on the same backbone, data, budget and evaluation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.backbones import Backbone as Backbone
    from alignlab.batch import Batch as Batch
    from alignlab.batch import Example as Example
    from alignlab.certificate import certify as certify
    from alignlab.errors import InputError as InputError
    from alignlab.experiment.run import load as load
    from alignlab.objectives import Loss as Loss
    from alignlab.objectives import Objective as Objective
    from alignlab.study.frames import results as results

_HOMES = {
    "Backbone": "alignlab.backbones",
    "Batch": "alignlab.batch",
    "Example": "alignlab.batch",
    "InputError": "alignlab.errors",
    "Loss": "alignlab.objectives",
    "Objective": "alignlab.objectives",
    "certify": "alignlab.certificate",
    "load": "alignlab.experiment.run",
    "results": "alignlab.study.frames",
}

__all__ = ["Backbone", "Batch", "Example", "InputError", "Loss", "Objective", "certify", "load", "results"]


def __getattr__(name: str) -> Any:
    # Imported on first use: torch alone takes seconds, and `alignlab --help` needs none of it.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'alignlab' has no attribute {name!r}")
