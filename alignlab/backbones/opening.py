"""opening: the one place that knows which class reads a directory."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alignlab.backbones.backbone import Backbone
from alignlab.backbones.batching import Batching
from alignlab.backbones.composed import is_composed
from alignlab.backbones.dual import DualEncoder
from alignlab.backbones.encoding import Encoder
from alignlab.backbones.kinds import is_dual
from alignlab.backbones.reading import read_config
from alignlab.backbones.running import compile_layers, recompute_layers
from alignlab.errors import InputError
from alignlab.modules.parted import PARTS, Attention, Dtype, Part


def open_backbone(
    path: str = "scenes-parts",
    *,
    fresh: Sequence[Part] = (),
    take: Mapping[Part, str] | None = None,
    text_tower: str | None = None,
    dtype: Dtype = "float32",
    attention: Attention = "sdpa",
    max_length: int | None = None,
    features: str | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
) -> Backbone | DualEncoder:
    """Read a backbone of either class: what generates text is a Backbone, what only embeds a DualEncoder.

    Args:
        path: Name of a packaged checkpoint, a directory, or a hub name.
        fresh: Parts to start from random weights, drawn from torch's global generator.
        take: Parts to take from other backbones of the same shape, part -> path.
        text_tower: A directory whose language model reads the texts, beside the vision tower of ``path``; what is made
            is a dual encoder. None: ``path`` alone.
        dtype: The parameters' type.
        attention: The attention implementation of transformers.
        max_length: Longest sequence in tokens; None: no limit.
        features: A folder in which a frozen vision tower's features are kept, of any towers and for any number of
            trainings; None: they are computed each time.
        gradient_checkpointing: In training, compute a layer's activations once more instead of keeping them.
        compile: Run layers through torch.compile; on a CPU it needs a C++ compiler.

    Raises:
        InputError: A directory is missing or holds no such model, a part does not fit, the vision tower's features
            cannot be kept by picture, or layers cannot be computed once more.
    """
    settings: dict[str, Any] = {"fresh": fresh, "take": take, "dtype": dtype, "attention": attention}
    backbone: Backbone | DualEncoder
    if embeds_only(path, text_tower):
        if features is not None:
            raise InputError(
                f"backbone.features: {path} is read as a dual encoder, whose vision tower's features are not kept; "
                "leave features out"
            )
        backbone = DualEncoder(path, text_tower=text_tower, max_length=max_length, **settings)
    else:
        backbone = Backbone(path, max_length=max_length, features=features, **settings)
    if gradient_checkpointing:
        recompute_layers(backbone)
    if compile:
        compile_layers(backbone)
    return backbone


def open_encoder(path: str, *, text_tower: str | None = None, max_length: int | None = None) -> Batching:
    """The encoder of ``open_backbone`` alone; reads no weights."""
    if not embeds_only(path, text_tower):
        return Encoder.load(path, max_length=max_length)
    with torch.device("meta"):
        return DualEncoder(path, text_tower=text_tower, fresh=PARTS, max_length=max_length).encoder


def embeds_only(path: str, text_tower: str | None = None) -> bool:
    """Whether settings name a dual encoder."""
    if text_tower is not None or is_composed(path):
        return True
    return is_dual(read_config(path, what="vision-language model"))
