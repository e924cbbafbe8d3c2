"""local: the cells of a study on this machine, one process each, forked from one that has imported the libraries."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console

from alignlab.errors import InputError
from alignlab.study.cell import cause, run_command
from alignlab.study.display import Bars, Display, Lines
from alignlab.study.launchers.claiming import claim, locked, write_launch
from alignlab.study.launchers.devices import Slots, cpus, gpus, needs
from alignlab.study.plan import Cell, Study
from alignlab.study.progress import position
from alignlab.study.state import FAILURE, write_failure
from alignlab.study.worker import Work, run_cell, train

HEAVY = (
    "torch",
    "lightning.pytorch",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llama.modeling_llama",
    "transformers.models.clip.modeling_clip",
    "alignlab.data",
    "alignlab.evaluation",
    "alignlab.experiment.run",
    "alignlab.experiment.wandb",
    "wandb.apis.public",
)
"""What a cell imports sooner or later; the only threads this starts are those of BLAS, which knows about forks."""
GRACE_SECONDS = 10


@dataclass
class Running:
    """A cell and its process."""

    cell: Cell
    process: ForkServerProcess
    notices: connection.Connection
    slots: frozenset[int]
    started: float = field(default_factory=time.monotonic)


class Local:
    """Runs the cells here and now, some at a time; one that fails is not tried again by the same launcher."""

    def __init__(self) -> None:
        self._failed: dict[Path, Cell] = {}

    def prepare(self) -> None:
        """Let imports go on while the cells are validated."""
        preload()

    def start(self, study: Study, *, jobs: int | None, command: str, console: Console) -> list[Cell] | None:
        """``launch``, shown as bars on a terminal and as lines elsewhere."""
        display = Bars(console) if console.is_terminal else Lines(console)
        failed = launch(study, jobs=jobs, command=command, display=display, leave=self._failed)
        self._failed |= {cell.directory: cell for cell in failed}
        return list(self._failed.values())


def launch(
    study: Study,
    *,
    jobs: int | None = None,
    command: str = "",
    display: Display | None = None,
    work: Work = train,
    leave: Collection[Path] = (),
) -> list[Cell]:
    """Run the cells that are not finished; interrupted ones resume, and a failure stops no other cell.

    What another process runs, one of a scheduler, say, is left to it.

    Args:
        jobs: Cells at once; default one for every GPU, else one for every CPU core: models small enough for a CPU
            gain little from a second thread, so cells side by side finish sooner than cells one after the other. A cell
            counts as many times as it asks for devices.
        command: What the user typed, for the report.
        display: Shows progress; default nothing.
        work: What a child does with a cell that needs one process.
        leave: Directories of cells that are not tried, as they have failed a moment ago.

    Returns:
        The cells that failed.

    Raises:
        KeyboardInterrupt: After all children have stopped; launching again goes on from there.
        InputError: Another process is running this study, a cell's directory holds something else, or a cell needs
            several machines.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: expected at least 1, got {jobs}")
    display = display or Display()
    with locked(study):
        study.save(command)
        cells = [cell for cell in study.unique if cell.directory not in leave]
        unfinished = [cell for cell in cells if cell.state != "finished"]
        _refuse_nodes(unfinished)
        waiting = deque(cell for cell in unfinished if position(cell.directory) is None)
        there: list[str] = []
        if waiting:
            preload()
            there = gpus()
        jobs = min(jobs or len(there) or cpus(), max(sum(needs(cell.config).processes or 1 for cell in waiting), 1))
        write_launch(study, launcher="local", parallel=jobs)
        display.left(len(unfinished) - len(waiting))
        with display.showing(total=len(cells), done=len(cells) - len(unfinished)):
            return _run_all(waiting, Slots(jobs, there), display, work)


def _refuse_nodes(cells: Sequence[Cell]) -> None:
    for cell in cells:
        if (nodes := needs(cell.config).nodes) > 1:
            raise InputError(
                f"{cell.label}: trainer.num_nodes {nodes}: this machine cannot start processes on others; use "
                "--launcher slurm, or --launcher print and start the line that it prints on each of them"
            )


def preload(modules: Sequence[str] = HEAVY) -> None:
    """Start the process that children are forked from; it imports while this one goes on (validating, say)."""
    multiprocessing.set_forkserver_preload(list(modules))
    with _without_main(), _ignoring_interrupts():
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _run_all(waiting: deque[Cell], slots: Slots, display: Display, work: Work) -> list[Cell]:
    running: list[Running] = []
    failed: list[Cell] = []
    try:
        while waiting or running:
            while waiting and len(free := _free(slots, running)) >= (wanted := slots.taken_by(waiting[0])):
                cell = waiting.popleft()
                display.started(cell)
                running.append(_start(cell, frozenset(free[:wanted]), slots, work))
            for ended in _watch(running, display):
                running.remove(ended)
                failed += _finish(ended, display)
    finally:
        _stop(running)
    return failed


def _free(slots: Slots, running: Sequence[Running]) -> list[int]:
    return sorted(set(range(slots.jobs)).difference(*(item.slots for item in running)))


def _start(cell: Cell, taken: frozenset[int], slots: Slots, work: Work) -> Running:
    """Start a cell's process."""
    claim(cell)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    work = run_command if needs(cell.config).commanded else work
    threads, devices = slots.threads(cell), slots.devices(taken, cell)
    arguments = (work, cell.config, cell.directory.absolute(), threads, devices, sender)
    # Not a daemon process: those may have no children, and data loaders and W&B start some.
    process = multiprocessing.get_context("forkserver").Process(target=run_cell, args=arguments, name=cell.label)
    with _without_main():
        process.start()
    sender.close()
    return Running(cell, process, receiver, taken)


def _watch(running: Sequence[Running], display: Display) -> list[Running]:
    """Pass on what the children say, until one ends or a moment is over."""
    by_notices = {item.notices: item for item in running if not item.notices.closed}
    ready = connection.wait([*by_notices, *(item.process.sentinel for item in running)], timeout=1)
    for source in ready:
        item = by_notices.get(source) if isinstance(source, connection.Connection) else None
        if item is not None:
            try:
                stage, step, steps = item.notices.recv()
                display.moved(item.cell, stage, step, steps)
            except (EOFError, OSError):
                item.notices.close()
    return [item for item in running if item.process.sentinel in ready]


def _finish(ended: Running, display: Display) -> list[Cell]:
    """Close the books on a process that ended: the cell, if it failed."""
    cell, process = ended.cell, ended.process
    process.join()
    if cell.state != "finished" and not (cell.directory / FAILURE).is_file():
        write_failure(cell.directory, cause(process.exitcode))
    ended.notices.close()
    process.close()
    display.ended(cell, time.monotonic() - ended.started)
    return [] if cell.state == "finished" else [cell]


def _stop(running: Sequence[Running]) -> None:
    """End children that still run, with all they started: politely, then not."""
    try:
        for item in running:
            item.process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for item in running:
            item.process.join(max(0.0, deadline - time.monotonic()))
    finally:  # also when the user presses Ctrl-C again
        for item in running:
            _kill_group(item.process)
            item.process.join()


def _kill_group(process: ForkServerProcess) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all gone, or not yet a group of its own
        process.kill()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module: a child would run the file again, and a user's script has no guard against that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Children inherit that they ignore Ctrl-C; the parent stops them itself, so that they can close their files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
