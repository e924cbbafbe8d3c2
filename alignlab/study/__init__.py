"""Studies: which objective helps, over arms x starts x seeds, from one YAML to one report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.study.plan import Study as Study
    from alignlab.study.running import run_study as run_study

__all__ = ["Study", "run_study"]

_PLACES = {"Study": "plan", "run_study": "running"}


def __getattr__(name: str) -> Any:
    # On first use: planning reads configs, and `alignlab study status` does not.
    if name not in _PLACES:
        raise AttributeError(f"module 'alignlab.study' has no attribute {name!r}")
    return getattr(import_module(f"alignlab.study.{_PLACES[name]}"), name)
