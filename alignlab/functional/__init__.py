"""Pure functions of tensors: the arithmetic of every objective."""

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
from alignlab.functional.corruption import diffusion_noise
from alignlab.functional.distillation import similarity_distillation, soft_label_kl
from alignlab.functional.likelihood import sequence_logps, supervised, token_logps, upcast
from alignlab.functional.pictures import gaussian_blur
from alignlab.functional.processes import gather, total
from alignlab.functional.weighting import logit_gain, visual_weights, weighted_mean, weighted_nll

__all__ = [
    "diffusion_noise",
    "gather",
    "gaussian_blur",
    "hard_cross_entropy",
    "hard_negative_info_nce",
    "hard_negatives",
    "held_constants",
    "info_nce",
    "logit_gain",
    "multi_positive_info_nce",
    "normalize",
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
