"""What is learned from: data modules that yield Examples."""

from alignlab.data.base import AlignmentData, Split
from alignlab.data.coco import CocoJson
from alignlab.data.llava import LlavaJson, LlavaPairs
from alignlab.data.pope import POPEFiles
from alignlab.data.scenes import Scenes

__all__ = ["AlignmentData", "CocoJson", "LlavaJson", "LlavaPairs", "POPEFiles", "Scenes", "Split"]
