"""Parts of models, and stateful parts that a backbone or an objective may own."""

from alignlab.modules.parted import PARTS, Parted
from alignlab.modules.text_adapter import TextAdapter

__all__ = ["PARTS", "Parted", "TextAdapter"]
