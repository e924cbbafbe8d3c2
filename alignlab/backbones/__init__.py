"""What is being aligned: one interface over Hugging Face vision-language models and dual encoders."""

from alignlab.backbones.backbone import Backbone, Output
from alignlab.backbones.contents import ContentEncoder
from alignlab.backbones.dual import DualEncoder
from alignlab.backbones.encoding import Encoder
from alignlab.backbones.locations import locate, packaged
from alignlab.backbones.opening import open_backbone, open_encoder
from alignlab.modules.parted import PARTS

__all__ = [
    "PARTS",
    "Backbone",
    "ContentEncoder",
    "DualEncoder",
    "Encoder",
    "Output",
    "locate",
    "open_backbone",
    "open_encoder",
    "packaged",
]
