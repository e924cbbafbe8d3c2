"""What is learned from: data modules that yield Examples, and what corrupts their pictures."""

from alignlab.data.base import AlignmentData, Split
from alignlab.data.captions import CocoCaptions, Flickr30k, Karpathy
from alignlab.data.coco import CocoJson
from alignlab.data.corruptions import (
    Blur,
    ContrastChange,
    Corruption,
    Crop,
    DiffusionNoise,
    Flip,
    Gamma,
    MoCo,
    PatchMask,
)
from alignlab.data.llava import LlavaJson, LlavaPairs
from alignlab.data.loading import Loading
from alignlab.data.mixture import DataMixture
from alignlab.data.mmeb import MMEB, MMEBEval
from alignlab.data.narratives import LocalizedNarratives
from alignlab.data.pairs import build_pairs
from alignlab.data.pope import POPEFiles
from alignlab.data.preferences import Preferences
from alignlab.data.refcoco import RefCOCO
from alignlab.data.scenes import Scenes
from alignlab.data.stream import Stream
from alignlab.data.sugarcrepe import SugarCrepe
from alignlab.data.table import Table
from alignlab.data.tars import WebDataset
from alignlab.functional.corruption import (
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_hue,
    adjust_saturation,
    diffusion_noise,
    flip,
    gaussian_blur,
    mask_patches,
    moco,
    random_crop,
)

__all__ = [
    "CocoCaptions",
    "Flickr30k",
    "Karpathy",
    "MMEB",
    "MMEBEval",
    "LocalizedNarratives",
    "RefCOCO",
    "SugarCrepe",
    "Table",
    "WebDataset",
    "AlignmentData",
    "Blur",
    "CocoJson",
    "ContrastChange",
    "Corruption",
    "Crop",
    "DataMixture",
    "DiffusionNoise",
    "Flip",
    "Gamma",
    "LlavaJson",
    "LlavaPairs",
    "Loading",
    "MoCo",
    "POPEFiles",
    "PatchMask",
    "Preferences",
    "Scenes",
    "Split",
    "Stream",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "build_pairs",
    "diffusion_noise",
    "flip",
    "gaussian_blur",
    "mask_patches",
    "moco",
    "random_crop",
]
