"""Which weights train."""

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
