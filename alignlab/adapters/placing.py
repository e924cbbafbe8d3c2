"""placing: where adapters go in a model, and putting them there."""

import re
import warnings
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from alignlab.adapters.switching import adapter_parameters, tuner_layers
from alignlab.errors import InputError
from alignlab.modules.parted import PARTS, Part, Parted

if TYPE_CHECKING:
    from peft import LoraConfig


class Places:
    """The linear maps of some parts, but for the map to the vocabulary.

    Args:
        modules: Their own names, such as q_proj; None: all.
        who: For messages.

    Raises:
        InputError: There are none, or none of a name.
    """

    def __init__(self, backbone: Parted, parts: Sequence[Part], modules: Sequence[str] | None, *, who: str) -> None:
        linear = {part: _linear_maps(backbone, part) for part in parts}
        own = {_last(name) for names in linear.values() for name in names}
        if unknown := set(modules or ()) - own:
            raise InputError(
                f"{who} needs linear maps named {min(unknown)}, but in the {' and '.join(parts)} they are named "
                f"{', '.join(sorted(own))}"
            )
        if modules is not None:
            linear = {part: [name for name in names if _last(name) in modules] for part, names in linear.items()}
        if bare := [part for part, names in linear.items() if not names]:
            raise InputError(f"{who} needs linear maps in the {bare[0]}, and that of {backbone.path} has none")
        everything = module_names(backbone.model)
        self.names = [name for names in linear.values() for name in names]
        """Of the modules, in ``backbone.model``."""
        self.pattern = "|".join(pattern(names, everything) for names in linear.values())
        """A regular expression that matches their names, whole, and no other module's."""


def pattern(names: Sequence[str], everything: Sequence[str]) -> str:
    """A regular expression that matches these names, whole, and no other; short where one can be."""
    split = [name.split(".") for name in names]
    shared = commonprefix([each[:-1] for each in split])  # commonprefix takes lists, too
    within = "".join(rf"{re.escape(each)}\." for each in shared)
    ends = "|".join(sorted({re.escape(each[-1]) for each in split}))
    short = rf"{within}(?:.*\.)?(?:{ends})"
    matched = {name for name in everything if re.fullmatch(short, name)}
    return short if matched == set(names) else "|".join(re.escape(name) for name in names)


def module_names(model: nn.Module) -> list[str]:
    """The names that the modules have, or had before adapters came."""
    inside = {id(module) for layer in tuner_layers(model) for module in layer.modules() if module is not layer}
    return [name for name, module in model.named_modules() if name and id(module) not in inside]


def _linear_maps(backbone: Parted, part: Part) -> list[str]:
    added = {id(parameter) for parameter in adapter_parameters(backbone.model)}
    inside = {
        id(module)
        for module in backbone.parts[part].modules()
        # What attention of torch has for an output is read for its weight and never called.
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
        if module is not backbone.head and id(module.weight) not in added
    }
    return [name.removesuffix(".base_layer") for name, module in backbone.model.named_modules() if id(module) in inside]


def check_parts(who: str, parts: Sequence[Part], train: Sequence[Part]) -> None:
    """Raise InputError unless the parts with adapters and those that train whole are different parts."""
    if not parts or (unknown := {*parts, *train} - set(PARTS)):
        came = ", ".join(sorted(unknown)) if parts else "none"
        raise InputError(f"{who} needs parts out of {', '.join(PARTS)}, got {came}")
    if both := [part for part in parts if part in train]:
        raise InputError(
            f"{who}: the {both[0]} cannot be frozen beneath an adapter and train whole; name it in parts or in train"
        )


def check_numbers(who: str, *, rank: int, scaling: float, dropout: float) -> None:
    """Raise InputError for a rank below 1, a scaling that is not above 0, a dropout outside of [0, 1)."""
    if rank < 1:
        raise InputError(f"{who} needs a rank of at least 1, got {rank}")
    if not 0 < scaling < float("inf"):
        raise InputError(f"{who} needs a scaling above 0, got {scaling}")
    if not 0 <= dropout < 1:
        raise InputError(f"{who} needs a dropout of at least 0 and below 1, got {dropout}")


def check_whole(who: str, backbone: Parted, parts: Sequence[Part]) -> None:
    """Raise InputError unless all weights of these parts can be trained."""
    for parameter, part in backbone.part_of():
        if part in parts and not parameter.is_floating_point():
            raise InputError(f"{who} cannot train the {part} of {backbone.path} whole, which is in 4 bits")


def add(backbone: Parted, configs: "Mapping[str, LoraConfig]", *, train: Sequence[Part], who: str) -> None:
    """Put new adapters in place; they train, with the parts named, and nothing else does.

    Adapters that are there already, of an earlier stage say, stay as they are, frozen and at work.

    Args:
        configs: By name; a name that is taken gets a number.

    Raises:
        InputError: There are adapters that these cannot stand beside, or a part that is to train is in 4 bits.
    """
    check_whole(who, backbone, train)
    there = adapters_of(backbone.model)
    for old in there.values():
        kinds = {config.peft_type for config in (old, *configs.values())}
        if len(kinds) > 1 or any(config.use_dora for config in (old, *configs.values())):
            do = "start from what `alignlab export` makes of it, where that is merged"
            if old.peft_type == "PLORA":
                do = "beside them, PLoRA with ranks of {all: ...} is LoRA of the language model"
            raise InputError(
                f"{who} cannot be put beside the adapters that {backbone.path} has, of another type or with DoRA's "
                f"magnitudes, whose effects do not add up; {do}"
            )
    before = [*adapter_parameters(backbone.model)]
    put(backbone.model, {_free(name, there): config for name, config in configs.items()})
    backbone.requires_grad_(False)
    for parameter, part in backbone.part_of():
        parameter.requires_grad_(part in train)
    for parameter in adapter_parameters(backbone.model):
        parameter.requires_grad_(True)
    for parameter in before:
        parameter.requires_grad_(False)


def put(model: nn.Module, configs: "Mapping[str, LoraConfig]") -> None:
    """Put adapters of one type into a model, which stays of its class; all that it has are active then.

    Beside weights of 16 bits their own are of 32, as peft has it: small steps would be lost on others.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    first, *others = configs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[configs[first].peft_type](model, {first: configs[first]}, first)
    for name in others:
        tuner.peft_config[name] = configs[name]
        tuner.inject_adapter(model, name)
    for name in configs:
        tuner._cast_adapter_dtype(name)
    tuner.set_adapter(list(tuner.peft_config))


def adapters_of(model: Any) -> "dict[str, LoraConfig]":
    """The configs of a model's adapters, by name."""
    return dict(getattr(model, "peft_config", {}))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _free(name: str, taken: Mapping[str, Any]) -> str:
    names = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 2)))
    return next(each for each in names if each not in taken)
