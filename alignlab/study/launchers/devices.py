"""devices: what a cell's training asks for, and what of this machine each cell of a study may use."""

import os
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignlab.errors import InputError
from alignlab.study.plan import Cell


@dataclass(frozen=True)
class Needs:
    """What a cell asks for, the most that it or one of its stages does.

    Args:
        processes: On each machine; 0 for all devices that are there.
        nodes: Machines.
        commanded: Lightning starts processes by repeating the command line, so the cell needs one of its own.
    """

    processes: int
    nodes: int
    commanded: bool


def needs(config: Mapping[str, Any]) -> Needs:
    """What a resolved config asks for."""
    trainers = [part["trainer"] for part in (*config.get("stages", {}).values(), config) if part.get("trainer")]
    counts = [_count(trainer.get("devices", "auto")) for trainer in trainers]
    nodes = max((trainer.get("num_nodes") or 1 for trainer in trainers), default=1)
    processes = 0 if 0 in counts else max(counts, default=1)
    several = processes != 1 or nodes > 1 or any(trainer.get("strategy", "auto") != "auto" for trainer in trainers)
    return Needs(processes, nodes, several)


def _count(devices: Any) -> int:
    """Of processes, 0 for all; ``auto`` is the one device that a job has."""
    if isinstance(devices, str):
        devices = [part for part in devices.split(",") if part] if "," in devices else devices
    if isinstance(devices, list) or str(devices) == "-1":
        return 0  # numbers of devices mean those of the machine, so all of them have to be seen
    return int(devices) if str(devices).isdigit() else 1


def check_nodes(cells: Iterable[Cell]) -> None:
    """Raise InputError for a cell whose stages processes on several machines could not hand on to each other."""
    for cell in cells:
        wanted = needs(cell.config).nodes
        if wanted > 1 and cell.config["stages"]:
            raise InputError(
                f"{cell.label}: trainer.num_nodes {wanted}: a scheduler starts the processes of several machines once, "
                "and each stage would need new ones; train the stages on one machine, or each in an experiment"
            )


@dataclass(frozen=True)
class Slots:
    """How many cells of one device run at once, and what a cell may use.

    Args:
        gpus: As ``CUDA_VISIBLE_DEVICES`` names them.
    """

    jobs: int
    gpus: list[str]

    def taken_by(self, cell: Cell) -> int:
        """Slots: one, or those of all devices that the cell asks for."""
        processes = needs(cell.config).processes
        shared = bool(self.gpus) and self.jobs != len(self.gpus)  # a slot is no GPU, so there is no telling
        return self.jobs if processes == 0 or (processes > 1 and shared) else min(processes, self.jobs)

    def threads(self, cell: Cell) -> int:
        """Of each process of a cell."""
        return max(1, cpus() // max(self.jobs, needs(cell.config).processes))

    def devices(self, taken: Collection[int], cell: Cell) -> str | None:
        """What a cell sees in the slots that it took; None: all there are."""
        if len(self.gpus) <= 1 or (len(taken) == self.jobs and needs(cell.config).processes != 1):
            return None
        return ",".join(self.gpus[slot % len(self.gpus)] for slot in sorted(taken))


def cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in visible.split(",")][:count]
