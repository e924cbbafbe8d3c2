"""What a backbone can do, whatever objective trained it: one file an evaluator."""

from alignlab.evaluation.base import Evaluation, Evaluator
from alignlab.evaluation.caption import CaptionAccuracy
from alignlab.evaluation.retrieval import Retrieval
from alignlab.evaluation.vqa import VQAAccuracy

__all__ = ["CaptionAccuracy", "Evaluation", "Evaluator", "Retrieval", "VQAAccuracy"]
