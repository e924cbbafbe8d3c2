"""Pure functions of tensors: the arithmetic of every objective."""

from alignlab.functional.contrastive import info_nce, normalize
from alignlab.functional.likelihood import sequence_logps, supervised, token_logps, upcast

__all__ = ["info_nce", "normalize", "sequence_logps", "supervised", "token_logps", "upcast"]
