"""What a backbone can do, whatever objective trained it: one file an evaluator."""

from alignlab.evaluation.base import Evaluation, Evaluator
from alignlab.evaluation.caption import CaptionAccuracy
from alignlab.evaluation.composition import Composition
from alignlab.evaluation.localization import LocalizationError
from alignlab.evaluation.perplexity import TextPerplexity
from alignlab.evaluation.pope import POPE
from alignlab.evaluation.retrieval import Retrieval
from alignlab.evaluation.vqa import VQAAccuracy

__all__ = [
    "POPE",
    "CaptionAccuracy",
    "Composition",
    "Evaluation",
    "Evaluator",
    "LocalizationError",
    "Retrieval",
    "TextPerplexity",
    "VQAAccuracy",
]
