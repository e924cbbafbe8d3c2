"""What a backbone can do, whatever objective trained it: one file an evaluator."""

from alignlab.evaluation.base import Evaluation, Evaluator
from alignlab.evaluation.caption import CaptionAccuracy
from alignlab.evaluation.chair import CHAIR
from alignlab.evaluation.composition import Composition, winoground
from alignlab.evaluation.drawing import ImageGeneration
from alignlab.evaluation.geometry import Geometry
from alignlab.evaluation.localization import LocalizationError
from alignlab.evaluation.perplexity import TextPerplexity
from alignlab.evaluation.pope import POPE
from alignlab.evaluation.ranking import Ranking
from alignlab.evaluation.reconstruction import Reconstruction
from alignlab.evaluation.retention import Retention
from alignlab.evaluation.retrieval import Retrieval
from alignlab.evaluation.vqa import VQAAccuracy
from alignlab.evaluation.weights import TokenWeights

__all__ = [
    "CHAIR",
    "POPE",
    "CaptionAccuracy",
    "Composition",
    "Evaluation",
    "Evaluator",
    "Geometry",
    "ImageGeneration",
    "LocalizationError",
    "Ranking",
    "Reconstruction",
    "Retention",
    "Retrieval",
    "TextPerplexity",
    "TokenWeights",
    "VQAAccuracy",
    "winoground",
]
