"""quantizing: linear maps in 4 bits, by bitsandbytes."""

import re
from typing import Any

import torch
from torch import nn

from alignlab.errors import InputError


def quantize(model: Any, pattern: str) -> None:
    """Put linear maps of bitsandbytes (nf4, double quantisation) in place of those whose name matches, whole.

    Those that are quantised already stay as they are, as do weights on the meta device, which hold nothing.

    Raises:
        InputError: bitsandbytes is not installed, or the weights are of another type than it takes.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise InputError(
            "QLoRA needs bitsandbytes, which is not installed: pip install 'alignlab[quantization]'"
        ) from None
    chosen = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    for name in chosen:
        if not re.fullmatch(pattern, name.removesuffix(".base_layer")):
            continue
        linear = model.get_submodule(name)
        weight, width = linear.weight, (linear.in_features, linear.out_features)
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"QLoRA needs a model in float32, bfloat16 or float16, got {weight.dtype}: backbone.dtype")
        small = Linear4bit(
            *width, bias=linear.bias is not None, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
        )
        small.weight = Params4bit(weight.data, requires_grad=False, quant_type="nf4", module=small)
        small.bias = linear.bias
        model.set_submodule(name, small.to(weight.device))  # which is when it quantises
    model.is_loaded_in_4bit = True  # where peft looks


def is_quantized(module: nn.Module) -> bool:
    """Whether a linear map is in 4 bits."""
    return hasattr(module, "quant_type")
