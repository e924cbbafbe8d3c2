"""From a config as written to one that is checked whole and states every default."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from alignlab.errors import InputError
from alignlab.experiment.catalogue import Argument, find, folders_used, kind_called, kind_of, search
from alignlab.experiment.checking import Checker, Problem, plain
from alignlab.experiment.commands import data_path, folders_of_scripts, words_of
from alignlab.experiment.reading import Key, merge, near

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

TRAINING = ("objective", "adapter", "optimization")
"""The keys that say how alignlab trains; where a command does instead, or only pairs are built, they are None."""

DEVICES = ("accelerator", "devices")
"""What of the trainer building pairs uses."""

STAGE = "stage:"
"""``stage:NAME`` is what this earlier stage wrote: in the backbone's settings a backbone, in those of data pairs."""


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


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a whole config and fill every default in; resolving the result gives it again.

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
    resolved = _resolve_one(main, checker, builds_pairs)
    resolved["stages"] = {}
    # What a later stage takes from an earlier one is no setting of the earlier one, nor is what trains instead of ours.
    shared = {name: value for name, value in main.items() if name != "command"}
    shared["backbone"] = _without_stages(main.get("backbone"))
    known = {(problem.key, problem.message) for problem in checker.problems}
    for index, (name, changes) in enumerate(stages.items()):
        inner = Checker(folders)
        whole = _of_pairs(shared, changes) if builds_pairs[name] else merge(shared, changes)
        before = dict(tuple(builds_pairs.items())[:index])
        resolved["stages"][name] = _resolve_one(whole, inner, before) | {"stages": {}}
        if builds_pairs[name]:
            _refuse_unused(changes, resolved["stages"][name], inner)
        new = (problem for problem in inner.problems if (problem.key, problem.message) not in known)
        checker.problems += [Problem(("stages", name, *problem.key), problem.message) for problem in new]
    if checker.problems:
        raise ConfigError(checker.problems)
    for part in (*resolved["stages"].values(), resolved):
        used = {*folders_used(part, folders), *folders_of_scripts(part, folders)}
        part["python_path"] = [folder for folder in dict.fromkeys((*folders, str(Path.cwd()))) if folder in used]
    return resolved


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


def _of_pairs(shared: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage that builds pairs has of its experiment: no more than decides the pairs, so that arms can share it.

    These are the backbone, the data where it names none of its own, and where to compute.
    """
    own = changes.get("data")
    names = isinstance(own, str) or (isinstance(own, Mapping) and "class_path" in own)
    kept = merge(_deciding(shared), _deciding(changes))
    return {**kept, "data": own} if names else kept


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: config[name] for name in ("backbone", "data", "pairs", "trainer") if name in config}
    if isinstance(kept.get("trainer"), Mapping):
        kept["trainer"] = {name: value for name, value in kept["trainer"].items() if name in DEVICES}
    return kept


def _refuse_unused(changes: Mapping[str, Any], resolved: Mapping[str, Any], checker: Checker) -> None:
    """Add a problem for each key of a stage that builds pairs which would have no effect."""
    given = {(name,): value for name, value in changes.items() if name in KEYS and name != "trainer"}
    trainer = changes.get("trainer")
    given |= {("trainer", name): value for name, value in (trainer.items() if isinstance(trainer, Mapping) else ())}
    for key, value in given.items():
        default = resolved[key[0]].get(key[1]) if key[1:] else resolved[key[0]]
        if key[-1] not in ("backbone", "data", "pairs", *DEVICES) and value not in (None, default):
            checker.add(key, "has no effect in a stage that builds pairs, which trains nothing; leave it out")


def outlined(settings: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved backbone settings whose ``stage:NAME`` is replaced by what that stage itself starts from.

    Raises:
        InputError: A stage gives a dual encoder where another kind is needed.
    """
    path, text_tower = settings["path"], settings["text_tower"]
    while path.startswith(STAGE):
        before = stages[path.removeprefix(STAGE)]["backbone"]
        if text_tower is not None and before["text_tower"] is not None:
            raise InputError(f"backbone.text_tower: {path} has a text tower of its own; leave text_tower out")
        path, text_tower = before["path"], text_tower or before["text_tower"]
    while text_tower is not None and text_tower.startswith(STAGE):
        before = stages[text_tower.removeprefix(STAGE)]["backbone"]
        if before["text_tower"] is not None:
            raise InputError(
                f"backbone.text_tower: {text_tower} is a dual encoder; what reads the texts has to be a language model"
            )
        text_tower = before["path"]
    return {**settings, "path": path, "text_tower": text_tower, "take": None}


def _without_stages(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {name: _without_stages(item) for name, item in node.items() if not str(item).startswith(STAGE)}


@cache
def _arguments() -> dict[str, Argument]:
    """The top-level keys that hold one value; the others hold the arguments of one class."""
    from alignlab.adapters import Adapter
    from alignlab.backbones.parted import Dtype
    from alignlab.data import AlignmentData
    from alignlab.evaluation import Evaluator
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


def _resolve_one(config: Mapping[str, Any], checker: Checker, stages: Mapping[str, bool]) -> dict[str, Any]:
    """Resolve one stage; ``stages`` are those that came before it, and whether each builds pairs."""
    from alignlab.experiment.pairs import PairSettings

    trains = config.get("command") is None and config.get("pairs") is None
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
    _check_backbone(resolved["backbone"], checker, stages)
    _check_data(resolved, checker, stages)
    if trains:
        _check_optimization(resolved["optimization"], checker)
    elif resolved["command"] is not None:
        _check_command(resolved, checker)
    _check_fields(resolved, checker)
    return resolved


def _check_backbone(backbone: Mapping[str, Any], checker: Checker, stages: Mapping[str, bool]) -> None:
    from alignlab.backbones import locate

    wanted = {("backbone", key): backbone.get(key) for key in ("path", "text_tower")}
    wanted |= {("backbone", "take", part): path for part, path in (backbone.get("take") or {}).items()}
    for key, path in wanted.items():
        if not isinstance(path, str):
            continue
        if path.startswith(STAGE):
            name = path.removeprefix(STAGE)
            if name not in stages:
                _refuse_stage(key, name, checker, stages)
            elif stages[name]:
                checker.add(key, f"the stage {name!r} builds pairs, and writes no backbone")
            continue
        try:
            locate(path)
        except InputError as error:
            checker.add(key, str(error).removeprefix("backbone.path: "))


def _check_data(resolved: Mapping[str, Any], checker: Checker, stages: Mapping[str, bool]) -> None:
    """Check that the pairs which data name come from earlier stages that build some."""
    for part in ("data", "evaluators"):
        for key, name in named_stages(resolved.get(part), (part,)):
            if name not in stages:
                _refuse_stage(key, name, checker, stages)
            elif not stages[name]:
                checker.add(key, f"the stage {name!r} builds no pairs; one with the key pairs does")


def named_stages(node: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Where settings name an earlier stage, and which."""
    if isinstance(node, str) and node.startswith(STAGE):
        yield key, node.removeprefix(STAGE)
    elif isinstance(node, Mapping | list):
        for name, item in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from named_stages(item, (*key, str(name)))


def _refuse_stage(key: Key, name: str, checker: Checker, stages: Mapping[str, bool]) -> None:
    before = f" (before it come {', '.join(stages)})" if stages else ""
    checker.add(key, f"there is no earlier stage {name!r}{near(name, stages)}{before}")


def _check_command(resolved: Mapping[str, Any], checker: Checker) -> None:
    command, data = resolved["command"], resolved["data"]
    try:
        words_of(command, checker.folders)
    except InputError as error:
        checker.add(("command",), str(error))
    if "{data}" in command and data and data_path(data) is None:
        checker.add(("command",), f"it says {{data}}, data's path, and {data['class_path']} has none")
    if "{steps}" in command and resolved["trainer"].get("max_steps", 0) < 0:
        checker.add(("command",), "it says {steps}; set trainer.max_steps")


def _check_optimization(values: Mapping[str, Any], checker: Checker) -> None:
    if any(problem.key[0] == "optimization" for problem in checker.problems):
        return
    try:
        _owners()["optimization"](**values)
    except InputError as error:
        checker.add(("optimization",), str(error).removeprefix("optimization: "))


def _check_fields(resolved: Mapping[str, Any], checker: Checker) -> None:
    """Compare what objective and evaluators require with what the data supply."""
    data, objective = resolved.get("data"), resolved.get("objective")
    if objective:
        fields = required_fields(objective, checker.folders)
        _check_supplied(("objective",), objective, fields, data, checker, filled=_filled(data))
    if resolved.get("pairs"):
        _check_supplied(("pairs",), {"class_path": "building pairs"}, ("conversation",), data, checker)
    labels: dict[str, str] = {}
    for index, evaluator in enumerate(resolved.get("evaluators") or ()):
        if evaluator is None:
            continue
        key = ("evaluators", str(index))
        found = find(kind_called("evaluator"), evaluator["class_path"], checker.folders)[1]
        if not hasattr(found, "name") or not hasattr(found, "requires"):
            checker.add(
                key, f"{found.__name__} must state `name` (its scores' prefix) and `requires` (fields of Example)"
            )
            continue
        settings = evaluator["init_args"]
        label = settings.get("label") or found.name
        if (twin := labels.setdefault(label, ".".join(key))) != ".".join(key):
            checker.add(key, f"its scores would be called {label}, as those of {twin}; give one of them a label")
        own = (*key, "init_args", "data")
        if any(problem.key[: len(own)] == own for problem in checker.problems):
            continue
        judged = settings.get("data") or data
        _check_supplied(key, evaluator, found.requires, judged, checker)
        _check_split(key, settings.get("split"), judged, checker)


def _check_supplied(
    key: Key,
    reader: Mapping[str, Any],
    fields: Sequence[str],
    data: Mapping[str, Any] | None,
    checker: Checker,
    *,
    filled: tuple[str, ...] = (),
) -> None:
    """Add a problem where a field is neither supplied nor, as training alone sees it, ``filled`` from a file."""
    supplies = find(kind_called("data module"), data["class_path"], checker.folders)[1].supplies if data else None
    # A data module may only know what it supplies once it is made; the reader then checks it itself.
    if isinstance(supplies, tuple) and (lacking := [field for field in fields if field not in supplies + filled]):
        needs = f"{reader['class_path']} requires {', '.join(fields)}"
        has = f"data {data['class_path']} supplies {', '.join(supplies) or 'nothing'}"
        checker.add(key, f"{needs}, but {has}; it lacks {', '.join(lacking)}")


def _filled(data: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The fields of Example that files fill, which the data's settings name."""
    from alignlab.data.base import FILLED

    return tuple(field for name, field in FILLED.items() if data and data["init_args"].get(name) is not None)


def _check_split(key: Key, split: str | None, data: Mapping[str, Any] | None, checker: Checker) -> None:
    splits = find(kind_called("data module"), data["class_path"], checker.folders)[1].splits if data else None
    if isinstance(splits, tuple) and split is not None and split not in splits:
        has = f"data {data['class_path']} has only {', '.join(splits)}"
        checker.add((*key, "init_args", "split"), f"there is no {split} split: {has}")


def required_fields(objective: Mapping[str, Any], folders: Sequence[str] = ()) -> tuple[str, ...]:
    """The fields of Example that a resolved objective needs, those of the objectives inside it included."""
    own: tuple[str, ...] = ()
    if isinstance(objective.get("class_path"), str):
        try:
            own = tuple(find(kind_called("objective"), objective["class_path"], folders)[1].requires)
        except InputError:
            own = ()  # something else with a class_path
    inner = [item for item in objective.values() if isinstance(item, Mapping)]
    return tuple(dict.fromkeys((*own, *(field for item in inner for field in required_fields(item, folders)))))
