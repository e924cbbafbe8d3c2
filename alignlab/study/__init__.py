"""Studies: which objective helps, over arms x starts x seeds, from one YAML to one report."""

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from alignlab.study.display import Bars, Lines
from alignlab.study.launch import launch, preload
from alignlab.study.plan import MANIFEST, Cell, Study, default_directory
from alignlab.study.report import report
from alignlab.study.results import Results
from alignlab.study.tables import plan_table

__all__ = ["Study", "launch", "report", "run_study"]


def run_study(
    path: Path,
    *,
    output: Path | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
) -> int:
    """Plan, run and report a study, as the command line does.

    Args:
        path: The study's YAML.
        output: The study's directory; default ``runs/<name of the file>``.
        jobs: Cells at once; see ``launch``.
        dry_run: Print the plan alone.
        overrides: ``key=value``, of the study file or of every cell.

    Returns:
        The exit code: 0, 1 where a cell failed, 130 after Ctrl-C.

    Raises:
        InputError: The study or one of its configs is wrong; nothing has started.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log has no edge
    if not dry_run and not _done(output or default_directory(path)):
        preload()  # imports while the cells are validated

    def load() -> Study:
        return Study.load(path, directory=output, overrides=overrides)

    study = load()
    if dry_run:
        console.print(plan_table(study))
        return 0
    display = Bars(console) if console.is_terminal else Lines(console)
    command = shlex.join(["alignlab", *sys.argv[1:]])
    try:
        failed = compute(study, load, partial(launch, jobs=jobs, command=command, display=display), command)
    except KeyboardInterrupt:
        done = sum(cell.state == "finished" for cell in study.unique)
        stopped = f"\nStopped with {done} of {len(study.unique)} cells finished. To go on from there: {command}"
        console.print(stopped, soft_wrap=True, markup=False, highlight=False)
        return 130
    report(study.directory, console=console)
    return 1 if failed else 0


def compute(
    study: Study, load: Callable[[], Study], launch: Callable[[Study], Sequence[Cell]], command: str
) -> list[Cell]:
    """Launch a study; where settings are tried, again with what was chosen, until nothing new is to be computed.

    Args:
        study: As ``load`` gave it.
        load: Plans it anew, by what is finished then.
        launch: Computes what is not finished.
        command: What the user typed, for the report.

    Returns:
        The cells that failed.
    """
    failed = list(launch(study))
    while study.tuning is not None:
        before = {cell.directory for cell in study.unique}
        study = load()
        if before >= {cell.directory for cell in study.unique}:
            study.save(command)
            break
        failed = list(launch(study))
    return failed


def _done(directory: Path) -> bool:
    """Whether all cells of the last plan are finished, so that there may be nothing to start."""
    if not (directory / MANIFEST).is_file():
        return False
    results = Results.read(directory)
    return not results.pending and all(cell.finished for cell in (*results.cells, *results.trials))
