"""progress: how far a cell is, in a file that other processes read; it also tells whether anybody is at work."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from alignlab.study.state import read_json, write_json

PROGRESS = "progress.json"
LOOK_SECONDS = 1.0
"""How often the file is written at most."""
BEAT_SECONDS = 15.0
"""How often it is written where nothing moves: an evaluator may work for minutes."""
STALE_SECONDS = 120.0
"""A file older than this was left by a process that is gone; machines' clocks may differ a little."""

Notify = Callable[[str, int, int], None]
"""Takes stage, step and last step."""


@dataclass(frozen=True)
class Position:
    """Where a cell that runs is.

    Args:
        stage: ``start``, then what the run says.
        steps: The last step, 0 where nobody knows how many there are.
        started: Seconds since the epoch.
    """

    stage: str
    step: int
    steps: int
    started: float
    host: str
    pid: int

    @property
    def share(self) -> float:
        """Of the steps, in [0, 1]."""
        return self.step / self.steps if self.steps else 0.0


@contextmanager
def beating(directory: Path) -> Iterator[Notify]:
    """While a cell runs in this process, say in its directory how far it is; the file goes when the cell is done with.

    Yields:
        Takes what to say; a thread writes it, so that it costs the training an assignment.
    """
    heart = _Heart(directory)
    heart.write()
    heart.start()
    try:
        yield heart.moved
    finally:
        heart.stopped.set()
        heart.join()
        (directory / PROGRESS).unlink(missing_ok=True)


def position(directory: Path) -> Position | None:
    """How far the process that runs a cell is; None where no process runs it."""
    content = read_json(directory / PROGRESS)
    if content is None:
        return None
    with suppress(FileNotFoundError, TypeError):
        found = Position(**content)
        fresh = time.time() - (directory / PROGRESS).stat().st_mtime < STALE_SECONDS
        return found if fresh and (found.host != socket.gethostname() or is_alive(found.pid)) else None
    return None


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there and has not ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class _Heart(threading.Thread):
    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True, name="progress")
        self.directory, self.stopped = directory, threading.Event()
        self.latest = self.said = Position("start", 0, 0, time.time(), socket.gethostname(), os.getpid())

    def moved(self, stage: str, step: int, steps: int) -> None:
        self.latest = Position(stage, step, steps, self.said.started, self.said.host, self.said.pid)

    def run(self) -> None:
        beat = time.monotonic()
        while not self.stopped.wait(LOOK_SECONDS):
            if self.latest != self.said or time.monotonic() - beat >= BEAT_SECONDS:
                beat = time.monotonic()
                self.write()

    def write(self) -> None:
        self.said = self.latest
        with suppress(OSError):  # a full disk stops the run where it matters
            write_json(self.directory / PROGRESS, asdict(self.said))
