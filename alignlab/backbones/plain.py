"""plain: a backbone as a directory that plain transformers reads, and peft where adapters stay apart."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from alignlab.adapters import has_adapters
from alignlab.adapters.merging import merged_weights, unadapted_weights, why_apart
from alignlab.adapters.placing import adapters_of
from alignlab.adapters.quantizing import quantized_pattern
from alignlab.adapters.storing import write_adapters
from alignlab.backbones import vlm
from alignlab.backbones.backbone import Backbone
from alignlab.backbones.dual import DualEncoder
from alignlab.backbones.saving import ADAPTER, is_adapted, save_tokenizer, weights_of
from alignlab.backbones.towers import in_type
from alignlab.modules.parted import Dtype


def write_plain(
    backbone: Backbone | DualEncoder, folder: Path, *, dtype: Dtype | None = None, place: Path | None = None
) -> str | None:
    """Write a backbone whole, with its adapters merged where weights can hold them, and beside it where they cannot.

    Args:
        dtype: Of the weights; None: as they are.
        place: Where the directory will be, for what peft notes of it; None: where it is written.

    Returns:
        Why the adapters are apart, in ``adapter``; None: there are plain weights alone.
    """
    if isinstance(backbone, DualEncoder) or not has_adapters(backbone.model):
        backbone.save(folder, dtype=dtype)
        return None
    model, configs = backbone.model, adapters_of(backbone.model)
    reason = why_apart(model, configs)
    if quantized_pattern(model) is not None:
        model = _unquantized(backbone)
    weights = unadapted_weights(model) if reason else merged_weights(model, configs)
    model.save_pretrained(folder, state_dict=in_type(weights, dtype))
    backbone.encoder.processor.save_pretrained(folder)
    save_tokenizer(backbone.visual_tokenizer, folder)
    if reason:
        write_adapters(backbone.model, folder / ADAPTER, base=str((place or folder).absolute()), dtype=dtype)
    return reason


def settle_generation(folder: Path, max_new_tokens: int) -> str | None:
    """Let a model that is written answer greedily, as evaluators ask, where it does not say itself how it answers.

    Args:
        max_new_tokens: Of an answer, where the directory names no limit.

    Returns:
        What ``generation_config.json`` says, in words; None: the model generates nothing, and there is none.
    """
    if not (folder / GENERATION_CONFIG_NAME).is_file():
        return None
    settings = GenerationConfig.from_pretrained(folder)
    if settings.do_sample is None:
        settings.do_sample = False
    if settings.max_new_tokens is None and settings.max_length is None:
        settings.max_new_tokens = max_new_tokens
    settings._from_model_config = False  # else transformers takes it for derived, and derives it anew
    settings.save_pretrained(folder)
    how = "by sampling, as its start did: pass do_sample=False for greedy answers" if settings.do_sample else "greedily"
    longest = settings.max_new_tokens and f", in at most {settings.max_new_tokens} tokens"
    return f"As `{GENERATION_CONFIG_NAME}` has it, the model answers {how}{longest or ''}."


def lies_beside(folder: Path) -> bool:
    """Whether it is a directory of ``write_plain`` whose adapters are apart: read as it is, the model lacks them."""
    return (folder / ADAPTER).is_dir() and not is_adapted(folder)


def _unquantized(backbone: Backbone) -> Any:
    """The model beneath the adapters as it was before its linear maps were put into 4 bits."""
    model = vlm.read(backbone.base, {"dtype": backbone.model.dtype})
    with torch.no_grad():
        model.load_state_dict(weights_of(backbone.model, sorted(backbone.changed)), strict=False)
    return model
