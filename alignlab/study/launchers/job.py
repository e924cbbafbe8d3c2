"""job: what a job of SLURM does: a cell's own command, stopped with a checkpoint when the job has to go."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.study import cell
from alignlab.study.state import FAILURE, write_failure
from alignlab.study.worker import LOG

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

LOOK_SECONDS = 0.5
STOP_SECONDS = 75.0
"""From being told to stop to being killed; SLURM is asked to say it this and some seconds before a job's end."""
GOING_SECONDS = 300.0
"""How long a job whose cell was told to stop waits for what SLURM does with it."""


@dataclass
class Job:
    """Runs one cell; submitit takes it to where it runs, as plain values.

    Submitit calls ``checkpoint`` from within a signal's handler when the time is nearly over or the job is preempted,
    and then asks SLURM to queue the job again.

    Args:
        directory: Of the cell.
        threads: How many torch may use; None leaves the choice to torch.
        spread: SLURM starts a process for every device, on several machines; else the cell starts those it needs.
    """

    directory: str
    threads: int | None = None
    spread: bool = False
    process: Any = field(default=None, init=False, repr=False)

    def __call__(self) -> None:
        """Run the cell.

        Raises:
            RuntimeError: It failed; ``failure.json`` says why.
        """
        folder = Path(self.directory)
        # Lightning must not take the job's one process for one of several, which is what this name is for.
        environment = {} if self.spread else {"SLURM_JOB_NAME": "interactive"}
        with (folder / LOG).open("ab") as log:
            self.process = cell.start(folder, threads=self.threads, environment=environment, log=log)
            while self.process.poll() is None:
                time.sleep(LOOK_SECONDS)
        code = self.process.returncode
        if code in cell.INTERRUPTED:  # with a checkpoint, if it trained: SLURM told it, and goes on with this process
            time.sleep(GOING_SECONDS)
        elif code and not (folder / FAILURE).is_file():
            write_failure(folder, cell.cause(code))
        if code:
            raise RuntimeError(f"{self.directory}: exit code {code}; see {LOG} and {FAILURE} there")

    def checkpoint(self) -> "DelayedSubmission":
        """Stop the cell after its step, with a checkpoint, and say what a later job does: the same."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None and not _has_ended(self.process):
            os.kill(self.process.pid, signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while not _has_ended(self.process) and time.monotonic() < deadline:
                time.sleep(LOOK_SECONDS)
            if not _has_ended(self.process):
                os.kill(self.process.pid, signal.SIGKILL)
        return DelayedSubmission(replace(self))


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Without reaping it: what the signal interrupted may be about to, and holds the lock for that."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
