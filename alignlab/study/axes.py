"""axes: settings that multiply the arms of a study, walked in full or together, and what is left out of them."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.experiment.reading import Key, show
from alignlab.study.keys import files, meant

ARM = "arm"
"""The key of an exclusion that names an arm as it is written; the others name axes."""


@dataclass(frozen=True)
class Value:
    """One value of an axis, or one setting that is tried in tuning.

    Args:
        where: Where it was written, for messages.
        label: What it adds to the name of an arm.
        files: Experiment files that are laid over the arm first.
        keys: Overrides that are laid over it then.
        key: Of the short form, the one key that it sets; empty for the others.
        value: What it sets it to.
    """

    where: str
    label: str
    files: tuple[Path, ...] = ()
    keys: dict[str, Any] = field(default_factory=dict)
    key: Key = ()
    value: Any = None


Point = tuple[tuple[str, Value], ...]
"""One value of every axis, by the axis's name."""


def short(where: str, key: str, values: Sequence[Any], faults: list[str]) -> list[Value]:
    """The values of a dotted key, each labelled with the key's last part: ``lr 0.001``."""
    parts = tuple(key.split("."))
    if not values or not all(parts):
        faults.append(f"{where}: expected a dotted key with a list of at least one value, got {list(values)!r}")
        return []
    return [Value(where, f"{parts[-1]} {_shown(value)}", key=parts, value=value) for value in values]


def labelled(study: Path, where: str, label: Any, value: Any, faults: list[str]) -> list[Value]:
    """What stands under a label: overrides, of which the key ``base`` names files, or files alone."""
    where = f"{where}: {label}"
    if not isinstance(label, str):
        faults.append(f"{where}: a label must be text; put it in quotes")
        return []
    if isinstance(value, str | list):
        return [Value(where, label, files(study, where, value, faults))]
    if not isinstance(value, dict | None):
        faults.append(f"{where}: expected a mapping of experiment keys, or experiment files, got {value!r}")
        return []
    keys = dict(value or {})
    named = files(study, f"{where}: base", keys.pop("base"), faults) if "base" in keys else ()
    return [Value(where, label, named, keys)]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else show(value)


def read_axes(study: Path, content: Any, faults: list[str]) -> dict[str, list[Value]]:
    """Check the study's key ``axes``; what is wrong is left out of the result."""
    if content is None:
        return {}
    if not isinstance(content, dict) or not content:
        faults.append(f"axes: expected a mapping of names to values, or of dotted keys to lists, got {content!r}")
        return {}
    axes = {}
    for name, values in content.items():
        where = f"axes: {name}"
        if str(name) == ARM:
            faults.append(f"{where}: exclude calls the arms so; give the axis another name")
        if isinstance(values, list):
            axes[str(name)] = short(where, str(name), values, faults)
        elif isinstance(values, dict) and values:
            named = [labelled(study, where, label, value, faults) for label, value in values.items()]
            axes[str(name)] = list(itertools.chain(*named))
        else:
            faults.append(f"{where}: expected a mapping of labels to overrides, or a list of values, got {values!r}")
    return axes


def read_points(axes: Mapping[str, list[Value]], zipped: Any, faults: list[str]) -> list[Point]:
    """All values of an axis with all of the others, but for axes that the study's key ``zip`` walks together."""
    groups = {name: [name] for name in axes}
    for names in _zipped(axes, zipped, faults):
        groups[names[0]] = names
        for name in names[1:]:
            groups.pop(name)
    walked = [
        [tuple(zip(names, values, strict=True)) for values in zip(*(axes[name] for name in names), strict=True)]
        for names in groups.values()
    ]
    order = list(axes)
    points = (itertools.chain(*parts) for parts in itertools.product(*walked))
    return [tuple(sorted(point, key=lambda part: order.index(part[0]))) for point in points]


def _zipped(axes: Mapping[str, list[Value]], content: Any, faults: list[str]) -> Iterator[list[str]]:
    """The groups of axes that are walked together and may be."""
    if content is None:
        return
    if not isinstance(content, list) or not all(isinstance(names, list) and len(names) > 1 for names in content):
        faults.append(f"zip: expected a list of lists of at least two axes, got {content!r}")
        return
    taken: set[str] = set()
    for names in content:
        wrong = [f"zip: no axis is called {name!r}{meant(str(name), axes)}" for name in names if name not in [*axes]]
        twice = [name for i, name in enumerate(map(str, names)) if name in taken or name in names[:i]]
        wrong += [f"zip: {name} stands there more than once; an axis is walked once" for name in twice]
        lengths = [] if wrong else [len(axes[name]) for name in names]
        if not wrong and len(set(lengths)) > 1:
            each = ", ".join(f"{name} {length}" for name, length in zip(names, lengths, strict=True))
            wrong = [f"zip: axes that are walked together have as many values as each other; these have: {each}"]
        faults += wrong
        if not wrong:
            taken.update(names)
            yield names


@dataclass(frozen=True)
class Exclusion:
    """What leaves arms out: those that have all of it.

    Args:
        arm: As it is written; None for any.
        values: Of axes.
    """

    arm: str | None
    values: Point

    def has(self, arm: str, point: Point) -> bool:
        return self.arm in (None, arm) and all(any(part is other for _, other in point) for _, part in self.values)


def read_exclude(
    content: Any, axes: Mapping[str, list[Value]], arms: Sequence[str], faults: list[str]
) -> list[Exclusion]:
    """Check the study's key ``exclude``; what is wrong is left out of the result.

    Args:
        arms: Their names as they are written.
    """
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(item, dict) and item for item in content):
        faults.append(f"exclude: expected a list, each {{arm: NAME, AXIS: VALUE, ...}}, got {content!r}")
        return []
    found = []
    for number, item in enumerate(content, 1):
        wrong: list[str] = []
        values = [(name, _value(name, value, axes, wrong)) for name, value in item.items() if name != ARM]
        if ARM in item and item[ARM] not in arms:
            wrong.append(f"arm: no arm is written {item[ARM]!r}{meant(str(item[ARM]), arms)}")
        faults += [f"exclude: number {number}: {fault}" for fault in wrong]
        if not wrong:
            found.append(Exclusion(item.get(ARM), tuple(values)))
    return found


def _value(name: Any, value: Any, axes: Mapping[str, list[Value]], wrong: list[str]) -> Value | None:
    """The value of an axis that is named by its label or, in the short form, by itself."""
    if name not in axes:
        wrong.append(f"{name}: no axis is called so{meant(str(name), [ARM, *axes])}")
        return None
    named = (each for each in axes[name] if value == each.label or (each.key and value == each.value))
    if (found := next(named, None)) is None:
        labels = [_shown(each.value) if each.key else each.label for each in axes[name]]
        wrong.append(f"{name}: has no value {_shown(value)}{meant(_shown(value), labels)}")
    return found
