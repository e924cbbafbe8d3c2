"""storing: adapters on disk, in peft's own format."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from alignlab.adapters.placing import adapters_of, put
from alignlab.adapters.switching import adapter_parameters
from alignlab.errors import InputError
from alignlab.modules.parted import Dtype

PREFIX, WEIGHTS = "base_model.model.", "adapter_model.safetensors"
"""What peft puts before names, and its file."""


def write_adapters(model: Any, folder: Path, *, base: str, dtype: Dtype | None) -> None:
    """Write a model's adapters as ``PeftModel.from_pretrained`` reads them, several into a folder each.

    Args:
        base: What they were trained from, a directory or a hub name; peft notes it.
        dtype: Of the weights; None: as they are.
    """
    from peft import get_peft_model_state_dict

    configs = adapters_of(model)
    for name, config in configs.items():
        place = _place(folder, name, configs)
        place.mkdir(parents=True, exist_ok=True)
        weights = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        weights = {PREFIX + key.removeprefix(PREFIX): value.contiguous() for key, value in weights.items()}
        if dtype is not None:
            weights = {key: value.to(getattr(torch, dtype)) for key, value in weights.items()}
        save_file(weights, place / WEIGHTS, metadata={"format": "pt"})
        config = copy.copy(config)
        config.inference_mode, config.base_model_name_or_path = True, base
        config.save_pretrained(place)


def read_adapters(model: Any, folder: Path, names: Sequence[str]) -> None:
    """Put written adapters into a model: frozen, and all of them active.

    Raises:
        InputError: They are damaged, or do not fit the model.
    """
    from peft import PeftConfig, set_peft_model_state_dict

    places = {name: _place(folder, name, names) for name in names}
    try:
        said = [json.loads((place / "adapter_config.json").read_text()) for place in places.values()]
        if any(each["peft_type"] == "PLORA" for each in said):
            import alignlab.adapters.plora  # noqa: F401  so that peft knows the type
        configs = {name: PeftConfig.from_pretrained(str(place)) for name, place in places.items()}
        with torch.random.fork_rng(devices=[]):  # what is drawn is not what is kept
            put(model, configs)
        for name in names:
            weights = load_file(places[name] / WEIGHTS)
            result = set_peft_model_state_dict(model, weights, adapter_name=name)
            added = {id(parameter) for parameter in adapter_parameters(model, name)}
            wanted = {key for key, each in model.state_dict(keep_vars=True).items() if id(each) in added}
            if wrong := [*sorted(wanted.intersection(result.missing_keys)), *result.unexpected_keys]:
                raise ValueError(f"{wrong[0]} is on one side alone")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"the adapters in {folder} cannot be put into the model they belong to: {first}") from None
    model.requires_grad_(False)
    model.train(model.training)  # dropout of the new ones included


def _place(folder: Path, name: str, names: Any) -> Path:
    return folder if len(names) == 1 else folder / name
