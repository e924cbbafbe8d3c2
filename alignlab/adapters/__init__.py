"""Which weights train."""

from typing import Any

from alignlab.adapters.base import Adapter, Full
from alignlab.adapters.lora import DoRA, LoRA, QLoRA
from alignlab.adapters.partial import PLoRA
from alignlab.adapters.switching import adapter_parameters, adapters_off, has_adapters

__all__ = [
    "Adapter",
    "DoRA",
    "Full",
    "LoRA",
    "PLoRA",
    "QLoRA",
    "adapter_parameters",
    "adapters_off",
    "has_adapters",
]


def __getattr__(name: str) -> Any:
    if name in ("PLoraConfig", "PLoraModel"):  # their module imports peft, which takes its time
        from alignlab.adapters import plora

        return getattr(plora, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
