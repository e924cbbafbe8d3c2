"""Display: how far a study is; bars on a terminal, a line for every finished cell elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alignlab.study.state import FAILURE, read_json

if TYPE_CHECKING:
    from alignlab.study.plan import Cell

LEFT = "cells that other processes are running, and that are left to them: {}"


class Display:
    """Shows nothing: what the others refine.

    Cells are told apart by their directories.
    """

    def left(self, count: int) -> None:
        """So many cells are being run by processes of others."""

    @contextmanager
    def showing(self, *, total: int, done: int) -> Iterator[None]:
        """While cells run: ``done`` of ``total`` were finished before."""
        yield

    def started(self, cell: "Cell") -> None:
        """A process was started for the cell."""

    def moved(self, cell: "Cell", stage: str, step: int, steps: int) -> None:
        """The cell is at a step of a stage; ``steps`` is 0 where nobody knows how many there are."""

    def ended(self, cell: "Cell", seconds: float) -> None:
        """The cell's process is gone; its directory says what became of it."""


class Lines(Display):
    """A plain line for every cell that ended: for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.done = 0

    def left(self, count: int) -> None:
        if count:
            self.console.print(LEFT.format(count), soft_wrap=True, highlight=False)

    @contextmanager
    def showing(self, *, total: int, done: int) -> Iterator[None]:
        self.total, self.done = total, done
        if done:
            self.console.print(f"{done} of {total} cells were finished before", soft_wrap=True, highlight=False)
        yield

    def ended(self, cell: "Cell", seconds: float) -> None:
        self.done += 1
        line = f"[{self.done}/{self.total}] {outcome(cell, seconds)}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class Bars(Display):
    """A bar for the cells and one for every cell that runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", justify="right"),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            speed_estimate_period=600,
        )
        self.tasks: dict[str, TaskID] = {}
        self.shares: dict[str, float] = {}
        self.total = self.done = 0

    def left(self, count: int) -> None:
        if count:
            self.console.print(LEFT.format(count), soft_wrap=True, highlight=False)

    @contextmanager
    def showing(self, *, total: int, done: int) -> Iterator[None]:
        self.total, self.done = total, done
        with self.progress:
            self.cells = self.progress.add_task("[bold]cells", total=total, completed=done, count="", stage="")
            self._count()
            yield

    def started(self, cell: "Cell") -> None:
        label = escape(cell.label)
        self.tasks[str(cell.directory)] = self.progress.add_task(label, total=None, count="", stage="starting")

    def moved(self, cell: "Cell", stage: str, step: int, steps: int) -> None:
        key = str(cell.directory)
        if not steps:
            self.progress.update(self.tasks[key], stage=stage)
            return
        if key not in self.shares:  # a resumed cell does not start at 0; the jump is no speed
            self.progress.reset(self.tasks[key], total=steps, completed=step)
        self.shares[key] = step / steps
        self.progress.update(self.tasks[key], total=steps, completed=step, count=f"{step}/{steps}", stage=stage)
        self._count()

    def ended(self, cell: "Cell", seconds: float) -> None:
        key = str(cell.directory)
        self.progress.remove_task(self.tasks.pop(key))
        self.shares.pop(key, None)
        self.done += 1
        self._count()
        color = "green" if cell.state == "finished" else "red"
        self.console.print(f"[{color}]●[/] {escape(outcome(cell, seconds))}", highlight=False)

    def _count(self) -> None:
        completed = self.done + sum(self.shares.values())
        self.progress.update(self.cells, completed=completed, count=f"{self.done}/{self.total}")


def outcome(cell: "Cell", seconds: float) -> str:
    """What became of a cell, in one line."""
    if cell.state == "finished":
        return f"{cell.label}: finished in {duration(seconds)}"
    failure = read_json(cell.directory / FAILURE) or {}
    message = " ".join(str(failure.get("message", "no results")).split())
    return f"{cell.label}: failed: {message} ({cell.directory})"


def duration(seconds: float) -> str:
    """Seconds as people say them: 41 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
