"""merging: what a model's weights are without its adapters, or with them merged."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alignlab.adapters.quantizing import is_quantized
from alignlab.adapters.switching import adapter_parameters, tuner_layers
from alignlab.errors import InputError

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer


def unadapted_weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict without its adapters, under the names from before they came."""
    added = {id(parameter) for parameter in adapter_parameters(module)}
    kept = {name: each for name, each in module.state_dict(keep_vars=True).items() if id(each) not in added}
    before = {f"{name}.base_layer.": f"{name}." for name in _adapted(module)}
    return {_renamed(name, before): each.detach() for name, each in kept.items()}


def merged_weights(module: nn.Module, configs: "Mapping[str, LoraConfig]") -> dict[str, Tensor]:
    """A module's state dict with its adapters merged, to the precision of its type; the module stays as it is.

    Args:
        configs: Of the adapters of the model that it is, or is of.

    Raises:
        InputError: They cannot be, see ``why_apart``.
    """
    _refuse(module, configs)
    weights = unadapted_weights(module)
    return weights | {f"{name}.weight": _merged(layer, configs) for name, layer in _adapted(module).items()}


def fold(module: nn.Module, configs: "Mapping[str, LoraConfig]", who: str, *, texts_only: bool = False) -> None:
    """Merge a module's adapters into it, and put the plain layers back in their place; all of it trains then.

    Args:
        configs: Of the adapters of the model that it is, or is of.
        who: For messages.
        texts_only: The module will read no picture, so that what is for the tokens of pictures can be left out, and
            what is for those of texts is for all.

    Raises:
        InputError: They cannot be merged, see ``why_apart``.
    """
    _refuse(module, configs, who, texts_only=texts_only)
    if texts_only:
        configs = {name: config for name, config in configs.items() if scope_of(config) != "visual"}
    for name, layer in _adapted(module).items():
        layer.get_base_layer().weight.data = _merged(layer, configs)
        module.set_submodule(name, layer.get_base_layer())
    module.requires_grad_(True)  # as a plain one's


def why_apart(module: nn.Module, configs: "Mapping[str, LoraConfig]", *, texts_only: bool = False) -> str | None:
    """Why no weights compute what a module and its adapters do; None: they can be merged."""
    for layer in tuner_layers(module):
        if is_quantized(layer.get_base_layer()):
            return "its linear maps are in 4 bits, which do not take them exactly"
        for name in _at_work(layer, configs):
            if scope_of(configs[name]) != "all" and not texts_only:
                return f"some are for the tokens of one kind alone ({scope_of(configs[name])})"
    return None


def scope_of(config: "LoraConfig") -> str:
    """The tokens that an adapter is for: visual, text or all."""
    return config.token_scope if config.peft_type == "PLORA" else "all"


def _refuse(module: nn.Module, configs: "Mapping[str, LoraConfig]", who: str = "", *, texts_only: bool = False) -> None:
    if reason := why_apart(module, configs, texts_only=texts_only):
        raise InputError(f"{who or type(module).__name__}: its adapters cannot be merged: {reason}")


@torch.no_grad()
def _merged(layer: "LoraLayer", configs: "Mapping[str, LoraConfig]") -> Tensor:
    base = layer.get_base_layer()
    before = base.weight.data
    base.weight.data = before.clone()
    try:
        for name in _at_work(layer, configs):
            if configs[name].use_dora:
                layer.merge(adapter_names=[name])
            else:
                base.weight.data += layer.get_delta_weight(name)
        return base.weight.data
    finally:
        base.weight.data = before
        layer.merged_adapters.clear()


def _at_work(layer: "LoraLayer", configs: "Mapping[str, LoraConfig]") -> Sequence[str]:
    return [name for name in layer.active_adapters if name in configs and name in layer.lora_A]


def _adapted(module: nn.Module) -> "dict[str, LoraLayer]":
    layers = set(tuner_layers(module))
    return {name: each for name, each in module.named_modules() if each in layers}


def _renamed(name: str, before: Mapping[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in before.items() if name.startswith(old)), name)
