"""records: what a study has found, in one small file that outlives its run directories."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from alignlab.errors import InputError
from alignlab.study.audit import total_costs
from alignlab.study.claims import Registered, registered_of
from alignlab.study.comparison import Entry, compare
from alignlab.study.results import CellResult, Results
from alignlab.study.state import read_json
from alignlab.study.statistics import Interval, Pair, unit_means
from alignlab.study.wording import count

FORMAT = 1
DIGITS = 6
COSTS = ("seconds", "flops", "steps", "samples", "tokens", "trained", "peak_memory_mib")
"""What a cell took, its stages that train or build pairs included, as the report's table of costs has it."""


@dataclass(frozen=True)
class Outcome:
    """What a study says of a claim.

    Args:
        difference: Of the claim's two arms, paired; None where no pair is finished.
        pairs: How many differences it is made of.
        verdict: Supported, not supported or inconclusive; why; and how many units would probably decide it.
    """

    registered: Registered
    difference: Interval | None
    pairs: int
    verdict: str
    why: str
    needed: int | None


@dataclass(frozen=True)
class Record:
    """A study as its record tells it.

    Args:
        file: The study's YAML as it was named on the command line; None where the command names none.
        extent: How large it is and how much of it was finished, in words.
        cells: Arm, start, seed, ``scores`` and ``costs`` of every finished cell, by name.
        setup: Versions and hardware of its first finished cell.
        unit: What intervals count, start or seed.
        seconds: Of computation, tuning included; None where one of the runs did not write them down.
    """

    name: str
    description: str
    command: str
    file: str | None
    recorded: str
    extent: str
    baseline: str
    arms: tuple[str, ...]
    notes: tuple[str, ...]
    cells: tuple[dict[str, Any], ...]
    outcomes: tuple[Outcome, ...]
    setup: Mapping[str, Any]
    unit: str
    seconds: float | None

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a record.

        Raises:
            InputError: It is none, or one of another format.
        """
        content = read_json(path)
        if content is None or content.get("format") != FORMAT:
            what = "no such file or no JSON" if content is None else f"format {content.get('format')!r}, not {FORMAT}"
            raise InputError(f"{path}: not the record of a study: {what}; `alignlab study record DIR` makes one")
        texts = {key: content[key] for key in ("name", "description", "command", "file", "recorded", "extent", "unit")}
        return cls(
            **texts,
            baseline=content["baseline"],
            arms=tuple(content["arms"]),
            notes=tuple(content["notes"]),
            cells=tuple(_cells(content)),
            outcomes=tuple(map(_outcome, content["claims"])),
            setup=content["setup"],
            seconds=content["seconds"],
        )

    @property
    def question(self) -> str:
        """The first sentence of the description."""
        ends = [place for mark in "?." if (place := f"{self.description} ".find(f"{mark} ")) >= 0]
        return self.description[: min(ends) + 1] if ends else self.description

    def values(self, arm: str, metric: str) -> dict[Pair, float]:
        """A metric of an arm's finished cells."""
        return {
            (cell["start"], cell["seed"]): cell["scores"][metric]
            for cell in self.cells
            if cell["arm"] == arm and cell["scores"].get(metric) is not None
        }

    def means(self, one: str, other: str, metric: str) -> tuple[float, float]:
        """Of two arms over units, of what both have: (start, seed) of which there is one at least."""
        ours, theirs = self.values(one, metric), self.values(other, metric)
        common = [{pair: values[pair] for pair in ours if pair in theirs} for values in (ours, theirs)]
        first, second = (fmean(unit_means(values, self.unit)) for values in common)
        return first, second

    def cost(self, arm: str, name: str) -> float | None:
        """Mean over an arm's finished cells; None where one of them did not write it down."""
        values = [cell["costs"][name] for cell in self.cells if cell["arm"] == arm]
        return sum(values) / len(values) if values and None not in values else None


def record(directory: Path, folder: Path, notes: Sequence[str] = ()) -> Path:
    """Write down what a study has found so far.

    Args:
        directory: Of the study, finished or not.
        folder: Where records are kept, one file a study; an older one of the same study is replaced.
        notes: What a reader should know beside it.

    Returns:
        The record.

    Raises:
        InputError: The directory is not a study's, or none of its cells is finished.
    """
    results = Results.read(directory)
    if not results.finished:
        raise InputError(f"{directory}: none of its cells is finished, so there is nothing to record yet")
    path = folder / f"{results.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(_dumped(content_of(results, notes)), encoding="utf-8")
    partial.replace(path)
    return path


def read_records(folder: Path) -> list[Record]:
    """All records of a folder, by name.

    Raises:
        InputError: There is no such folder, or a file that is no record.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; `alignlab study record DIR --output {folder}` makes it")
    return [Record.read(path) for path in sorted(folder.glob("*.json"))]


def content_of(results: Results, notes: Sequence[str] = ()) -> dict[str, Any]:
    """A record's content: what was found, with intervals and verdicts as they are computed now."""
    own = {name: getattr(results, name) for name in ("name", "description", "command", "baseline", "oracle", "placebo")}
    own |= {name: list(getattr(results, name)) for name in ("arms", "starts", "seeds", "metrics")}
    first = results.finished[0].versions
    return {
        "format": FORMAT,
        **own,
        "file": _file(results.command),
        "recorded": datetime.now(UTC).strftime("%Y-%m-%d"),
        "extent": _extent(results),
        "unit": results.unit,
        "seconds": _seconds(results),
        "against": results.against,
        "setup": {key: first.get(key) for key in ("packages", "python", "platform", "threads", "hardware", "git")},
        "notes": [*results.notes, *notes],
        "claims": [_judged(results, claim) for claim in results.claims],
        "comparisons": [_entry(compare(results, arm, name)) for name in results.metrics for arm in results.arms],
        "scores": (names := results.all_metrics),
        "costs": list(COSTS),
        "cells": [_cell(cell, names) for cell in results.finished],
    }


def _extent(results: Results) -> str:
    axes = ((results.arms, "arm"), (results.starts, "start"), (results.seeds, "seed"))
    size = " × ".join(count(len(values), noun) for values, noun in axes)
    return f"{size}; {len(results.finished)} of {count(len(results.cells), 'cell')} finished"


def _file(command: str) -> str | None:
    """The YAML that a command names."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    return next((word for word in words if word.endswith((".yaml", ".yml")) and not word.startswith("-")), None)


def _judged(results: Results, claim: Registered) -> dict[str, Any]:
    from alignlab.study.verdicts import judge

    judged = judge(results, claim)
    told = asdict(claim.claim) | {"hash": claim.claim.hash, "date": claim.date}
    told |= {"seen": claim.seen, "dropped": claim.dropped}
    entry = replace(judged.entry, finding=judged.finding)
    return told | {"entry": _entry(entry), "finding": _finding(entry)}


def _entry(entry: Entry) -> dict[str, Any]:
    """A comparison as it was computed then."""
    told = {name: getattr(entry, name) for name in ("arm", "metric", "p", "p_holm", "improvement", "detectable")}
    told |= {"cells": len(entry.values), "pairs": len(entry.differences)}
    told |= {"score": entry.score and [*entry.score], "difference": entry.difference and [*entry.difference]}
    return told | {"finding": entry.finding and _finding(entry)}


def _finding(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry.finding, name) for name in ("verdict", "why", "needed")}


def _cell(cell: CellResult, names: Sequence[str]) -> list[Any]:
    """Arm, start, seed, scores, costs: in the order of the lists ``scores`` and ``costs``."""
    spent = costs(cell)
    scores = [cell.scores.get(name) for name in names]
    return [cell.arm, cell.start, cell.seed, scores, [spent[name] for name in COSTS]]


def costs(cell: CellResult) -> dict[str, float | None]:
    """What a finished cell took by the names of ``COSTS``, stages included; None for what is not known."""
    whole = cell.whole_costs
    spent = {name: getattr(whole, name) for name in ("steps", "samples", "tokens", "trained")}
    spent |= {"seconds": _sum(whole.training, whole.evaluation), "flops": _sum(whole.forward, whole.backward)}
    return spent | {"peak_memory_mib": whole.memory}


def _seconds(results: Results) -> float | None:
    """Of computation: cells of tuning included, and each stage once."""
    total = total_costs(replace(results, cells=(*results.cells, *results.trials)))
    return _sum(total.training, total.evaluation)


def _sum(*values: float | None) -> float | None:
    return None if None in values else sum(values)


def _dumped(content: Mapping[str, Any]) -> str:
    """JSON with a line for each claim, comparison and cell, so that a change shows where it is."""
    lines = []
    for key, value in content.items():
        if key in ("claims", "comparisons", "cells") and value:
            inner = ",\n".join(f"  {_json(item)}" for item in value)
            lines.append(f' "{key}": [\n{inner}\n ]')
        else:
            lines.append(f' "{key}": {_json(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """Floats to as many digits as anyone reads."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _cells(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for arm, start, seed, scores, spent in content["cells"]:
        named = {"scores": dict(zip(content["scores"], scores, strict=True))}
        named["costs"] = dict(zip(content["costs"], spent, strict=True))
        yield {"arm": arm, "start": start, "seed": seed, **named}


def _outcome(line: Mapping[str, Any]) -> Outcome:
    entry = line["entry"]
    difference = None if entry["difference"] is None else Interval(*entry["difference"])
    return Outcome(registered_of(line), difference, entry["pairs"], **line["finding"])
