"""layers: the configs of a study's arms, each made of what is laid over what."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.experiment.reading import merge, parse_override, put, show
from alignlab.experiment.reading import read as read_experiment
from alignlab.experiment.stages import STAGE
from alignlab.study.arms import Arm
from alignlab.study.axes import Value
from alignlab.study.file import Start, StudyFile
from alignlab.study.keys import files

PATH = "backbone.path"


Configs = dict[str, dict[str, Any]]


def arm_configs(file: StudyFile, faults: list[str]) -> tuple[Configs, dict[str, Configs]]:
    """Base, the arm's files, the study's overrides, the arm's keys, the values of the axes, the command line.

    Each is laid over the last; a setting that is tried in tuning lies between the axes and the command line.
    Nothing is resolved where a file cannot be read: its keys would be missed in every arm.

    Returns:
        The configs of the arms, and of each those that are tried, by the setting's label.
    """
    unread = len(faults) if file.base else -1
    base = _over({"python_path": [str(file.path.resolve().parent)]}, file.base, faults)
    written: Configs = {}
    configs: Configs = {}
    tried: dict[str, Configs] = {}
    for name, arm in file.arms.items():
        if arm.written not in written:
            written[arm.written] = _written(file, arm, base, faults)
        config = written[arm.written]
        for value in arm.values:
            config = _laid(config, value, faults)
        configs[name] = _last(file, config)
        settings = () if file.tune is None else file.tune.settings[name]
        tried[name] = {value.label: _last(file, _laid(config, value, faults)) for value in settings}
    readable = len(faults) == unread
    faults += _contested(file, configs)
    return (configs, tried) if readable else ({}, {})


def _written(file: StudyFile, arm: Arm, base: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """An arm before the axes."""
    paths = files(file.path, f"arm {arm.written}: base", arm.keys["base"], faults) if "base" in arm.keys else ()
    own = {key: value for key, value in arm.keys.items() if key != "base"}
    return merge(merge(_over(base, paths, faults), file.overrides), own)


def _laid(config: dict[str, Any], value: Value, faults: list[str]) -> dict[str, Any]:
    """Lay a value of an axis, or a setting, over a config."""
    config = merge(_over(config, value.files, faults), value.keys)
    try:
        return put(config, value.key, value.value, (), f"{value.where}={show(value.value)}") if value.key else config
    except InputError as error:
        faults.append(str(error).removeprefix("override "))
        return config


def _last(file: StudyFile, config: dict[str, Any]) -> dict[str, Any]:
    for change in file.last:
        config = put(config, *parse_override(change), (), change)
    return config


def _over(config: dict[str, Any], paths: Sequence[Path], faults: list[str]) -> dict[str, Any]:
    """Lay experiment files over a config; own classes are looked for in the folders of all of them."""
    for path in paths:
        try:
            above = read_experiment(path)
        except InputError as error:
            faults.append(str(error))
            continue
        folders = [*above.get("python_path", ()), *config["python_path"]]
        config = {**merge(config, above), "python_path": list(dict.fromkeys(folders))}
    return config


def placing(group: str, config: dict[str, Any], arm: str, start: Start, seed: int) -> dict[str, Any]:
    """What makes a cell of an arm: seed, start, and its place in Weights & Biases.

    Args:
        group: The study's name.
    """
    wandb = config.get("wandb")
    tags = wandb.get("tags") if isinstance(wandb, dict) else None
    tags = [*(tags if isinstance(tags, list) else ()), arm, start.name, f"seed{seed}"]
    mirror = {"group": group, "name": f"{arm}-{start.name}-seed{seed}", "tags": tags}
    placing: dict[str, Any] = {"seed": seed, "wandb": mirror}
    if start.path is None:
        return placing
    backbone = {"backbone": {"path": start.path}}
    # The stages that go on from another one keep their place.
    begin = {name: stage for name, stage in (config.get("stages") or {}).items() if not _from_stage(stage)}
    if not _from_stage(config):
        placing |= backbone
        # Those that train may begin elsewhere, but pairs are of the backbone that is trained on them.
        begin = {name: stage for name, stage in begin.items() if stage.get("pairs") is not None}
    return {**placing, "stages": {name: backbone for name in begin}} if begin else placing


def _from_stage(config: dict[str, Any]) -> bool:
    path = _path(config)
    return isinstance(path, str) and path.startswith(STAGE)


def own_start(config: dict[str, Any]) -> str:
    """The name of the one start of a study that names none: its baseline's checkpoint."""
    path = _path(config)
    return Path(path).name if isinstance(path, str) else "base"


def is_judged(keys: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether an arm names a model by its path and trains nothing: it is judged as it is, whatever the start.

    Args:
        keys: The arm's own.
        config: All of the arm's.
    """
    trainer = config.get("trainer")
    trains = not isinstance(trainer, dict) or trainer.get("max_steps") != 0
    if trains or _path(keys) is None or _from_stage(config):
        return False
    return not any(config["backbone"].get(other) for other in ("fresh", "take"))


def _path(config: dict[str, Any]) -> Any:
    backbone = config.get("backbone")
    return backbone.get("path") if isinstance(backbone, dict) else None


def _contested(file: StudyFile, configs: dict[str, dict[str, Any]]) -> list[str]:
    """What is said of keys that the study itself sets for every cell, so that it would have no effect."""
    faults = [f"overrides: {key}: {why}" for key, _, why, _ in _decided(file, file.overrides)]
    for name, arm in file.arms.items():
        decided = [
            each for each in _decided(file, arm.keys) if each[0] != PATH or not is_judged(arm.keys, configs[name])
        ]
        more = "; a model that is judged as it is has trainer.max_steps 0 and no fresh parts"
        own = f"arm {arm.written}"
        faults += [f"{own}: {key}: {why}{more if key == PATH else ''}" for key, _, why, _ in decided]
        tried = () if file.tune is None else file.tune.settings[name]
        for value in (*arm.values, *tried):
            keys = put({}, value.key, value.value, (), "") if value.key else value.keys
            faults += [f"{value.where}: {key}: {why}" for key, _, why, _ in _decided(file, keys)]
    for change in file.last:
        for _, value, why, instead in _decided(file, put({}, *parse_override(change), (), change)):
            use = f"; use --{instead} {shlex.quote(show([value]))}" if instead else ""
            faults.append(f"override {change!r}: {why}{use}")
    return list(dict.fromkeys(faults))


def _decided(file: StudyFile, changes: dict[str, Any]) -> Iterator[tuple[str, Any, str, str | None]]:
    """The key, its value, why it is the study's, and the study's own key for it."""
    if "seed" in changes:
        yield "seed", changes["seed"], "a study's seeds stand under its key 'seeds'", "seeds"
    backbone, wandb = changes.get("backbone"), changes.get("wandb")
    if file.starts and isinstance(backbone, dict) and "path" in backbone and not _from_stage(changes):
        yield PATH, backbone["path"], "the study's key 'starts' sets backbone.path for all arms", "starts"
    if isinstance(wandb, dict) and "group" in wandb:
        why = f"the cells of a study are the group {file.path.stem!r}, named after its file"
        yield "wandb.group", wandb["group"], why, None
