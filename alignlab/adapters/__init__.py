"""Which weights train."""

from alignlab.adapters.base import Adapter, Full

__all__ = ["Adapter", "Full"]
