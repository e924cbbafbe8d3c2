"""tuning: the same few settings tried for every arm, on validation data, and which of them was best."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.study.arms import Arm
from alignlab.study.axes import Value, labelled, short
from alignlab.study.keys import distinct, meant, seeds
from alignlab.study.naming import audited, lower_is_better
from alignlab.study.state import METRICS, State, read_json, state

KEYS = ("settings", "metric", "seeds", "starts")

DEFAULT = "default"
"""The label of an arm's own config, which is always tried."""


def tuned_name(arm: str) -> str:
    """What an arm is called with the best of its settings."""
    return f"{arm}, tuned"


@dataclass(frozen=True)
class Tune:
    """What the study's key ``tune`` says.

    Args:
        settings: Those tried beside each arm's own config, as many for every arm.
        metric: What they are chosen by, of each arm.
        seeds: Of the cells of tuning.
        starts: Theirs, by name; empty for the first.
    """

    settings: dict[str, tuple[Value, ...]]
    metric: dict[str, str]
    seeds: tuple[int, ...]
    starts: tuple[str, ...]


@dataclass(frozen=True)
class Tuning:
    """What was tried for each arm, and what came out.

    Args:
        settings: The labels of what is tried, the arm's own config (``default``) first.
        metric: What they are chosen by.
        scores: Mean of the metric over the cells of tuning, by label; None where it is not known.
        chosen: The label of the best; None while it is not known, and where all failed.
        tried: How many settings have a score; those of the same content count once.
        pending: Arms whose cells of tuning are not all done.
    """

    settings: dict[str, tuple[str, ...]]
    metric: dict[str, str]
    scores: dict[str, dict[str, float | None]]
    chosen: dict[str, str | None]
    tried: dict[str, int]
    pending: tuple[str, ...]

    def manifest(self) -> dict[str, Any]:
        """As a study's manifest holds it."""
        return asdict(self)

    @classmethod
    def read(cls, content: Mapping[str, Any] | None) -> "Tuning | None":
        """As a manifest holds it; None where nothing is tuned."""
        if content is None:
            return None
        settings = {arm: tuple(labels) for arm, labels in content["settings"].items()}
        return cls(**{**content, "settings": settings, "pending": tuple(content["pending"])})


@dataclass(frozen=True)
class Trial:
    """A cell of tuning: what it tries of which arm, and where it is."""

    arm: str
    setting: str
    directory: Path
    digest: str

    @property
    def state(self) -> State:
        return state(self.directory, self.digest)

    def score(self, metric: str) -> float | None:
        """The finished cell's score; None where it has none that is finite."""
        value = (read_json(self.directory / METRICS) or {}).get("scores", {}).get(metric)
        return value if value is not None and math.isfinite(value) else None


def read_tune(
    study: Path, content: Any, arms: Mapping[str, Arm], of_study: tuple[int, ...], faults: list[str]
) -> Tune | None:
    """Check the study's key ``tune``, and those of its arms.

    Args:
        of_study: The study's seeds, of which the first is the default.
    """
    own = {arm.written: arm.tune for arm in arms.values() if arm.tune is not None}
    if content is None:
        faults += [f"arm {arm}: tune: the study's key 'tune' is missing, which says by what metric" for arm in own]
        return None
    if not isinstance(content, dict):
        faults.append(f"tune: expected {{settings: ..., metric: ...}}, got {content!r}")
        return None
    faults += [f"tune: unknown key {key!r}{meant(str(key), KEYS)}" for key in content if key not in KEYS]
    faults += [f"tune: {key} is missing" for key in ("settings", "metric") if key not in content]
    shared = _settings(study, "tune: settings", content["settings"], faults) if "settings" in content else ()
    mine = {arm: _own_settings(study, arm, tune, len(shared), faults) for arm, tune in own.items()}
    distinct("arms", [*arms, *map(tuned_name, arms)], faults)
    starts = content.get("starts", [])
    if not isinstance(starts, list) or not all(isinstance(start, str) for start in starts):
        faults.append(f"tune: starts: expected a list of names of starts, got {starts!r}")
        starts = []
    return Tune(
        settings={name: mine.get(arm.written, shared) for name, arm in arms.items()},
        metric=_metric(content["metric"], arms, faults) if "metric" in content else {},
        seeds=seeds(content["seeds"], "tune: seeds", faults) if "seeds" in content else of_study[:1] or (0,),
        starts=tuple(starts),
    )


def _settings(study: Path, where: str, content: Any, faults: list[str]) -> tuple[Value, ...]:
    if not isinstance(content, dict) or not content:
        faults.append(f"{where}: expected labels with overrides, or dotted keys with lists, got {content!r}")
        return ()
    found: list[Value] = []
    for label, value in content.items():
        if isinstance(value, list):
            found += short(where, str(label), value, faults)
        else:
            found += labelled(study, where, label, value, faults)
    if DEFAULT in [value.label for value in found]:
        faults.append(f"{where}: {DEFAULT} is the arm's own config, which is always tried; give it another label")
    distinct(where, [value.label for value in found], faults)
    return tuple(found)


def _own_settings(study: Path, arm: str, content: Any, wanted: int, faults: list[str]) -> tuple[Value, ...]:
    """An arm's own settings, which have to be as many as the others'."""
    where = f"arm {arm}: tune"
    if not isinstance(content, dict) or content.keys() != {"settings"}:
        faults.append(f"{where}: expected {{settings: ...}}, got {content!r}; all else is the study's")
        return ()
    found = _settings(study, f"{where}: settings", content["settings"], faults)
    if len(found) != wanted:
        faults.append(f"{where}: settings: {len(found)} where the other arms have {wanted}; every arm gets as many")
    return found


def _metric(content: Any, arms: Mapping[str, Arm], faults: list[str]) -> dict[str, str]:
    """The metric of every arm, from one for all or from a mapping of arms, as they are written or at one point."""
    if isinstance(content, str):
        by_arm = dict.fromkeys(arms, content)
    elif isinstance(content, dict):
        names = dict.fromkeys([*arms, *(arm.written for arm in arms.values())])
        faults += [
            f"tune: metric: no arm is called {arm!r}{meant(str(arm), names)}" for arm in content if arm not in names
        ]
        by_arm = {name: content.get(name, content.get(arm.written)) for name, arm in arms.items()}
        lacking = [name for name, metric in by_arm.items() if metric is None]
        if lacking:
            faults.append(f"tune: metric: {', '.join(lacking)} has none")
    else:
        faults.append(f"tune: metric: expected a name such as caption/exact, or one for each arm, got {content!r}")
        return {}
    for metric in (metric for metric in by_arm.values() if metric is not None):
        if not isinstance(metric, str) or "/" not in metric or audited(metric) is not None:
            faults.append(f"tune: metric: expected a name such as caption/exact, got {metric!r}")
            return {}
    return {arm: metric for arm, metric in by_arm.items() if metric is not None}


def choose(trials: Iterable[Trial], metric: Mapping[str, str]) -> tuple[Tuning, list[str]]:
    """What the cells of tuning say; where settings are equally good the first is taken, an arm's own before all.

    Args:
        trials: Of every arm, in the order of its settings.

    Returns:
        The outcome, and notes for the reader.
    """
    by_arm: dict[str, dict[str, list[Trial]]] = {}
    for trial in trials:
        by_arm.setdefault(trial.arm, {}).setdefault(trial.setting, []).append(trial)
    scores: dict[str, dict[str, float | None]] = {}
    chosen: dict[str, str | None] = {}
    pending, notes = [], []
    for arm, settings in by_arm.items():
        states = [trial.state for tried in settings.values() for trial in tried]
        missing = any(each not in ("finished", "failed") for each in states)
        scores[arm] = {label: _mean(tried, metric[arm]) for label, tried in settings.items()}
        known = {label: score for label, score in scores[arm].items() if score is not None}
        if missing:
            pending.append(arm)
        else:
            out = [label for label in settings if label not in known]
            notes += [f"Tuning {arm}: {label} has no {metric[arm]}; it is out." for label in out]
        if not missing and not known:
            notes.append(f"{tuned_name(arm)} is left out: none of its settings has a score.")
        best = (min if lower_is_better(metric[arm]) else max)(known, key=known.__getitem__, default=None)
        chosen[arm] = None if missing else best
    if pending:
        notes.insert(0, f"Tuned once all cells of their tuning are done: {'; '.join(pending)}.")
    tried = {arm: _different(settings, scores[arm]) for arm, settings in by_arm.items()}
    labels = {arm: tuple(settings) for arm, settings in by_arm.items()}
    metrics = {arm: metric[arm] for arm in by_arm}
    return Tuning(labels, metrics, scores, chosen, tried, tuple(pending)), notes


def _different(settings: Mapping[str, Sequence[Trial]], scores: Mapping[str, float | None]) -> int:
    """How many settings with a score are not the same as another."""
    return len({tuple(t.digest for t in tried) for label, tried in settings.items() if scores[label] is not None})


def _mean(trials: Sequence[Trial], metric: str) -> float | None:
    """Of all cells of a setting; None where one of them failed."""
    values = [trial.score(metric) if trial.state == "finished" else None for trial in trials]
    return None if None in values else math.fsum(values) / len(values)
