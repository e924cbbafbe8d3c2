"""reading: models of transformers from their directories, or drawn anew from their configs."""

from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

from alignlab.backbones.locations import locate
from alignlab.backbones.saving import is_adapted, read_adapted
from alignlab.errors import InputError

UNREADABLE = (OSError, ValueError, ImportError)
"""What transformers raises for a missing file, another kind of model, or an attention that is not installed."""


def read_model(auto: Any, path: str, settings: dict[str, Any], *, what: str, key: str = "path") -> Any:
    """Read a model and its weights, with its adapters in place where it was saved with some.

    Args:
        auto: The class of transformers that knows models of this kind.
        settings: Keywords of ``from_pretrained``.
        what: The kind, for messages.
        key: The setting that the path was given in.
    """
    folder = locate(path, key=key)
    if is_adapted(folder):
        return read_adapted(
            folder,
            read=lambda base: read_model(auto, base, settings, what=what, key=key),
            draw=lambda: random_model(auto, path, settings, what=what, key=key),
        )
    try:
        return auto.from_pretrained(folder, use_safetensors=True, **settings)
    except SafetensorError as error:
        raise InputError(f"backbone.{key}: the weights in {path} cannot be read: {error}") from None
    except UNREADABLE as error:
        raise _unreadable(path, what, key, error) from None


def random_model(auto: Any, path: str, settings: dict[str, Any], *, what: str, key: str = "path") -> Any:
    """Draw a model of a directory's config from torch's global generator; its weights are not read."""
    config = read_config(path, what=what, key=key)
    try:
        return auto.from_config(config, **settings)
    except UNREADABLE as error:
        raise _unreadable(path, what, key, error) from None


def read_config(path: str, *, what: str, key: str = "path") -> Any:
    """Read a model's config."""
    folder = locate(path, key=key)
    try:
        return AutoConfig.from_pretrained(folder)
    except UNREADABLE as error:
        raise _unreadable(path, what, key, error) from None


def model_type(path: str, *, key: str = "path") -> str:
    """The model type that a config names, also one that transformers does not know; empty where it names none."""
    folder = locate(path, key=key)
    try:
        return PreTrainedConfig.get_config_dict(folder)[0].get("model_type", "")
    except UNREADABLE as error:
        raise _unreadable(path, "model", key, error) from None


def _unreadable(path: str, what: str, key: str, error: Exception) -> InputError:
    return InputError(f"backbone.{key}: {path} cannot be read as a {what}: {str(error).strip().splitlines()[0]}")
