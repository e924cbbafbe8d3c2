"""cell: one cell as a command of its own, for schedulers and for trainings of several processes."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from alignlab.errors import InputError
from alignlab.study.progress import Notify, position
from alignlab.study.state import FAILURE, MANIFEST, read_json, state, write_failure
from alignlab.study.worker import LOG, message, train

LOOK_SECONDS = 0.5
INTERRUPTED = (130, -signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a cell that was told to stop; the first one after a checkpoint."""


def run_cell(directory: Path, *, threads: int | None = None) -> int:
    """Run a cell that a study has planned, in this process, as ``alignlab study cell`` does.

    Args:
        directory: Of the cell, in its study's.
        threads: How many torch may use; None leaves the choice to torch.

    Returns:
        The exit code: 0, or 1 where it failed; ``failure.json`` says why.

    Raises:
        InputError: No study has planned such a cell, or another process runs it.
        KeyboardInterrupt: After a signal; there is a checkpoint of the last step.
    """
    directory = directory.absolute()
    if state(directory, _digest(directory)) == "finished":
        print(f"{directory} is finished already; nothing was computed")
        return 0
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    from alignlab.experiment.config import read

    if threads is not None:
        torch.set_num_threads(threads)
    config = read(directory / "config.yaml")
    if rank_zero_only.rank:  # a process that the first one, or a scheduler, has started beside it
        train(config, directory, _silent)
        return 0
    if (there := position(directory)) is not None:
        raise InputError(f"{directory} is being run by process {there.pid} on {there.host}; wait for it or stop it")
    (directory / FAILURE).unlink(missing_ok=True)
    try:
        train(config, directory, _silent)
    except Exception as error:
        traceback.print_exc()
        write_failure(directory, message(error), traceback.format_exc())
        return 1
    print(f"{directory} is finished")
    return 0


def words(directory: Path, *, threads: int | None = None) -> list[str]:
    """The command that runs a cell, for a shell or a process."""
    more = [] if threads is None else ["--threads", str(threads)]
    return [sys.executable, "-m", "alignlab.cli", "study", "cell", str(directory), *more]


def start(
    directory: Path, *, threads: int | None = None, environment: Mapping[str, str] | None = None, log: IO | None = None
) -> "subprocess.Popen[bytes]":
    """Start the command; it ignores what a scheduler tells all of a job's processes by SIGUSR2.

    Args:
        environment: Laid over this process's.
        log: Takes what it prints; None: it prints where this process does.
    """
    usual = signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # which a child inherits, unlike a handler
    try:
        return subprocess.Popen(
            words(directory, threads=threads),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    finally:
        signal.signal(signal.SIGUSR2, usual)


def run_command(config: dict[str, Any], directory: Path, notify: Notify) -> None:
    """Run a cell by its command and pass on how far it is; what a study's process does with a cell that needs several.

    Lightning starts a training's other processes by repeating the command line, and that of a study would start the
    study again.
    """
    import torch

    process = start(directory, threads=torch.get_num_threads())
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        if (there := position(directory)) is not None:
            notify(there.stage, there.step, there.steps)
    if process.returncode and process.returncode not in INTERRUPTED and not (directory / FAILURE).is_file():
        write_failure(directory, cause(process.returncode))
    if process.returncode:
        sys.exit(130 if process.returncode in INTERRUPTED else 1)


def cause(exitcode: int | None) -> str:
    """What is said of a cell whose process ended without a word."""
    if exitcode is not None and exitcode < 0:
        hint = " (out of memory? fewer --jobs need less)" if -exitcode == signal.SIGKILL else ""
        return f"the process was killed by {signal.Signals(-exitcode).name}{hint}; see {LOG}"
    return f"the process ended with exit code {exitcode} and without results; see {LOG}"


def _digest(directory: Path) -> str:
    study = directory.parents[2] if len(directory.parents) > 2 else directory
    manifest = read_json(study / MANIFEST) or {}
    for cell in (*manifest.get("trials", ()), *manifest.get("cells", ())):
        if study / cell["directory"] == directory and (directory / "config.yaml").is_file():
            return cell["digest"]
    raise InputError(
        f"{directory}: no cell that a study has planned; `alignlab study run STUDY --launcher print` prints the "
        "commands of those that are not finished"
    )


def _silent(stage: str, step: int, steps: int) -> None:
    """The file that ``train`` keeps says it."""
