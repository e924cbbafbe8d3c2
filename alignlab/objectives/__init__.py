"""Alignment objectives: one file each."""

from alignlab.objectives.base import Loss, Objective
from alignlab.objectives.cal import CAL
from alignlab.objectives.clip import CLIP
from alignlab.objectives.contrastive import Contrastive
from alignlab.objectives.contrasts import BlurredImage, Contrast, MaskedPatches, MeanColor, NoImage
from alignlab.objectives.emu import Emu
from alignlab.objectives.infonce import InfoNCE
from alignlab.objectives.lavit import LaVIT
from alignlab.objectives.lavittokenizer import LaVITTokenizer
from alignlab.objectives.llm2clip import LLM2CLIP
from alignlab.objectives.llm2cliptext import LLM2CLIPText
from alignlab.objectives.mixture import Mixture
from alignlab.objectives.mle import MLE
from alignlab.objectives.optimization import Optimization
from alignlab.objectives.plora import PLoRA
from alignlab.objectives.references import AdaptersOff, Cached, Free, FrozenCopy, Reference
from alignlab.objectives.seva import SeVa
from alignlab.objectives.siglip import SigLIP
from alignlab.objectives.unime import UniME
from alignlab.objectives.unimedistillation import UniMEDistillation

__all__ = [
    "CAL",
    "CLIP",
    "LLM2CLIP",
    "MLE",
    "AdaptersOff",
    "BlurredImage",
    "Cached",
    "Contrast",
    "Contrastive",
    "Emu",
    "Free",
    "FrozenCopy",
    "InfoNCE",
    "LLM2CLIPText",
    "LaVIT",
    "LaVITTokenizer",
    "Loss",
    "MaskedPatches",
    "MeanColor",
    "Mixture",
    "NoImage",
    "Objective",
    "Optimization",
    "PLoRA",
    "Reference",
    "SeVa",
    "SigLIP",
    "UniME",
    "UniMEDistillation",
]
