"""running: how the layers of a backbone are run, which changes what they cost and not what they compute."""

import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from alignlab.errors import InputError
from alignlab.modules.parted import Parted, layers_of


def check_running(settings: Mapping[str, Any], device: torch.device) -> None:
    """Raise InputError if the settings of ``open_backbone`` ask for what a device, or what is installed, cannot do."""
    attention = settings["attention"]
    if attention == "flash_attention_2" and (device.type != "cuda" or not is_flash_attn_2_available()):
        raise InputError(
            f"backbone.attention: flash_attention_2 needs a GPU and the package flash-attn, and here is a "
            f"{device.type} device {'with' if is_flash_attn_2_available() else 'without'} it; sdpa needs neither"
        )
    if attention == "flash_attention_2" and settings["dtype"] not in ("bfloat16", "float16"):
        raise InputError(
            f"backbone.attention: flash_attention_2 computes in 16 bits alone, got backbone.dtype {settings['dtype']}; "
            "set it to bfloat16, or use sdpa"
        )
    if attention == "flex_attention" and device.type == "cpu":
        raise InputError("backbone.attention: flex_attention has no backward pass on a CPU; use sdpa")
    if not settings["compile"]:
        return
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise InputError(
            f"backbone.compile: on a CPU torch.compile needs a C++ compiler, and there is no {compiler}; install one, "
            "or set compile to false"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise InputError(
            "backbone.compile: on a GPU torch.compile needs Triton, which is not installed; install it (pip install "
            "triton), or set compile to false"
        )


def recompute_layers(backbone: Parted) -> None:
    """Keep no activations within layers while training: the backward pass computes them once more.

    Nothing else is trained by it, as frozen embeddings, since the recomputation needs no gradient of a layer's inputs.

    Raises:
        InputError: Its layers cannot.
    """
    for model in _outermost(backbone.model):
        try:
            model.activation_checkpointing_enable({"use_reentrant": False})
        except ValueError:
            raise InputError(
                f"backbone.gradient_checkpointing: {backbone.path} has a {type(model).__name__}, whose layers cannot "
                "be computed once more; leave it false"
            ) from None
        # Transformers lets embeddings ask for gradients, too, through which frozen towers would be run backwards.
        model.disable_input_require_grads()


def compile_layers(backbone: Parted) -> None:
    """Have ``torch.compile`` translate each layer when it is first run; names and weights stay as they are.

    Layers of one kind share what is compiled. Sizes are taken as changing from the start.
    """
    for layer in layers_of(backbone.model):
        layer.compile(dynamic=True)


def _outermost(model) -> list[PreTrainedModel]:
    if isinstance(model, PreTrainedModel):
        return [model]
    return [each for child in model.children() for each in _outermost(child)]
