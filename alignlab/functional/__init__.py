"""Pure functions of tensors: the arithmetic of every objective."""

from alignlab.functional.adapting import partial_lora
from alignlab.functional.constants import held_constants, stop_gradient
from alignlab.functional.contrastive import (
    hard_cross_entropy,
    hard_negative_info_nce,
    hard_negatives,
    info_nce,
    multi_positive_info_nce,
    normalize,
    repeated,
    sigmoid_contrastive,
    similarities,
)
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
from alignlab.functional.distillation import divergence, similarity_distillation, soft_label_kl
from alignlab.functional.likelihood import sequence_logps, supervised, token_logps, upcast
from alignlab.functional.processes import gather, total
from alignlab.functional.weighting import logit_gain, visual_weights, weighted_mean, weighted_nll

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "diffusion_noise",
    "divergence",
    "flip",
    "gather",
    "gaussian_blur",
    "hard_cross_entropy",
    "hard_negative_info_nce",
    "hard_negatives",
    "held_constants",
    "info_nce",
    "logit_gain",
    "mask_patches",
    "moco",
    "multi_positive_info_nce",
    "normalize",
    "partial_lora",
    "random_crop",
    "repeated",
    "sequence_logps",
    "sigmoid_contrastive",
    "similarities",
    "similarity_distillation",
    "soft_label_kl",
    "stop_gradient",
    "supervised",
    "token_logps",
    "total",
    "upcast",
    "visual_weights",
    "weighted_mean",
    "weighted_nll",
]
