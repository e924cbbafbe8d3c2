"""forecast: what a study will take, from its finished cells and, where none is like one to come, from trials."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from alignlab.backbones import locate
from alignlab.experiment.run import quiet_libraries, stage_folders
from alignlab.experiment.stages import STAGE
from alignlab.study.launchers.devices import cpus
from alignlab.study.plan import Cell, Study
from alignlab.study.probes import AROUND_SECONDS, Cost, Probes, folder_size
from alignlab.study.state import METRICS, read_json

OnPart = Callable[[int, int, str], None]
"""Called with (done, all, label) before each part that is tried, and at the end."""


@dataclass(frozen=True)
class Part:
    """A training with its evaluation, or the building of pairs: a cell's last, or a stage that cells may share.

    Args:
        cell: One that has it.
        name: The stage; None: what comes after all stages.
        directory: Where it is kept, which tells it from others.
        alike: The same for parts that differ by seed, or by weights of one shape, alone.
    """

    cell: Cell
    name: str | None
    directory: Path
    alike: str

    @property
    def finished(self) -> bool:
        return (self.directory / METRICS).is_file() if self.name is not None else self.cell.state == "finished"


@dataclass(frozen=True)
class Forecast:
    """What a study takes.

    Args:
        arms: A cell of each arm, its stages included, as if none were shared.
        whole: All parts, each once.
        left: Those that are not finished.
        longest: Seconds of the cell that takes longest of those.
        shared: Parts that several cells have, which are counted once.
        got: The share of its cores' time that this process had while it tried; less where the machine has other work.
            None: nothing was tried, or not on CPUs alone.
    """

    arms: Mapping[str, Cost]
    whole: Cost
    left: Cost
    longest: float
    shared: int
    got: float | None

    def seconds(self, jobs: int) -> float:
        """Seconds by the clock from now on, with so many cells at once."""
        return max((self.left.seconds or 0.0) / jobs, self.longest)


def forecast(study: Study, *, jobs: int, on_part: OnPart = lambda done, total, label: None) -> Forecast:
    """Foretell what every part takes: from finished ones that are alike, else by trying one of them.

    Args:
        jobs: Cells at once, which share the cores.
    """
    quiet_libraries()
    cells, planned = study.unique, (*study.cells, *study.trials)
    of_cell = {cell.directory: list(_parts(study, cell)) for cell in cells}
    unique: dict[Path, Part] = {}
    for part in (part for parts in of_cell.values() for part in parts):
        unique.setdefault(part.directory, part)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, cpus() // jobs))
    started, used = time.perf_counter(), time.process_time()
    try:
        costs = _costs(list(unique.values()), on_part)
        got = (time.process_time() - used) / (time.perf_counter() - started) / torch.get_num_threads()
    finally:
        torch.set_num_threads(threads)
    cost = {place: costs[part.alike] for place, part in unique.items()}
    total = {place: added(cost[part.directory] for part in parts) for place, parts in of_cell.items()}
    left = [place for place, part in unique.items() if not part.finished]
    tried = any(each.source == "tried" for each in costs.values()) and not torch.cuda.is_available()
    waiting = [total[cell.directory].seconds or 0.0 for cell in cells if cell.state != "finished"]
    return Forecast(
        arms={
            arm: _typical([total[cell.directory] for cell in planned if cell.arm == arm])
            for arm in dict.fromkeys(cell.arm for cell in planned)
        },
        whole=added(cost.values()),
        left=added(cost[place] for place in left),
        longest=max(waiting, default=0.0),
        shared=sum(map(len, of_cell.values())) - len(unique),
        got=got if tried else None,
    )


def _parts(study: Study, cell: Cell) -> Iterator[Part]:
    stages, before = cell.config["stages"], {}
    for name, folder in stage_folders(stages, study.directory / "stages", True).items():
        yield Part(cell, name, folder, _alike(stages[name], before))
        before[name] = stages[name]
    yield Part(cell, None, cell.directory, _alike(cell.config, stages))


def _alike(part: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    """A hash of what decides how long a part takes: all but seeds, names and the values of weights.

    Args:
        stages: Those before it.
    """
    content = [_deciding(part), *(_deciding(stage) for stage in stages.values())]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _deciding(part: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in part.items() if name not in ("seed", "stages", "wandb", "python_path")}
    paths = {name: _shape(part["backbone"][name]) for name in ("path", "text_tower")}
    return {**kept, "backbone": {**part["backbone"], **paths}}


def _shape(path: str | None) -> str | None:
    """The content of a model's config; a name where it is not on this machine or not there yet."""
    if path is None or path.startswith(STAGE):
        return path
    file = Path(locate(path), "config.json")
    return file.read_text(encoding="utf-8") if file.is_file() else path


def _costs(parts: Sequence[Part], on_part: OnPart) -> dict[str, Cost]:
    """By ``alike``."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.alike, []).append(part)
    costs = {}
    for alike, group in groups.items():
        if finished := [part for part in group if part.finished]:
            costs[alike] = _typical([_measured(part) for part in finished])
    probes, untried = Probes(), [alike for alike in groups if alike not in costs]
    for done, alike in enumerate(untried):
        part = groups[alike][0]
        on_part(done, len(untried), part.cell.arm if part.name is None else f"{part.cell.arm}, stage {part.name}")
        costs[alike] = probes(part.cell.config, part.name)
    on_part(len(untried), len(untried), "")
    return costs


def _measured(part: Part) -> Cost:
    """What a finished part took."""
    metrics = read_json(part.directory / METRICS) or {}
    counts = dict.fromkeys(("steps", "samples", "tokens"), 0) if "pairs" in metrics else metrics
    return Cost(
        **{name: counts.get(name) for name in ("steps", "samples", "tokens")},
        seconds=AROUND_SECONDS + sum(metrics.get("seconds", {}).values()),
        size=folder_size(part.directory),
        source="finished",
        whole=True,
    )


def _typical(costs: Sequence[Cost]) -> Cost:
    """The mean; of what some do not know, nothing is known."""
    sources = {cost.source for cost in costs}
    means = {}
    for name in ("steps", "samples", "tokens", "seconds", "size"):
        values = [vars(cost)[name] for cost in costs]
        means[name] = None if None in values else mean(values)
    source = next((each for each in ("tried", "finished") if each in sources), "unknown")
    return Cost(**means, source=source, whole=all(cost.whole for cost in costs))


def added(costs: Iterable[Cost]) -> Cost:
    """The sum of what is known."""
    costs, sums = list(costs), {}
    for name in ("steps", "samples", "tokens", "seconds", "size"):
        values = [value for cost in costs if (value := vars(cost)[name]) is not None]
        sums[name] = sum(values) if values else None
    sources = {cost.source for cost in costs}
    source = next((each for each in ("tried", "finished") if each in sources), "unknown")
    return Cost(**sums, source=source, whole=all(cost.whole for cost in costs))
