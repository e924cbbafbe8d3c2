"""consistency: what one key of a config says, held against the others and against what is there."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.errors import InputError
from alignlab.experiment.catalogue import find, kind_called
from alignlab.experiment.checking import Checker
from alignlab.experiment.commands import data_path, words_of
from alignlab.experiment.reading import Key, near
from alignlab.experiment.stages import STAGE, named_stages


def check_consistency(resolved: Mapping[str, Any], checker: Checker, stages: Mapping[str, bool]) -> None:
    """Add what of one resolved stage does not fit; ``stages`` are those before it, and whether each builds pairs."""
    _check_backbone(resolved["backbone"], checker, stages)
    _check_data(resolved, checker, stages)
    if resolved["optimization"] is not None:
        _check_optimization(resolved["optimization"], checker)
    if resolved["command"] is not None:
        _check_command(resolved, checker)
    _check_fields(resolved, checker)


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
    from alignlab.objectives import Optimization

    if any(problem.key[0] == "optimization" for problem in checker.problems):
        return
    try:
        Optimization(**values)
    except InputError as error:
        checker.add(("optimization",), str(error).removeprefix("optimization: "))


def _check_fields(resolved: Mapping[str, Any], checker: Checker) -> None:
    """Compare what objective and evaluators require with what the data supply."""
    data, objective = resolved.get("data"), resolved.get("objective")
    if objective:
        fields = required_fields(objective, checker.folders)
        _check_supplied(("objective",), objective, fields, data, checker, filled=_filled(data))
    if resolved.get("pairs"):
        if (resolved.get("backbone") or {}).get("fresh"):
            why = "pairs would be the answers of parts drawn at random, and not of those that are trained; set it to []"
            checker.add(("backbone", "fresh"), why)
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
