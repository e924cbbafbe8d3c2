"""Pure functions of tensors: the arithmetic of every objective."""

from alignlab.functional.constants import held_constants, stop_gradient
from alignlab.functional.contrastive import info_nce, normalize
from alignlab.functional.likelihood import sequence_logps, supervised, token_logps, upcast
from alignlab.functional.processes import gather, total

__all__ = [
    "gather",
    "held_constants",
    "info_nce",
    "normalize",
    "sequence_logps",
    "stop_gradient",
    "supervised",
    "token_logps",
    "total",
    "upcast",
]
