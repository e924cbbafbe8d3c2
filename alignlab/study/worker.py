"""worker: what a child process does: one cell, its output in ``log.txt`` and its failure in ``failure.json``."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from alignlab.study.progress import Notify, beating
from alignlab.study.state import write_failure

LOG = "log.txt"

Work = Callable[[dict[str, Any], Path, Notify], None]
"""Runs a config in a directory."""

NOTICE_SECONDS = 0.2


def train(config: dict[str, Any], directory: Path, notify: Notify) -> None:
    """Run the experiment; stages are kept beside the study's cells, so that those of the same content train once."""
    from alignlab.experiment.run import run

    with beating(directory) as moved:

        def on_progress(progress: Any) -> None:
            for tell in (moved, notify):
                tell(progress.stage, progress.step, progress.max_steps)

        run(config, directory, on_progress=on_progress, shared=directory.parents[2] / "stages")


def run_cell(
    work: Work,
    config: dict[str, Any],
    directory: Path,
    threads: int,
    device: str | None,
    notices: connection.Connection,
) -> None:
    """Body of a cell's process.

    Args:
        work: What to do; a function of a module, since it travels to the child by name.
        config: Resolved.
        directory: The run directory, already claimed for the config.
        threads: How many torch may use.
        device: The GPUs to be seen, as ``CUDA_VISIBLE_DEVICES`` names them; None leaves them all.
        notices: Takes (stage, step, last step), a few times a second.
    """
    os.setpgid(0, 0)  # a Ctrl-C at the terminal reaches the parent alone, which then stops the whole group
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _log_to(directory / LOG)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        import torch

        torch.set_num_threads(threads)
        work(config, directory, _throttled(notices))
    except Exception as error:
        traceback.print_exc()
        write_failure(directory, message(error), traceback.format_exc())
        sys.stderr.flush()
        sys.exit(1)


def message(error: Exception) -> str:
    """What is said of a cell that an error stopped."""
    from alignlab.errors import InputError

    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def _die_with_parent() -> None:
    """Stop this process and those it started when the study's process is gone, however it went."""
    connection.wait([parent_process().sentinel])
    os.killpg(0, signal.SIGKILL)


def _log_to(path: Path) -> None:
    """Send what this process and those it starts print to a file, behind what an earlier attempt printed."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)


def _throttled(notices: connection.Connection) -> Notify:
    """Send a change of stage at once, steps seldom: the pipe must never fill, nor training wait for the display."""
    last: tuple[str, float] = ("", 0.0)

    def notify(stage: str, step: int, steps: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or now - last[1] >= NOTICE_SECONDS:
            last = (stage, now)
            notices.send((stage, step, steps))

    return notify
