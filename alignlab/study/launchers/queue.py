"""queue: what became of the jobs that a study has handed to SLURM, asked of SLURM itself."""

import subprocess
from collections.abc import Mapping
from typing import Literal

from alignlab.study.progress import is_alive

Standing = Literal["queued", "running", "gone"]

RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT")
SECONDS = 20


class Unreachable(Exception):
    """SLURM does not answer here."""


def standing(jobs: Mapping[str, Mapping[str, str]]) -> dict[str, Standing]:
    """How the jobs of cells stand.

    Args:
        jobs: By anything, ``{"id": ..., "cluster": "slurm" | "local"}``; a local one's id is that of its process.

    Raises:
        Unreachable: There is a job of SLURM's, and no answer.
    """
    listed = _squeue() if any(job["cluster"] == "slurm" for job in jobs.values()) else {}
    found: dict[str, Standing] = {}
    for key, job in jobs.items():
        if job["cluster"] == "local":
            found[key] = "running" if is_alive(int(job["id"])) else "gone"
        else:
            state = listed.get(job["id"])
            found[key] = "gone" if state is None else "running" if state in RUNNING else "queued"
    return found


def _squeue() -> dict[str, str]:
    """The user's jobs that wait or run, each element of an array by itself, with their states."""
    command = ["squeue", "--me", "--noheader", "--array", "--format", "%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    except FileNotFoundError:
        raise Unreachable("there is no squeue here") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"squeue did not answer within {SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        raise Unreachable(f"squeue: {' '.join(error.stderr.split())}") from None
    return dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if line.strip())
