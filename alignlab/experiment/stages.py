"""stages: what ``stage:NAME`` in settings stands for, and what a stage that builds pairs has of its experiment."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.experiment.checking import Checker
from alignlab.experiment.reading import Key, merge

STAGE = "stage:"
"""``stage:NAME`` is what this earlier stage wrote: in the backbone's settings a backbone, in those of data pairs."""

DEVICES = ("accelerator", "devices")
"""What of the trainer building pairs uses."""


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


def without_stages(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {name: without_stages(item) for name, item in node.items() if not str(item).startswith(STAGE)}


def named_stages(node: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Where settings name an earlier stage, and which."""
    if isinstance(node, str) and node.startswith(STAGE):
        yield key, node.removeprefix(STAGE)
    elif isinstance(node, Mapping | list):
        for name, item in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from named_stages(item, (*key, str(name)))


def with_stages(value: Any, place: Callable[[str], Path | str]) -> Any:
    """Settings with what stands in place of each ``stage:NAME``."""
    if isinstance(value, str) and value.startswith(STAGE):
        return str(place(value.removeprefix(STAGE)))
    if isinstance(value, dict):
        return {key: with_stages(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [with_stages(item, place) for item in value]
    return value


def of_pairs(shared: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
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


def refuse_unused(changes: Mapping[str, Any], resolved: Mapping[str, Any], checker: Checker) -> None:
    """Add a problem for each key of a stage that builds pairs which would have no effect."""
    given = {(name,): value for name, value in changes.items() if name in resolved and name != "trainer"}
    trainer = changes.get("trainer")
    given |= {("trainer", name): value for name, value in (trainer.items() if isinstance(trainer, Mapping) else ())}
    for key, value in given.items():
        default = resolved[key[0]].get(key[1]) if key[1:] else resolved[key[0]]
        if key[-1] not in ("backbone", "data", "pairs", *DEVICES) and value not in (None, default):
            checker.add(key, "has no effect in a stage that builds pairs, which trains nothing; leave it out")
