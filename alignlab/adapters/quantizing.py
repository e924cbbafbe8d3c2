"""quantizing: linear maps in 4 bits, by bitsandbytes."""

import re
from typing import Any

import torch
from torch import nn

from alignlab.adapters.placing import module_names, pattern
from alignlab.errors import InputError


def quantize(model: Any, names: str) -> None:
    """Put linear maps of bitsandbytes (nf4, double quantisation) in place of others.

    Those that are in 4 bits already stay as they are.

    Args:
        names: A regular expression that matches the names, whole, of those to be replaced.

    Raises:
        InputError: bitsandbytes is not installed, or the weights are of another type than it takes.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError:
        raise InputError(
            "QLoRA needs bitsandbytes, which is not installed: pip install 'alignlab[quantization]'"
        ) from None
    chosen = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    for name, linear in chosen:
        if not re.fullmatch(names, name):
            continue
        weight, width = linear.weight, (linear.in_features, linear.out_features)
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"QLoRA needs a model in float32, bfloat16 or float16, got {weight.dtype}: backbone.dtype")
        small = Linear4bit(
            *width, bias=linear.bias is not None, compute_dtype=weight.dtype, quant_type="nf4", device="meta"
        )
        small.weight = Params4bit(weight.data, requires_grad=False, quant_type="nf4", module=small)
        small.bias = linear.bias
        # Evaluating on a CPU would round its scales to bfloat16 for good, and with them the model that trains on.
        small.support_avx512bf16_for_cpu = False
        model.set_submodule(name, small.to(weight.device))  # which is when it quantises
    model.is_loaded_in_4bit = True  # where peft looks


def is_quantized(module: nn.Module) -> bool:
    """Whether it is a linear map in 4 bits."""
    return isinstance(module, nn.Linear) and hasattr(module.weight, "quant_state")


def quantized_pattern(model: nn.Module) -> str | None:
    """A regular expression that matches the names of the linear maps in 4 bits; None: there are none."""
    names = [name.removesuffix(".base_layer") for name, module in model.named_modules() if is_quantized(module)]
    return pattern(names, module_names(model)) if names else None
