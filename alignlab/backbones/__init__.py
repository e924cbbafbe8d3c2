"""What is being aligned: one interface over Hugging Face vision-language models."""

from alignlab.backbones.backbone import PARTS, Backbone, Output
from alignlab.backbones.encoding import Encoder
from alignlab.backbones.locations import locate, packaged

__all__ = ["PARTS", "Backbone", "Encoder", "Output", "locate", "packaged"]
