"""arms: what a study compares, every arm that is written at every point of the axes, and what with what."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.study.axes import Exclusion, Point, Value
from alignlab.study.keys import distinct, meant, seeds

PARTS = ("baseline", "oracle", "placebo")

OWN = ("seeds", "against", "tune")
"""Keys of an arm that are the study's; the others are an experiment's."""


@dataclass(frozen=True)
class Arm:
    """An arm at one value of every axis.

    Args:
        name: What was written and the labels of the values: ``MLE, lr 0.001``.
        written: Its name in the file; empty where there are axes alone.
        keys: What was written of it, without the study's own keys.
        point: The values of the axes; empty where there are none.
        seeds: Its own, where it does not have all of the study's.
        against: What it is said to be compared with, as it is written.
        tune: Its own settings to be tried, as they are written.
    """

    name: str
    written: str
    keys: dict[str, Any]
    point: Point = ()
    seeds: tuple[int, ...] | None = None
    against: str | None = None
    tune: Any = None

    @property
    def values(self) -> list[Value]:
        return [value for _, value in self.point]


def read_written(value: Any, axes: bool, faults: list[str]) -> dict[str, dict[str, Any]]:
    """Check the study's key ``arms``, which may be left out where there are ``axes``."""
    if value is None and axes:
        return {"": {}}
    if not isinstance(value, dict) or not value:
        faults.append(f"arms: expected a mapping of at least one name to its overrides, got {value!r}")
        return {}
    arms = {}
    for name, overrides in value.items():
        if not isinstance(name, str):
            faults.append(f"arms: a name must be text, got {name!r}; put it in quotes")
        if isinstance(overrides, dict | None):
            arms[str(name)] = dict(overrides or {})
        else:
            faults.append(f"arm {name}: expected a mapping of experiment keys, got {overrides!r}")
    distinct("arms", map(str, value), faults)
    return arms


def expand(
    written: Mapping[str, dict[str, Any]],
    points: Sequence[Point],
    exclude: Sequence[Exclusion],
    of_study: tuple[int, ...],
    faults: list[str],
) -> dict[str, Arm]:
    """Every arm at every point that is not excluded.

    Args:
        of_study: Its seeds.
    """
    arms: list[Arm] = []
    used = [False] * len(exclude)
    for name, keys in written.items():
        own = {key: value for key, value in keys.items() if key not in OWN}
        its = _own_seeds(name, keys["seeds"], of_study, faults) if "seeds" in keys else None
        against = str(keys["against"]) if "against" in keys else None
        for point in points:
            out = [each.has(name, point) for each in exclude]
            used = [before or now for before, now in zip(used, out, strict=True)]
            if not any(out):
                full = ", ".join(filter(None, (name, *(value.label for _, value in point))))
                arms.append(Arm(full, name, own, point, its, against, keys.get("tune")))
    faults += [
        f"exclude: number {number} leaves nothing out: no arm has all of it"
        for number, was in enumerate(used, 1)
        if not was and written
    ]
    if written and points and not arms:
        faults.append("exclude: it leaves no arm")
    if any(points):
        distinct("axes", [arm.name for arm in arms], faults)
    return {arm.name: arm for arm in arms}


def _own_seeds(arm: str, value: Any, of_study: tuple[int, ...], faults: list[str]) -> tuple[int, ...]:
    own = seeds(value, f"arm {arm}: seeds", faults)
    if others := [str(seed) for seed in own if seed not in of_study]:
        faults.append(f"arm {arm}: seeds: {', '.join(others)} is not among the study's seeds, {list(of_study)}")
    return tuple(seed for seed in own if seed in of_study)


def meanings(arms: Mapping[str, Arm]) -> dict[str, list[str]]:
    """What each name stands for: an arm's own for it alone, as it is written for it at every point."""
    found: dict[str, list[str]] = {}
    for arm in arms.values():
        found.setdefault(arm.written, []).append(arm.name)
    return {name: names for name, names in found.items() if name} | {name: [name] for name in arms}


def read_parts(content: Mapping[str, Any], arms: Mapping[str, Arm], faults: list[str]) -> dict[str, str | None]:
    """The arms that play a part: the baseline, which is the first arm unless one is named, the oracle, the placebo.

    The name of an arm as it is written stands for it at the first values of the axes.
    """
    written, known = content.get("arms"), meanings(arms)
    names = dict.fromkeys((*arms, *(map(str, written) if isinstance(written, dict) else ())))
    parts: dict[str, str | None] = {}
    for part in PARTS:
        name = None if content.get(part) is None else str(content[part])
        if name is not None and name not in names and name not in known:
            faults.append(f"{part}: no arm is called {content[part]!r}{meant(name, names)}")
        name = known.get(name, [name])[0] if name is not None else None
        faults += [
            f"{part}: {name!r} is the {other} already; an arm plays one part"
            for other, taken in parts.items()
            if taken is not None and taken == name
        ]
        parts[part] = next(iter(arms), "") if name is None and part == "baseline" else name
    return parts


def read_against(
    baseline: Any, arms: Mapping[str, Arm], parts: Mapping[str, str | None], faults: list[str]
) -> dict[str, str]:
    """What arms are compared with that are not compared with the baseline.

    An arm named as it is written is meant at the same point. So is the baseline: where it is named so, or left out,
    the others are compared with it at their own point, where it is there.

    Args:
        baseline: As it is written; None where it is left out.
    """
    at = {(arm.written, _labels(arm)): arm.name for arm in arms.values()}
    against = {}
    for arm in arms.values():
        if arm.against is not None:
            there = arm.against in arms or all(other.written != arm.against for other in arms.values())
            same = arm.against if there else at.get((arm.against, _labels(arm)))
            if same is None:
                faults.append(f"arm {arm.name}: against: {arm.against} is excluded at this point of the axes")
            else:
                against[arm.name] = same
        elif arm.name not in parts.values() and (baseline is None or str(baseline) not in arms):
            main = arms.get(parts["baseline"])
            same = None if main is None or main.written == arm.written else at.get((main.written, _labels(arm)))
            if same not in (None, parts["baseline"]):
                against[arm.name] = same
    return against


def _labels(arm: Arm) -> tuple[str, ...]:
    return tuple(value.label for value in arm.values)


def incomparable(
    seeds: Mapping[str, tuple[int, ...]], against: Mapping[str, str], parts: Mapping[str, str | None]
) -> Iterator[str]:
    """What keeps an arm from being compared with another; ``seeds`` has those of every arm."""
    plays = {arm: part for part, arm in parts.items() if arm is not None}
    for arm, other in against.items():
        if other == arm:
            yield f"arm {arm}: against: it is itself"
        elif other not in seeds:
            yield f"arm {arm}: against: no arm is called {other!r}{meant(other, seeds)}"
        if arm in plays:
            yield f"arm {arm}: against: it is the {plays[arm]}, which is compared with the baseline alone"
    for arm, own in seeds.items():
        reference = against.get(arm, parts["baseline"])
        if set(own) - set(seeds.get(reference, own)):
            yield f"arm {arm} has seeds that {reference}, which it is compared with, lacks; give that one all of them"
