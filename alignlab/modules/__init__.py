"""Parts of models, and stateful parts that a backbone or an objective may own."""

from alignlab.modules.parted import PARTS, Parted
from alignlab.modules.quantizers import (
    FSQ,
    LFQ,
    CountEMA,
    GradientCodebook,
    Quantized,
    Quantizer,
    VectorQuantizer,
)
from alignlab.modules.text_adapter import TextAdapter
from alignlab.modules.tokenizer import (
    AllPatches,
    ContinuousTokenizer,
    Kept,
    LearnedSelection,
    PatchPixels,
    PictureTokenizer,
    PixelDecoder,
    RandomSelection,
    Selection,
    VisualInputs,
    VisualTokenizer,
    VisualTokens,
)

__all__ = [
    "FSQ",
    "LFQ",
    "PARTS",
    "AllPatches",
    "ContinuousTokenizer",
    "CountEMA",
    "GradientCodebook",
    "Kept",
    "LearnedSelection",
    "Parted",
    "PatchPixels",
    "PictureTokenizer",
    "PixelDecoder",
    "Quantized",
    "Quantizer",
    "RandomSelection",
    "Selection",
    "TextAdapter",
    "VectorQuantizer",
    "VisualInputs",
    "VisualTokenizer",
    "VisualTokens",
]
