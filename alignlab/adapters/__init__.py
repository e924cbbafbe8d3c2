"""Which weights train."""

from alignlab.adapters.base import Adapter, Full
from alignlab.adapters.switching import adapter_parameters, adapters_off, has_adapters

__all__ = ["Adapter", "Full", "adapter_parameters", "adapters_off", "has_adapters"]
