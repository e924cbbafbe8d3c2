"""The visual tokenizer: pictures as few rows or codes."""

from alignlab.modules.tokenizer.base import PictureTokenizer
from alignlab.modules.tokenizer.continuous import ContinuousTokenizer
from alignlab.modules.tokenizer.decoding import FeatureDecoder
from alignlab.modules.tokenizer.learned import LearnedSelection
from alignlab.modules.tokenizer.merger import Merger
from alignlab.modules.tokenizer.pixels import PatchPixels, PixelDecoder
from alignlab.modules.tokenizer.selection import AllPatches, Kept, RandomSelection, Selection
from alignlab.modules.tokenizer.tokenizer import VisualTokenizer
from alignlab.modules.tokenizer.tokens import VisualInputs, VisualTokens

__all__ = [
    "AllPatches",
    "ContinuousTokenizer",
    "FeatureDecoder",
    "Kept",
    "LearnedSelection",
    "Merger",
    "PatchPixels",
    "PictureTokenizer",
    "PixelDecoder",
    "RandomSelection",
    "Selection",
    "VisualInputs",
    "VisualTokenizer",
    "VisualTokens",
]
