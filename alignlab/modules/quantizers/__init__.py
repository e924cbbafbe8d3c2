"""Quantisers: vectors as codes of a table or a grid, each with a gradient."""

from alignlab.modules.quantizers.base import Quantized, Quantizer
from alignlab.modules.quantizers.codebooks import CountEMA, GradientCodebook, VectorQuantizer
from alignlab.modules.quantizers.implicit import FSQ, LFQ

__all__ = ["FSQ", "LFQ", "CountEMA", "GradientCodebook", "Quantized", "Quantizer", "VectorQuantizer"]
