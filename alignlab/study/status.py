"""status: how far a study is, that runs, waits or was interrupted, from its directory and its scheduler alone."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignlab.errors import InputError
from alignlab.study.display import duration
from alignlab.study.launchers.queue import Standing, Unreachable, standing
from alignlab.study.progress import Position, position
from alignlab.study.state import FAILURE, LAUNCH, MANIFEST, METRICS, read_json, state

Now = Literal["finished", "running", "queued", "failed", "interrupted", "new"]
COLUMNS: tuple[tuple[str, tuple[Now, ...]], ...] = (
    ("finished", ("finished",)),
    ("running", ("running",)),
    ("queued", ("queued",)),
    ("failed", ("failed",)),
    ("waiting", ("interrupted", "new")),
)


@dataclass(frozen=True)
class CellStatus:
    """How far a cell is.

    Args:
        position: Of one that runs; None where the scheduler alone says that it does.
        reason: Why one failed.
        seconds: What one that is finished took.
    """

    arm: str
    label: str
    now: Now
    position: Position | None
    reason: str | None
    seconds: float | None


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Args:
        cells: Those of one directory once.
        launched: What ``launch.json`` says: ``launcher``, ``parallel``, ``started``; empty before the first launch.
        unknown: Why the scheduler could not be asked; None where it was, or need not be.
        pending: Tuned arms are missing until the study is run again after its cells of tuning.
    """

    name: str
    directory: Path
    arms: tuple[str, ...]
    cells: tuple[CellStatus, ...]
    launched: Mapping[str, Any]
    unknown: str | None
    pending: bool = False

    def count(self, *states: Now) -> int:
        """Cells that are in one of these states."""
        return sum(cell.now in states for cell in self.cells)

    @property
    def remaining(self) -> float | None:
        """Seconds that unfinished cells may take, from what finished ones of the same arm took, else of any.

        As many are taken to run at a time as run now, or ran when the study was last started. None where no cell is
        finished.
        """
        took = [cell.seconds for cell in self.cells if cell.seconds is not None]
        if not took:
            return None
        work = 0.0
        for cell in self.cells:
            if cell.now != "finished":
                own = [each.seconds for each in self.cells if each.arm == cell.arm and each.seconds is not None]
                share = cell.position.share if cell.position else 0.0
                work += _mean(own or took) * (1 - share)
        return work / max(self.count("running"), int(self.launched.get("parallel") or 0), 1)

    @classmethod
    def read(cls, study: Path) -> "Status":
        """Look at a study; nothing is written.

        Args:
            study: Its directory, or its YAML, if it is kept in ``runs/<name of the file>``.

        Raises:
            InputError: No study is kept there.
        """
        directory = Path("runs") / study.stem if study.is_file() else study
        manifest = read_json(directory / MANIFEST)
        if manifest is None:
            raise InputError(f"{directory}: no study is kept there; `alignlab study run` makes one")
        launched = read_json(directory / LAUNCH) or {}
        jobs, unknown = {}, None
        try:
            jobs = standing(_open_jobs(directory, manifest, launched))
        except Unreachable as error:
            unknown = str(error)
        cells = {}
        for cell in (*manifest.get("trials", ()), *manifest["cells"]):
            job = (launched.get("jobs", {}).get(cell["directory"], {}), jobs.get(cell["directory"]))
            cells.setdefault(cell["directory"], _cell_status(directory / cell["directory"], cell, *job))
        arms = tuple(dict.fromkeys([*manifest["arms"], *(cell.arm for cell in cells.values())]))
        pending = bool((manifest.get("tuning") or {}).get("pending"))
        return cls(manifest["name"], directory, arms, tuple(cells.values()), launched, unknown, pending)


def show_status(study: Path) -> int:
    """Print how far a study is, as ``alignlab study status`` does; returns the exit code, 1 where a cell failed."""
    status = Status.read(study)
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    title = f"{status.name}: {len(status.cells)} cells in {status.directory}"
    console.print(title, soft_wrap=True, markup=False, highlight=False)
    console.print(_table(status))
    for line in (*_running(status), *_failed(status), *_summary(status)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 1 if status.count("failed") else 0


def _open_jobs(
    directory: Path, manifest: Mapping[str, Any], launched: Mapping[str, Any]
) -> dict[str, Mapping[str, str]]:
    """The scheduler's jobs of cells that are not finished."""
    jobs = launched.get("jobs", {})
    places = {cell["directory"]: cell["digest"] for cell in (*manifest.get("trials", ()), *manifest["cells"])}
    unfinished = [place for place, digest in places.items() if state(directory / place, digest) != "finished"]
    return {place: jobs[place] for place in unfinished if place in jobs}


def _cell_status(
    directory: Path, cell: Mapping[str, Any], job: Mapping[str, str], standing: Standing | None
) -> CellStatus:
    kept, at, seconds, reason = state(directory, cell["digest"]), None, None, None
    now: Now = kept
    if kept == "finished":
        seconds = sum((read_json(directory / METRICS) or {}).get("seconds", {}).values())
    elif (at := position(directory)) is not None:
        now = "running"
    elif standing in ("queued", "running"):
        now = standing
    elif kept == "failed":
        reason = (read_json(directory / FAILURE) or {}).get("message")
    elif standing == "gone":
        now, reason = "failed", f"job {job['id']} ended without results; see {job.get('log', 'its log')}"
    label = f"{cell['arm']} · {cell['start']} · seed {cell['seed']}"
    return CellStatus(cell["arm"], label, now, at, None if reason is None else " ".join(reason.split()), seconds)


def _table(status: Status) -> Table:
    shown = [column for column in COLUMNS if column[0] in ("finished", "waiting") or status.count(*column[1])]
    table = Table(box=SIMPLE_HEAD)
    table.add_column("arm", overflow="fold")
    for name, _ in shown:
        table.add_column(name, justify="right")
    table.add_column("a cell", justify="right")
    for arm in status.arms:
        own = [cell for cell in status.cells if cell.arm == arm]
        counts = [sum(cell.now in states for cell in own) for _, states in shown]
        took = [cell.seconds for cell in own if cell.seconds is not None]
        if own:
            table.add_row(escape(arm), *(str(count or "") for count in counts), duration(_mean(took)) if took else "")
    if len(status.arms) > 1:
        table.add_section()
        table.add_row("all", *(str(status.count(*states) or "") for _, states in shown), "")
    return table


def _running(status: Status) -> Iterator[str]:
    for cell in status.cells:
        if (at := cell.position) is not None:
            steps = f" {at.step}/{at.steps} ({100 * at.share:.0f} %)" if at.steps else ""
            yield f"running: {cell.label}: {at.stage}{steps}, for {duration(time.time() - at.started)} on {at.host}"


def _failed(status: Status) -> Iterator[str]:
    for cell in status.cells:
        if cell.now == "failed":
            yield f"failed: {cell.label}: {cell.reason or 'unknown'}"


def _summary(status: Status) -> Iterator[str]:
    if status.unknown is not None:
        yield f"which jobs wait or run is not known: {status.unknown}"
    left = len(status.cells) - status.count("finished")
    at_work = status.count("running", "queued")
    took = sum(cell.seconds for cell in status.cells if cell.seconds is not None)
    words = [f"{status.count('finished')} of {len(status.cells)} cells are finished"]
    if took:
        words.append(f"which took {duration(took)} of computing")
    if at_work and "started" in status.launched:
        words.append(f"started {duration(time.time() - status.launched['started'])} ago")
    if left and status.remaining is not None:
        words.append(f"about {duration(status.remaining)} left" + ("" if at_work else " once it goes on"))
    yield ", ".join(words)
    if status.pending:
        yield "tuned arms are not among them: the run that finds all cells of tuning done adds theirs"
    if (left or status.pending) and not at_work and status.unknown is None:
        yield "nothing is at work; `alignlab study run` with the study's YAML goes on"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
