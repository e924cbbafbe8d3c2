"""slurm: the cells of a study as jobs of SLURM, through submitit; submission returns at once."""

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from alignlab.errors import InputError
from alignlab.experiment.reading import near, parse_override
from alignlab.study.launchers.claiming import claim, locked, write_launch
from alignlab.study.launchers.devices import Needs, check_nodes, needs
from alignlab.study.launchers.job import STOP_SECONDS, Job
from alignlab.study.launchers.queue import Unreachable, standing
from alignlab.study.plan import Cell, Study
from alignlab.study.progress import position
from alignlab.study.state import LAUNCH, read_json

OURS = (
    "array", "chdir", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue",
    "signal", "time", "mem", "cpus-per-task", "gpus-per-node", "partition",
)  # fmt: skip
"""Options of sbatch that are said otherwise, or that a study decides."""
REQUEUES = 1000
"""How often a job may reach its time limit: it goes on from its checkpoint each time."""


@dataclass(frozen=True)
class Settings:
    """What a job asks for.

    Args:
        partition: None for the cluster's default.
        time: Minutes after which a job is stopped, and queued again to go on from there.
        gpus_per_node: None for the devices that a cell asks for if its trainer says that they are GPUs, else none.
        cpus: Cores for each process; torch's threads, too.
        memory: GiB for each machine; None for the cluster's default.
        cluster: ``local`` runs the jobs on this machine, all at once, to try them.
        others: Any other options of sbatch, by name.
    """

    partition: str | None = None
    time: int = 240
    gpus_per_node: int | None = None
    cpus: int = 2
    memory: float | None = None
    cluster: Literal["slurm", "local"] = "slurm"
    others: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("time", 3), ("cpus", 1), ("gpus_per_node", 0), ("memory", 0.001)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not ((whole or name == "memory" and isinstance(value, float)) and value >= least):
                raise InputError(f"--slurm.{name}: expected a number of at least {least:g}, got {value!r}")
        if self.cluster not in ("slurm", "local"):
            raise InputError(f"--slurm.cluster: expected slurm or local, got {self.cluster!r}")


def settings_from(overrides: Iterable[str]) -> Settings:
    """Read ``slurm.key=value``.

    Raises:
        InputError: A value cannot be, or an option of sbatch is the study's own.
    """
    known = {item.name for item in fields(Settings)} - {"others"}
    own: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for override in overrides:
        (_, *key), value = parse_override(override)
        name = ".".join(key)
        option = name.replace("_", "-")
        if name in known:
            own[name] = value
        elif option in OURS or not option:
            hint = near(name, known) or "; there is " + ", ".join(sorted(known))
            raise InputError(f"--slurm.{name} is decided by the study{hint}")
        else:
            others[option] = value
    return Settings(**own, others=others)


@dataclass(frozen=True)
class Slurm:
    """Submits the cells that are neither finished nor queued nor running as one array of jobs.

    Cells that ask for other numbers of devices or machines are an array of their own. A job that is preempted or whose
    time is over stops with a checkpoint and is queued again. The study's directory has to be seen by all machines.
    """

    settings: Settings = Settings()

    def prepare(self) -> None:
        """Check what can be checked before the study is read.

        Raises:
            InputError: submitit or SLURM is missing.
        """
        if find_spec("submitit") is None:
            raise InputError(
                "--launcher slurm needs the package submitit, which is not installed: "
                "pip install 'alignlab[slurm]', or pip install 'submitit>=1.5,<2'"
            )
        if self.settings.cluster == "slurm" and shutil.which("sbatch") is None:
            raise InputError(
                "--launcher slurm: there is no sbatch here; start the study on a machine of the cluster, or use "
                "--launcher print for the commands alone"
            )

    def start(self, study: Study, *, jobs: int | None, command: str, console: Console) -> list[Cell] | None:
        """Submit, and return at once.

        Raises:
            InputError: ``jobs`` is less than 1, SLURM does not answer or refuses, a cell asks for what a job lacks, or
                a cell's directory holds something else.
        """
        if jobs is not None and jobs < 1:
            raise InputError(f"jobs: expected at least 1, got {jobs}")
        self.prepare()
        with locked(study):
            study.save(command)
            left = [cell for cell in study.unique if cell.state != "finished"]
            waiting = _not_under_way(study, left)
            check_nodes(waiting)
            groups: dict[Needs, list[Cell]] = defaultdict(list)
            for cell in waiting:
                groups[needs(cell.config)].append(cell)
            executors = {asked: self._executor(study, asked, cells, jobs) for asked, cells in groups.items()}
            for cell in waiting:
                claim(cell)
            for asked, cells in groups.items():
                self._submit(study, executors[asked], cells, jobs)
        _tell(study, left, waiting, console)
        return None if left else []

    def _executor(self, study: Study, asked: Needs, cells: Sequence[Cell], jobs: int | None) -> Any:
        """Submitit's, with all that the jobs ask for."""
        import submitit

        settings, spread = self.settings, asked.nodes > 1
        gpus = settings.gpus_per_node
        on_gpus = any(cell.config["trainer"].get("accelerator") in ("gpu", "cuda") for cell in cells)
        if gpus is None and on_gpus:
            gpus = max(asked.processes, 1)
        if on_gpus and gpus < asked.processes:
            raise InputError(
                f"{cells[0].label} asks for {asked.processes} devices on a machine, and --slurm.gpus_per_node is {gpus}"
            )
        processes = max(asked.processes, 1)
        executor = submitit.AutoExecutor(
            study.directory.absolute() / "slurm", cluster=settings.cluster, slurm_max_num_timeout=REQUEUES
        )
        executor.update_parameters(
            name=study.name,
            timeout_min=settings.time,
            nodes=asked.nodes,
            tasks_per_node=processes if spread else 1,
            cpus_per_task=settings.cpus * (1 if spread else processes),
            **({} if settings.memory is None else {"mem_gb": settings.memory}),
            **({"gpus_per_node": gpus} if gpus else {}),
            slurm_signal_delay_s=round(STOP_SECONDS) + 15,
            slurm_array_parallelism=jobs or len(cells),
            **({} if settings.partition is None else {"slurm_partition": str(settings.partition)}),
            slurm_additional_parameters={**settings.others, "requeue": True},
        )
        return executor

    def _submit(self, study: Study, executor: Any, cells: Sequence[Cell], jobs: int | None) -> None:
        import submitit

        def job(cell: Cell) -> Job:
            spread = needs(cell.config).nodes > 1
            return Job(str(cell.directory.absolute()), threads=self.settings.cpus, spread=spread)

        try:
            with executor.batch():
                submitted = [executor.submit(job(cell)) for cell in cells]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise InputError(f"--launcher slurm: sbatch refused the jobs: {' '.join(str(error).split())}") from error
        ids = {
            cell.directory.relative_to(study.directory).as_posix(): {
                "id": str(each.job_id),
                "cluster": self.settings.cluster,
                "log": Path(each.paths.stderr).relative_to(study.directory.absolute()).as_posix(),
            }
            for cell, each in zip(cells, submitted, strict=True)
        }
        write_launch(study, launcher="slurm", parallel=jobs or len(cells), jobs=ids)


def _not_under_way(study: Study, left: Sequence[Cell]) -> list[Cell]:
    """The cells that no job has, and no process runs."""
    known = (read_json(study.directory / LAUNCH) or {}).get("jobs", {})
    places = {cell.directory.relative_to(study.directory).as_posix(): cell for cell in left}
    try:
        jobs = standing({place: known[place] for place in places if place in known})
    except Unreachable as error:
        raise InputError(
            f"{study.directory}: cells have jobs already, and whether those wait or run is not known: {error}"
        ) from None
    return [
        cell for place, cell in places.items() if jobs.get(place, "gone") == "gone" and position(cell.directory) is None
    ]


def _tell(study: Study, left: Sequence[Cell], waiting: Sequence[Cell], console: Console) -> None:
    if not left:
        return
    under_way = len(left) - len(waiting)
    parts = [f"{len(waiting)} cells submitted"] if waiting else ["nothing to submit"]
    parts += [f"{under_way} queued or running already"] if under_way else []
    console.print(
        f"{study.name}: {', '.join(parts)}. `alignlab study status {study.directory}` shows how far they are; the same "
        "command again submits what failed, and reports once all cells are finished.",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )
