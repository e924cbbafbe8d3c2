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

__all__ = [
    "FSQ",
    "LFQ",
    "PARTS",
    "CountEMA",
    "GradientCodebook",
    "Parted",
    "Quantized",
    "Quantizer",
    "TextAdapter",
    "VectorQuantizer",
]
