"""claiming: what every launcher does with a study's directory before a cell starts."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from alignlab.errors import InputError
from alignlab.study.plan import Cell, Study
from alignlab.study.state import FAILURE, LAUNCH, read_json, write_json


def claim(cell: Cell) -> None:
    """Make a cell's directory its own, with its config, and forget why an earlier attempt failed.

    Raises:
        InputError: It holds something else.
    """
    from alignlab.experiment import run

    run.refuse_foreign(cell.config, cell.directory)
    cell.directory.mkdir(parents=True, exist_ok=True)
    run.claim(cell.config, cell.directory)
    (cell.directory / FAILURE).unlink(missing_ok=True)


def write_launch(study: Study, *, launcher: str, parallel: int, jobs: Mapping[str, Any] | None = None) -> None:
    """Say in ``launch.json`` how the study was last started, and add the scheduler's jobs, by cell, to those before.

    Args:
        parallel: Cells at a time.
        jobs: By directory of the cell, relative to the study's.
    """
    before = (read_json(study.directory / LAUNCH) or {}).get("jobs", {})
    content = {"launcher": launcher, "parallel": parallel, "started": time.time(), "jobs": {**before, **(jobs or {})}}
    write_json(study.directory / LAUNCH, content)


@contextmanager
def locked(study: Study) -> Iterator[None]:
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
