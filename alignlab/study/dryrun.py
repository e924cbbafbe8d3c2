"""dryrun: what ``alignlab study run --dry-run`` prints: the arms, how far their cells are, and what they will take."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from alignlab.experiment.units import count, duration, size
from alignlab.study.forecast import Forecast, forecast
from alignlab.study.launchers.devices import cpus
from alignlab.study.plan import Cell, Study
from alignlab.study.probes import Cost
from alignlab.study.wording import setting

COLORS = {"new": "default", "interrupted": "yellow", "failed": "red", "finished": "green"}

BUSY = 0.7
"""The share of a core's time below which a trial tells more of the machine's other work than of the study."""


def show(study: Study, *, jobs: int | None, console: Console) -> None:
    """Print the cells of a study and what they will take; nothing is written.

    Args:
        jobs: Cells at once; default as many as would be launched.
    """
    jobs = min(jobs or torch.cuda.device_count() or cpus(), len(study.unique))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("trying")

        def progress(done: int, total: int, label: str) -> None:
            bar.update(task, completed=done, total=total, description=label)
            if not console.is_terminal and done < total:
                console.print(f"trying {done + 1} of {total}: {label}", highlight=False, markup=False, soft_wrap=True)

        found = forecast(study, jobs=jobs, on_part=progress)
    console.print(plan_table(study, found))
    for line in in_words(study, found, jobs):
        console.print(f"- {line}", highlight=False, markup=False)


def plan_table(study: Study, found: Forecast) -> Table:
    """A line an arm: what makes it differ from the baseline, how far its cells are, and what one of them takes.

    Single cells have a line where they are stopped or failed.
    """
    cells = study.directory / "cells"
    trials = f" and {len(study.trials)} of tuning" if study.trials else ""
    title = f"{study.name}: {len(study.cells)} cells{trials} in {cells}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("arm", overflow="fold")
    table.add_column(f"differs from {escape(study.baseline)}", overflow="fold", ratio=1)
    table.add_column("cells")
    for head in ("steps", "samples", "tokens", "time", "disk"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    for arm, cost in found.arms.items():
        own = [cell for cell in (*study.cells, *study.trials) if cell.arm == arm]
        against = f"(from {study.against[arm]}) " if arm in study.against else ""
        differs = escape(against + differing(own[0]))
        table.add_row(escape(arm), differs, _states(own), *told_of(cost), cost.source)
        for cell in own:
            if cell.state in ("interrupted", "failed"):
                place = f"{cell.start}, seed {cell.seed}: {cell.directory.relative_to(cells)}"
                table.add_row("", f"  {escape(place)}", f"[{COLORS[cell.state]}]{cell.state}[/]")
    return table


def differing(cell: Cell) -> str:
    """What sets a cell apart, in one line; a stage is told by what it does, and how many settings it has more."""
    words, stages = [], {}
    for key, value in cell.differs.items():
        top, _, rest = key.partition(".")
        name, _, below = rest.partition(".")
        if top != "stages" or (name and not below):
            words.append(f"{key}: {setting(value)}")
        elif name:
            stages.setdefault(name, {})[below] = value
    return "; ".join([*words, *(_stage(name, settings) for name, settings in stages.items())]) or "–"


def _stage(name: str, settings: Mapping[str, Any]) -> str:
    builds = any(key.startswith("pairs") for key in settings)
    what = [setting(settings["objective"])] if "objective" in settings else ["pairs"] if builds else []
    more = len(settings) - ("objective" in settings)
    return f"stage {name} ({', '.join([*what, *([f'{more} settings'] if more else [])])})"


def _states(cells: Sequence[Cell]) -> str:
    counts = Counter(cell.state for cell in cells)
    return ", ".join(f"[{COLORS[state]}]{number} {state}[/]" for state, number in counts.items())


def in_words(study: Study, found: Forecast, jobs: int) -> Iterator[str]:
    """What stands below the table of the cells."""
    unique = study.unique
    done = sum(cell.state == "finished" for cell in unique)
    once = f", {found.shared} stages that several of them have counted once" if found.shared else ""
    whole = found.whole
    costs = f"{_more(whole)}{_told(whole.seconds, duration)} of computation, {_told(whole.size, size)} on the disk"
    yield f"all {len(unique)} cells: {costs}{once}"
    if done < len(unique):
        waits = f"{_more(found.left)}{duration(found.seconds(jobs))} with {jobs} at once"
        room = shutil.disk_usage(_existing(study.directory)).free
        needs = f"{_told(found.left.size, size)} on the disk, which has {size(room)} free"
        yield f"to do: {len(unique) - done} cells, {waits}, {needs}"
    if any(cost.source == "finished" for cost in found.arms.values()):
        yield "finished: means of the arm's finished cells in the study's directory, as long as they took then"
    if any(cost.source == "tried" for cost in found.arms.values()):
        yield (
            "tried: the fastest of three steps and one batch of each evaluator, in proportion; weights at the start "
            "may write longer answers than trained ones; other work on the machine comes on top"
        )
    if found.got is not None and found.got < BUSY:
        alone = duration(found.got * (found.whole.seconds or 0.0))
        yield (
            f"the machine has other work: trials had {found.got:.0%} of their cores' time; alone, all computation "
            f"would take about {alone}"
        )
    if study.pending:
        yield "tuned arms come on top: which cells they have is known once their settings are tried"
    missing = [arm for arm, cost in found.arms.items() if not cost.whole]
    if missing:
        yield f"not all is known of {', '.join(missing)}: what an earlier stage has yet to make, or what a command does"


def _more(cost: Cost) -> str:
    return "" if cost.whole else "more than "


def _told(value: float | None, how: Callable[[float], str]) -> str:
    return "?" if value is None else how(value)


def told_of(cost: Cost) -> tuple[str, ...]:
    """Steps, samples, tokens, time and disk of a cell, as the table has them."""
    counts = (cost.steps, cost.samples, cost.tokens)
    more = "" if cost.whole else "> "
    known = [_told(value, count).strip() for value in counts]
    known += [_told(cost.seconds, duration), _told(cost.size, size)]
    return tuple(f"{more}{text}" if text != "?" else text for text in known)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
