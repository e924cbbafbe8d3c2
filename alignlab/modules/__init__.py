"""Stateful parts that a backbone or an objective may own."""

from alignlab.modules.text_adapter import TextAdapter

__all__ = ["TextAdapter"]
