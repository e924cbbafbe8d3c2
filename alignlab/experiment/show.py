"""What the terminal shows: progress, scores, the catalogue of objectives."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from alignlab.experiment.parameters import Parameters
    from alignlab.experiment.training import Progress as RunProgress


def wide_console() -> Console:
    """The terminal; what is no terminal has no edge."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


@contextmanager
def progress_bar() -> Iterator[Callable[["RunProgress"], None]]:
    """What trains, and a bar with steps, remaining time and the latest loss; plain lines where there is no terminal."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as bar:
        task = bar.add_task("loading", total=None, loss="")

        def show(progress: "RunProgress") -> None:
            if progress.parameters is not None:
                console.print(parameters_table(progress.parameters))
            loss = progress.values.get("train/loss", progress.values.get("val/loss"))
            text = f"loss {loss:.4f}" if loss is not None else ""
            bar.update(
                task, description=progress.stage, completed=progress.step, total=progress.max_steps or None, loss=text
            )
            tenths = progress.step * 10 // progress.max_steps if progress.max_steps else 0
            if not console.is_terminal and tenths > show.tenths:
                show.tenths = tenths
                console.print(f"{progress.stage} {progress.step}/{progress.max_steps} {text}")

        show.tenths = 0
        yield show


@contextmanager
def counting_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar to be told what is done, how many and of how many; plain lines where the output is no terminal."""
    console = Console(file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=4) as bar:
        tasks: dict[str, TaskID] = {}
        tenths: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what)
            bar.update(tasks[what], completed=done, total=total)
            if not console.is_terminal and done * 10 // total > tenths.get(what, 0):
                tenths[what] = done * 10 // total
                console.print(f"{what} {done}/{total}")

        yield show


def parameters_table(parameters: "Parameters") -> Table:
    """How many weights each part has, how many of them train, and which part of all that train they are."""
    trained = max(parameters["trained"], 1)
    table = Table("part", title="what trains", show_footer=True)
    table.columns[0].footer = "all"
    for name, key in (("parameters", "total"), ("trained", "trained")):
        table.add_column(name, f"{parameters[key]:,}", justify="right")
    table.add_column("of all trained", f"{100 * parameters['trained'] / trained:.1f} %", justify="right")
    for part, count in parameters["parts"].items():
        share = f"{100 * count['trained'] / trained:.1f} %" if count["trained"] else ""
        table.add_row(part, f"{count['total']:,}", f"{count['trained']:,}", share)
    return table


def scores_table(scores: Mapping[str, float]) -> None:
    """Print the scores, one a line."""
    table = Table("score", "value", title="evaluation")
    for name, value in scores.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


def objectives_catalogue() -> None:
    """Print every objective with its line, what it requires, and its settings."""
    from alignlab.experiment.config import describe_objectives

    console = Console(markup=False, highlight=False)
    for entry in describe_objectives():
        console.print(f"{entry.name}: {entry.summary}", style="bold")
        console.print(f"  requires: {', '.join(entry.requires) or 'what its parts require'}")
        for setting in entry.settings:
            console.print(f"  --objective.{setting.name} {setting.type}  (default: {setting.default})")
            console.print(f"      {setting.doc}", style="dim")
        console.print()
