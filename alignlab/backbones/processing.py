"""processing: a model's processor, read without its video side where that alone cannot be read here."""

import copy
import json
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import PushToHubMixin, cached_file

from alignlab.backbones.locations import locate
from alignlab.errors import InputError

VIDEO = "video_processor"
READERS = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
"""What reads the parts of a processor of pictures and texts."""

FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")


class VideoSettings(PushToHubMixin):
    """In place of a video processor: its settings, which are saved again as they came; None where it names none.

    Args:
        settings: Of the video processor, as its directory has them.
    """

    _auto_class = None
    model_input_names: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "settings":  # as where it is being copied
            raise AttributeError(name)
        return self.settings.get(name)

    def to_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.settings)


def read_processor(path: str, config: PreTrainedConfig, *, key: str = "path") -> Any:
    """Read a processor; where a package that videos need is missing, all of it but for its video processor.

    Args:
        config: Of its model.
        key: The setting that the path was given in.

    Raises:
        InputError: It cannot be read.
    """
    folder = locate(path, key=key)
    try:
        try:
            return AutoProcessor.from_pretrained(folder)
        except ImportError:
            kind = PROCESSOR_MAPPING.get(type(config), None)
            if kind is None or {*kind.get_attributes()} != {VIDEO, *READERS}:  # of sounds, too, say
                raise
            return _without_videos(folder, kind)
    except (OSError, ValueError, ImportError) as error:
        while error.__cause__ is not None:  # which names the package that is missing, say
            error = error.__cause__
        first = str(error).strip().splitlines()[0]
        raise InputError(f"backbone.{key}: {path} lacks what its processor needs: {first}") from None


def _without_videos(folder: str, kind: Any) -> Any:
    class ImagesOnly(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != VIDEO]

    settings = kind.get_processor_dict(folder)[0] | {VIDEO: None}
    parts = {name: READERS[name].from_pretrained(folder) for name in ImagesOnly.get_attributes()}
    processor = ImagesOnly.from_args_and_dict([], settings, **parts)
    processor.__class__ = kind  # which says the same of itself from here on, and is saved under its own name
    processor.video_processor = VideoSettings(_video_settings(folder))
    return processor


def _video_settings(folder: str) -> dict[str, Any]:
    for name in FILES:
        file = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
        found = {} if file is None else json.loads(Path(file).read_text())
        found = found.get(VIDEO, {}) if name == FILES[0] else found
        if found:
            return found
    return {}
