"""From a config as written to one that is checked whole and states every default."""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from alignlab.errors import InputError
from alignlab.experiment.catalogue import Argument, folders_used, kind_of, search
from alignlab.experiment.checking import Checker, Problem, plain
from alignlab.experiment.commands import folders_of_files
from alignlab.experiment.consistency import check_consistency
from alignlab.experiment.reading import merge, near
from alignlab.experiment.stages import of_pairs, refuse_unused, without_stages

TRAINER_REFUSED = {
    "logger": "is set by alignlab: curve.jsonl is always written; for Weights & Biases see wandb.mode",
    "default_root_dir": "is set by alignlab: it is the run directory, --output on the command line",
    "enable_progress_bar": "is set by alignlab, which has its own progress bar",
    "enable_model_summary": "is set by alignlab: metrics.json counts the parameters",
    "enable_checkpointing": "is set by alignlab, which always keeps checkpoints/last.ckpt; see checkpoint_every",
    "use_distributed_sampler": "is set by alignlab: the data's own order knows the processes",
    "enable_autolog_hparams": "is set by alignlab: config.yaml holds the hyper-parameters",
    "model_registry": "is set by alignlab: a run directory is its own registry",
    "fast_dev_run": "would write no checkpoint; use trainer.max_steps",
    "barebones": "would write no checkpoint and no metrics",
}

KEYS = (
    "objective",
    "backbone",
    "adapter",
    "data",
    "optimization",
    "trainer",
    "evaluators",
    "wandb",
    "seed",
    "checkpoint_every",
    "save_dtype",
    "command",
    "stages",
    "pairs",
    "python_path",
)

PLACING = (("seed",), ("wandb", "group"), ("wandb", "name"), ("wandb", "tags"), ("backbone", "path"))
"""The keys that say which run of an experiment one is: they change no other key of a resolved config."""

TRAINING = ("objective", "adapter", "optimization")
"""The keys that say how alignlab trains; where a command does instead, or only pairs are built, they are None."""


class ConfigError(InputError):
    """All problems of a config, one a line."""

    def __init__(self, problems: Sequence[Problem], lines: Sequence[str] | None = None) -> None:
        super().__init__("\n".join(lines or map(str, problems)))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class WandbSettings:
    """Where Weights & Biases mirrors a run; changes nothing of the run itself.

    Args:
        mode: offline writes files that ``wandb sync`` uploads; online needs an account.
        project: The project on W&B.
        entity: User or team; None: the account's default.
        group: What the run belongs to, e.g. a study.
        name: The run's name; None: alignlab makes one.
        tags: Words to filter by.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "alignlab"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()


def resolve(config: Mapping[str, Any], *, trains: bool = True) -> dict[str, Any]:
    """Check a whole config and fill every default in; resolving the result gives it again.

    Args:
        trains: Whether the config is one to train by; where it is one to judge by, it has no objective.

    Raises:
        ConfigError: All problems at once.
    """
    checker = Checker()
    folders = _folders(config, checker)
    search(folders)
    checker.folders = tuple(folders)
    main = {name: value for name, value in config.items() if name not in ("python_path", "stages")}
    stages = _stages(config, checker)
    if main.get("pairs") is not None:
        checker.add(("pairs",), "is a key of a stage, whose pairs a later one trains on: stages: {NAME: {pairs: ...}}")
        main["pairs"] = None
    builds_pairs = {name: changes.get("pairs") is not None for name, changes in stages.items()}
    resolved = _resolve_one(main, checker, builds_pairs, trains=trains)
    resolved["stages"] = {}
    wholes = _wholes(main, stages)
    known = {(problem.key, problem.message) for problem in checker.problems}
    for index, (name, changes) in enumerate(stages.items()):
        inner = Checker(folders)
        before = dict(tuple(builds_pairs.items())[:index])
        resolved["stages"][name] = _resolve_one(wholes[name], inner, before) | {"stages": {}}
        if builds_pairs[name]:
            refuse_unused(changes, resolved["stages"][name], inner)
        new = (problem for problem in inner.problems if (problem.key, problem.message) not in known)
        checker.problems += [Problem(("stages", name, *problem.key), problem.message) for problem in new]
    if checker.problems:
        raise ConfigError(checker.problems)
    _keep_used(folders, resolved)
    return resolved


def moved(resolved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``resolve`` gives of another run of a resolved experiment, in much less time.

    Args:
        config: As written; differs from what was resolved by ``PLACING`` alone, and each of these keys has, where it
            stands in either, values of the right type and paths that exist.
    """
    main = {name: value for name, value in config.items() if name not in ("python_path", "stages")}
    wholes = _wholes(main, _stages(config, Checker()))
    copy = _with_places(resolved, main)
    copy["stages"] = {name: _with_places(stage, wholes[name]) for name, stage in resolved["stages"].items()}
    _keep_used(_folders(config, Checker()), copy)
    return copy


def _with_places(resolved: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with its own values of ``PLACING``; what is not written has its default, as it has already."""
    copy = deepcopy({name: value for name, value in resolved.items() if name != "stages"}) | {"stages": {}}
    for *above, last in PLACING:
        ours, theirs = copy, written
        for name in above:
            ours, theirs = ours[name], theirs.get(name) or {}
        if last in theirs:
            ours[last] = plain(theirs[last])
    return copy


def _wholes(main: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every stage with what it has of its experiment."""
    # What a later stage takes from an earlier one is no setting of the earlier one, nor is what trains instead of ours.
    shared = {name: value for name, value in main.items() if name != "command"}
    shared["backbone"] = without_stages(main.get("backbone"))
    return {
        name: merge(shared, changes) if changes.get("pairs") is None else of_pairs(shared, changes)
        for name, changes in stages.items()
    }


def _keep_used(folders: Sequence[str], resolved: dict[str, Any]) -> None:
    """Keep of the folders those that classes or files were found in."""
    for part in (*resolved["stages"].values(), resolved):
        used = {*folders_used(part, folders), *folders_of_files(part, folders)}
        part["python_path"] = [folder for folder in dict.fromkeys((*folders, str(Path.cwd()))) if folder in used]


def _folders(config: Mapping[str, Any], checker: Checker) -> list[str]:
    folders = config.get("python_path") or []
    if isinstance(folders, list) and all(isinstance(folder, str) for folder in folders):
        return folders
    checker.add(("python_path",), f"expected a list of folders, got {folders!r}")
    return []


def _stages(config: Mapping[str, Any], checker: Checker) -> dict[str, dict[str, Any]]:
    stages = config.get("stages") or {}
    if not isinstance(stages, Mapping) or not all(isinstance(changes or {}, Mapping) for changes in stages.values()):
        checker.add(("stages",), f"expected a mapping of names to what differs in each stage, got {stages!r}")
        return {}
    result = {}
    for name, changes in stages.items():
        if not re.fullmatch(r"[\w-]+", str(name)):
            checker.add(("stages", str(name)), "names its folder: expected letters, digits, - and _ alone")
        changes = dict(changes or {})
        changes.pop("python_path", None)
        if changes.pop("stages", None):
            checker.add(("stages", str(name), "stages"), "a stage has no stages of its own; list all of them in order")
        result[str(name)] = changes
    return result


@cache
def _arguments() -> dict[str, Argument]:
    """The top-level keys that hold one value; the others hold the arguments of one class."""
    from alignlab.adapters import Adapter
    from alignlab.data import AlignmentData
    from alignlab.evaluation import Evaluator
    from alignlab.modules.parted import Dtype
    from alignlab.objectives import Objective

    return {
        "objective": Argument(Objective, MISSING),
        "command": Argument(str | None, None),
        "adapter": Argument(Adapter | None, None),
        "data": Argument(AlignmentData, MISSING),
        "evaluators": Argument(tuple[Evaluator, ...], ()),
        "seed": Argument(NonNegativeInt, 0),
        "checkpoint_every": Argument(PositiveInt, 100),
        "save_dtype": Argument(Dtype | None, None),
    }


@cache
def _owners() -> dict[str, type | Callable]:
    from lightning.pytorch import Trainer

    from alignlab.backbones import open_backbone
    from alignlab.objectives import Optimization

    return {"backbone": open_backbone, "optimization": Optimization, "trainer": Trainer, "wandb": WandbSettings}


def _resolve_one(
    config: Mapping[str, Any], checker: Checker, stages: Mapping[str, bool], *, trains: bool = True
) -> dict[str, Any]:
    """Resolve one stage; ``stages`` are those that came before it, and whether each builds pairs."""
    from alignlab.experiment.pairs import PairSettings

    trains = trains and config.get("command") is None and config.get("pairs") is None
    for name in config:
        if name not in KEYS:
            reason = "is read from files only" if name == "base" else f"no such key{near(name, KEYS)}"
            checker.add((str(name),), f"{reason} (the keys are base, {', '.join(KEYS)})")
    resolved: dict[str, Any] = {}
    for name in KEYS:
        value = config.get(name)
        if name in TRAINING and not trains:
            resolved[name] = None
        elif name == "pairs":
            resolved[name] = None if value is None else checker.arguments(PairSettings, value, (name,))
        elif name in _owners():
            refused = TRAINER_REFUSED if name == "trainer" else None
            resolved[name] = checker.arguments(_owners()[name], value, (name,), refused=refused)
        elif name in _arguments():
            argument = _arguments()[name]
            if value is not None:
                resolved[name] = checker.value(argument.annotation, value, (name,))
            elif argument.required:
                kind = kind_of(argument.annotation)
                checker.add((name,), f"missing; {kind.package} has {', '.join(sorted(kind.classes()))}")
            else:
                resolved[name] = plain(argument.default)
    check_consistency(resolved, checker, stages)
    return resolved
