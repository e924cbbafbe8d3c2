"""opening: the model that a command names, and the data of its config."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alignlab.backbones import Backbone, DualEncoder, open_backbone, packaged
from alignlab.data.base import Split
from alignlab.data.teachers import BackboneTeacher, SentenceTeacher, Teacher
from alignlab.errors import InputError
from alignlab.experiment.config import Experiment
from alignlab.experiment.run import load
from alignlab.experiment.training import device_of

SPLITS: tuple[Split, ...] = ("train", "val")
"""What training reads."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is done, how many are done, and of how many."""


def backbone_named(name: str, experiment: Experiment, *, option: str = "--model") -> Backbone | DualEncoder:
    """The backbone of a run directory, or of a directory or name as ``backbone.path`` takes it.

    Its type, attention and longest sequence are those of the config, unless it is a run's, which has its own.

    Args:
        option: What it was named by, for messages.
    """
    if is_run(Path(name)):
        return load(name).to(device_of(experiment))
    settings = {**experiment.backbone, "path": name, "fresh": (), "take": None, "text_tower": None}
    try:
        return open_backbone(**settings).eval().to(device_of(experiment))
    except InputError as error:
        raise InputError(f"{option}: {str(error).removeprefix('backbone.path: ')}") from None


def teacher_named(name: str, experiment: Experiment) -> Teacher:
    """A backbone as ``backbone_named`` opens it, or a model of sentence-transformers.

    A directory is the latter's if it holds ``modules.json``, as all of those do; a name that is no directory and no
    packaged checkpoint is looked for there.
    """
    folder = Path(name)
    if name in packaged() or (folder.is_dir() and not (folder / "modules.json").is_file()):
        return BackboneTeacher(backbone_named(name, experiment), name)
    if not folder.is_dir() and name.startswith((".", "/", "~")):
        raise InputError(f"--model: there is no directory {name}")
    return SentenceTeacher(name, device_of(experiment))


def data_in_words(config: Mapping[str, Any]) -> str:
    """The data of a config with the settings that say which, not how they are loaded."""
    ways = ("batch_size", "num_workers", "group_by_length", "shuffle_buffer", "embeddings", "mined")
    settings = {name: value for name, value in config["data"]["init_args"].items() if name not in ways}
    return f"{config['data']['class_path']}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


def check_there(who: str, source: str) -> None:
    """Raise InputError for what is no directory, no packaged checkpoint, and looks like no name of the hub."""
    folder = Path(source)
    if not folder.is_dir() and source not in packaged() and (folder.parent.is_dir() or source.count("/") != 1):
        raise InputError(
            f"{who}: there is no directory {source}, and the packaged checkpoints are {', '.join(packaged())}"
        )


def is_run(folder: Path) -> bool:
    """Whether it is, or was to become, a run directory."""
    return (folder / "config.yaml").is_file()
