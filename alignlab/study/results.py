"""results: what the cells of a study have left behind, read from its directory alone."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alignlab.errors import InputError
from alignlab.study.claims import Registered, registered
from alignlab.study.costs import Costs, stage_costs, together
from alignlab.study.examination import Examination, examinations
from alignlab.study.naming import Blind, Pair, audited, is_chance
from alignlab.study.state import FAILURE, MANIFEST, METRICS, State, read_json, read_lines, state
from alignlab.study.tuning import Tuning

Judgements = tuple[tuple[str, ...], np.ndarray]
"""Names of items in their order, and their values."""


@dataclass(frozen=True)
class CellResult:
    """One cell and its run directory."""

    arm: str
    start: str
    seed: int
    directory: Path
    digest: str
    differs: dict[str, Any]
    state: State

    @property
    def pair(self) -> Pair:
        return self.start, self.seed

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``; empty where the cell is not finished."""
        return (read_json(self.directory / METRICS) or {}) if self.finished else {}

    @cached_property
    def scores(self) -> dict[str, float]:
        """Finite scores by metric; those of blind audits stand apart."""
        return {name: value for name, value in self._finite.items() if audited(name) is None}

    @cached_property
    def blind(self) -> dict[Blind, float]:
        """Finite scores of blind audits."""
        return {audit: value for name, value in self._finite.items() if (audit := audited(name)) is not None}

    @property
    def _finite(self) -> dict[str, float]:
        scores = self.metrics.get("scores", {})
        return {name: value for name, value in scores.items() if value is not None and math.isfinite(value)}

    @property
    def seconds(self) -> float | None:
        """Training and evaluation together."""
        return sum(self.metrics["seconds"].values()) if "seconds" in self.metrics else None

    @property
    def trained(self) -> int | None:
        """Parameters that were trained."""
        return self.metrics.get("parameters", {}).get("trained")

    @cached_property
    def costs(self) -> Costs:
        """What the cell itself used up, without its stages; all unknown where it is not finished."""
        return Costs.of(self.metrics)

    @cached_property
    def stages(self) -> dict[Path, Costs]:
        """What the stages that the cell builds on used up, by their directories."""
        return stage_costs(self.directory) if self.finished else {}

    @cached_property
    def whole_costs(self) -> Costs:
        """What the cell used up, stages included: those that it shares with others as well."""
        return together((*self.stages.values(), self.costs))

    @cached_property
    def examinations(self) -> dict[str, Examination]:
        """What each evaluator asked, by its label."""
        return examinations(self.directory, self.metrics.get("scores", {})) if self.finished else {}

    @property
    def reason(self) -> str | None:
        """Why a failed cell failed, in one line."""
        if self.state != "failed":
            return None
        failure = read_json(self.directory / FAILURE) or {}
        return " ".join(str(failure.get("message", "unknown")).split())

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Steps and values of a logged metric, of unfinished cells too."""
        lines = [line for line in self._curve if line.get(metric) is not None and math.isfinite(line[metric])]
        return [line["step"] for line in lines], [line[metric] for line in lines]

    @cached_property
    def _curve(self) -> list[dict[str, Any]]:
        return read_lines(self.directory / "curve.jsonl")

    def items(self, evaluator: str) -> list[dict[str, Any]]:
        """What an evaluator wrote down item by item."""
        return read_lines(self.directory / "items" / f"{evaluator}.jsonl")

    def judged(self, metric: str) -> Judgements | None:
        """What each item adds to a metric; None where no items are kept or their mean is not the score."""
        evaluator, _, name = metric.partition("/")
        if evaluator not in self._judged:
            self._judged[evaluator] = _judgements(self.items(evaluator))
        found = self._judged[evaluator].get(name)
        score = self.scores.get(metric)
        if found is None or score is None or not math.isclose(found[1].mean(), score, rel_tol=1e-6, abs_tol=1e-9):
            return None
        return found

    @cached_property
    def _judged(self) -> dict[str, dict[str, Judgements]]:
        return {}

    @property
    def evaluators(self) -> list[str]:
        return sorted(file.stem for file in (self.directory / "items").glob("*.jsonl"))

    @property
    def versions(self) -> dict[str, Any]:
        return read_json(self.directory / "versions.json") or {}


def _judgements(items: list[dict[str, Any]]) -> dict[str, Judgements]:
    """Items by what they add to; none for a metric to which two items of one name add."""
    columns: dict[str, list[tuple[str, float]]] = {}
    for item in items:
        for name, value in item.get("metrics", {}).items():
            columns.setdefault(name, []).append((sys.intern(item["id"]), value))
    found = {}
    for name, column in columns.items():
        ids, values = zip(*sorted(column), strict=True)
        if len({*ids}) == len(ids):
            found[name] = ids, np.array(values, dtype=np.float64)
    return found


def _cells(directory: Path, lines: Iterable[Mapping[str, Any]]) -> tuple[CellResult, ...]:
    """The cells that a manifest names."""
    places = [(line, directory / line["directory"]) for line in lines]
    return tuple(CellResult(**{**line, "directory": at}, state=state(at, line["digest"])) for line, at in places)


@dataclass(frozen=True)
class Results:
    """A study as its directory tells it."""

    directory: Path
    name: str
    description: str
    command: str
    arms: tuple[str, ...]
    starts: tuple[str, ...]
    seeds: tuple[int, ...]
    against: dict[str, str]
    baseline: str
    oracle: str | None
    placebo: str | None
    headline: tuple[str, ...]
    tradeoff: tuple[str, ...]
    claims: tuple[Registered, ...]
    notes: tuple[str, ...]
    cells: tuple[CellResult, ...]
    tuned: dict[str, str] = field(default_factory=dict)
    tuning: Tuning | None = None
    trials: tuple[CellResult, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> "Results":
        """Read a study directory.

        Raises:
            InputError: It is none.
        """
        manifest = read_json(directory / MANIFEST)
        if manifest is None:
            what = f"there is no {MANIFEST} in it" if directory.is_dir() else "there is no such directory"
            raise InputError(f"{directory}: not the directory of a study: {what}; `alignlab study run` makes one")
        cells, trials = (_cells(directory, manifest.get(key, ())) for key in ("cells", "trials"))
        lists = {key: tuple(manifest[key]) for key in ("arms", "starts", "seeds", "notes")}
        texts = {key: manifest[key] for key in ("name", "description", "command", "baseline")}
        texts |= {key: manifest.get(key) for key in ("oracle", "placebo")}
        lists |= {"headline": tuple(manifest["metrics"]), "tradeoff": tuple(manifest.get("tradeoff", ()))}
        lists |= {"claims": registered(manifest.get("claims", ())), "cells": cells, "trials": trials}
        maps = {key: manifest.get(key, {}) for key in ("against", "tuned")}
        return cls(directory, **texts, **lists, **maps, tuning=Tuning.read(manifest.get("tuning")))

    @property
    def pending(self) -> bool:
        """Whether arms are missing until cells of tuning are done, as it was when the study was planned last."""
        return self.tuning is not None and bool(self.tuning.pending)

    @property
    def finished(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.finished]

    @property
    def others(self) -> list[str]:
        """The arms beside the baseline."""
        return [arm for arm in self.arms if arm != self.baseline]

    @property
    def unit(self) -> Literal["start", "seed"]:
        """What intervals and tests count: starts, each the mean of its seeds; seeds where there is a single start."""
        return "start" if len(self.starts) > 1 else "seed"

    @cached_property
    def memory(self) -> dict[Any, Any]:
        """What others have computed of these results, which never change, by keys of their own."""
        return {}

    def reference(self, arm: str) -> str:
        """The arm that another is compared with."""
        return self.against.get(arm, self.baseline)

    def copies(self, arm: str, other: str) -> bool:
        """Whether an arm has no cells of its own, but another's: a tuned one that stays at its default."""
        return {cell.directory for cell in self.of(arm)} <= {cell.directory for cell in self.of(other)}

    def label(self, arm: str) -> str:
        """An arm's name beside its differences; with what they are to, where that is not the baseline."""
        return f"{arm} (against {self.against[arm]})" if arm in self.against else arm

    @cached_property
    def all_metrics(self) -> list[str]:
        """Every metric that a finished cell has, in the order of the evaluators."""
        return list(dict.fromkeys(metric for cell in self.finished for metric in cell.scores))

    @property
    def metrics(self) -> list[str]:
        """The metrics of the tables: the headline ones, else all but the levels of chance."""
        return list(self.headline) or [metric for metric in self.all_metrics if not is_chance(metric)]

    @property
    def parts(self) -> dict[str, str]:
        """The arms that play a part, and which."""
        parts = {self.baseline: "baseline", self.oracle: "oracle", self.placebo: "placebo"}
        return {arm: part for arm, part in parts.items() if arm is not None}

    @cached_property
    def audits(self) -> dict[str, list[str]]:
        """How each metric with a blind audit was blinded, the metrics of the tables first; chance needs no audit."""
        audits: dict[str, list[str]] = {metric: [] for metric in self.metrics}
        for metric, how in dict.fromkeys(audit for cell in self.finished for audit in cell.blind):
            if not is_chance(metric):
                audits.setdefault(metric, []).append(how)
        return {metric: hows for metric, hows in audits.items() if hows}

    def of(self, arm: str) -> list[CellResult]:
        """The cells of an arm."""
        return [cell for cell in self.cells if cell.arm == arm]

    def done(self, arm: str) -> int:
        """How many cells of an arm are finished."""
        return sum(cell.finished for cell in self.of(arm))

    def values(self, arm: str, metric: str) -> dict[Pair, float]:
        """A metric of an arm's finished cells."""
        return {cell.pair: cell.scores[metric] for cell in self.of(arm) if metric in cell.scores}

    def blind(self, arm: str, audit: Blind) -> list[float]:
        """A blind score of an arm's finished cells."""
        return [cell.blind[audit] for cell in self.of(arm) if audit in cell.blind]

    def shown(self, arm: str) -> CellResult | None:
        """The finished cell that speaks for an arm in the gallery: of the first start, the first seed."""
        return next((cell for cell in self.of(arm) if cell.finished), None)
