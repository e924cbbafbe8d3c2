"""memory: the most that a run, or one of its stages, held at a time."""

import resource
import sys
from pathlib import Path

import torch

_SELF = Path("/proc/self")


def forget_peak() -> None:
    """Let the peak be that of what comes next, not of what this process did before.

    Elsewhere than on Linux, and where it forbids so, a process keeps its highest peak.
    """
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    try:
        (_SELF / "clear_refs").write_text("5")
    except OSError:
        pass


def peak_mib(device: torch.device) -> float:
    """Most memory so far: of the device if that is a GPU, else of the process, with all that it has imported."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:  # what getrusage says is never below what the program was that started this one
        status = (_SELF / "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 2**10
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
