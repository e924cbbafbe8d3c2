"""launch: the cells of a study, one process each, forked from one that has imported the heavy libraries once."""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess

from alignlab.errors import InputError
from alignlab.study.display import Display
from alignlab.study.plan import Cell, Study
from alignlab.study.state import FAILURE, write_failure
from alignlab.study.worker import LOG, Work, run_cell, train

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
    slot: int
    started: float = field(default_factory=time.monotonic)


def launch(
    study: Study, *, jobs: int | None = None, command: str = "", display: Display | None = None, work: Work = train
) -> list[Cell]:
    """Run the cells that are not finished; interrupted ones resume, and a failure stops no other cell.

    Args:
        jobs: Processes at once; default one for every GPU, else one for every CPU core: models small enough for a CPU
            gain little from a second thread, so cells side by side finish sooner than cells one after the other.
        command: What the user typed, for the report.
        display: Shows progress; default nothing.
        work: What a child does with a cell.

    Returns:
        The cells that failed.

    Raises:
        KeyboardInterrupt: After all children have stopped; launching again goes on from there.
        InputError: Another process is running this study, or a cell's directory holds something else.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: expected at least 1, got {jobs}")
    display = display or Display()
    with _locked(study):
        study.save(command)
        unique = study.unique
        waiting = deque(cell for cell in unique if cell.state != "finished")
        gpus: list[str] = []
        if waiting:
            preload()
            gpus = _gpus()
        jobs = min(jobs or len(gpus) or cpus(), max(len(waiting), 1))
        with display.showing(total=len(unique), done=len(unique) - len(waiting)):
            return _run_all(waiting, _Slots(jobs, gpus), display, work)


def preload(modules: Sequence[str] = HEAVY) -> None:
    """Start the process that children are forked from; it imports while this one goes on (validating, say)."""
    multiprocessing.set_forkserver_preload(list(modules))
    with _without_main(), _ignoring_interrupts():
        from multiprocessing import forkserver

        forkserver.ensure_running()


def cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclass(frozen=True)
class _Slots:
    """How many cells run at once, and what each may use."""

    jobs: int
    gpus: list[str]

    @property
    def threads(self) -> int:
        return max(1, cpus() // self.jobs)

    def device(self, slot: int) -> str | None:
        return self.gpus[slot % len(self.gpus)] if len(self.gpus) > 1 else None


def _run_all(waiting: deque[Cell], slots: _Slots, display: Display, work: Work) -> list[Cell]:
    running: dict[int, Running] = {}
    failed: list[Cell] = []
    try:
        while waiting or running:
            while waiting and len(running) < slots.jobs:
                slot = min(set(range(slots.jobs)) - running.keys())
                cell = waiting.popleft()
                display.started(cell)
                running[slot] = _start(cell, slot, slots, work)
            for ended in _watch(running, display):
                del running[ended.slot]
                failed += _finish(ended, display)
    finally:
        _stop(list(running.values()))
    return failed


def _start(cell: Cell, slot: int, slots: _Slots, work: Work) -> Running:
    """Start a cell's process."""
    from alignlab.experiment.run import claim, refuse_foreign

    refuse_foreign(cell.config, cell.directory)
    cell.directory.mkdir(parents=True, exist_ok=True)
    claim(cell.config, cell.directory)
    (cell.directory / FAILURE).unlink(missing_ok=True)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    arguments = (work, cell.config, cell.directory.absolute(), slots.threads, slots.device(slot), sender)
    # Not a daemon process: those may have no children, and data loaders and W&B start some.
    process = multiprocessing.get_context("forkserver").Process(target=run_cell, args=arguments, name=cell.label)
    with _without_main():
        process.start()
    sender.close()
    return Running(cell, process, receiver, slot)


def _watch(running: dict[int, Running], display: Display) -> list[Running]:
    """Pass on what the children say, until one ends or a moment is over."""
    by_notices = {item.notices: item for item in running.values() if not item.notices.closed}
    ready = connection.wait([*by_notices, *(item.process.sentinel for item in running.values())], timeout=1)
    for source in ready:
        item = by_notices.get(source) if isinstance(source, connection.Connection) else None
        if item is not None:
            try:
                stage, step, steps = item.notices.recv()
                display.moved(item.cell, stage, step, steps)
            except (EOFError, OSError):
                item.notices.close()
    return [item for item in running.values() if item.process.sentinel in ready]


def _finish(ended: Running, display: Display) -> list[Cell]:
    """Close the books on a process that ended: the cell, if it failed."""
    cell, process = ended.cell, ended.process
    process.join()
    if cell.state != "finished" and not (cell.directory / FAILURE).is_file():
        write_failure(cell.directory, _cause(process.exitcode))
    ended.notices.close()
    process.close()
    display.ended(cell, time.monotonic() - ended.started)
    return [] if cell.state == "finished" else [cell]


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        hint = " (out of memory? fewer --jobs need less)" if -exitcode == signal.SIGKILL else ""
        return f"the process was killed by {signal.Signals(-exitcode).name}{hint}; see {LOG}"
    return f"the process ended with exit code {exitcode} and without results; see {LOG}"


def _stop(running: list[Running]) -> None:
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


def _gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in visible.split(",")][:count]


@contextmanager
def _locked(study: Study) -> Iterator[None]:
    """Keep a second launch of the same study out; the lock goes with the process."""
    study.directory.mkdir(parents=True, exist_ok=True)
    with open(study.directory / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "another process"
            raise InputError(f"{study.directory}: the study is being run by {who}; wait for it or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


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
