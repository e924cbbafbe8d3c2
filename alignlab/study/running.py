"""running: a study from its file to its report, as the command line runs it."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from alignlab.errors import InputError
from alignlab.experiment.noting import noting_files
from alignlab.experiment.show import wide_console
from alignlab.experiment.unchanged import Asked, Read, remember
from alignlab.study.launchers import Launcher
from alignlab.study.launchers.local import Local
from alignlab.study.plan import Cell, Study, default_directory
from alignlab.study.report import report
from alignlab.study.results import Results
from alignlab.study.state import MANIFEST


def run_study(
    path: Path,
    *,
    output: Path | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    launcher: Launcher | None = None,
) -> int:
    """Plan, run and report a study, as the command line does.

    Args:
        path: The study's YAML.
        output: The study's directory; default ``runs/<name of the file>``.
        jobs: Cells at once; see ``launch``.
        dry_run: Print the plan alone, with what it will take.
        overrides: ``key=value``, of the study file or of every cell.
        launcher: Where the cells run; default on this machine.

    Returns:
        The exit code: 0, 1 where a cell failed, 130 after Ctrl-C.

    Raises:
        InputError: The study or one of its configs is wrong; nothing has started.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"jobs: expected at least 1, got {jobs}")
    console = wide_console()
    launcher = launcher or Local()
    if not dry_run and not _done(output or default_directory(path)):
        launcher.prepare()

    read: Read | None = None

    def load() -> Study:
        nonlocal read
        with noting_files() as files:
            planned = Study.load(path, directory=output, overrides=overrides)
        read = None if dry_run else _read(planned, files)
        return planned

    study = load()
    if dry_run:
        from alignlab.study.dryrun import show

        show(study, jobs=jobs, console=console)
        return 0
    command = shlex.join(["alignlab", *sys.argv[1:]])

    def launch(planned: Study) -> list[Cell] | None:
        nonlocal study
        study = planned
        return launcher.start(study, jobs=jobs, command=command, console=console)

    try:
        study, failed = compute(study, load, launch, command)
    except KeyboardInterrupt:
        done = sum(cell.state == "finished" for cell in study.unique)
        stopped = f"\nStopped with {done} of {len(study.unique)} cells finished. To go on from there: {command}"
        console.print(stopped, soft_wrap=True, markup=False, highlight=False)
        return 130
    if failed is None:
        return 0  # the same command reports once the cells are finished
    console.record = True
    report(study.directory, console=console)
    if not failed:
        asked = Asked(Path(path), study.directory, overrides)
        remember(asked, read, text=console.export_text(styles=True), width=console.width)
    return 1 if failed else 0


def compute(
    study: Study,
    load: Callable[[], Study],
    launch: Callable[[Study], Sequence[Cell] | None],
    command: str,
) -> tuple[Study, list[Cell] | None]:
    """Launch a study; where settings are tried, again with what was chosen, until nothing new is to be computed.

    Args:
        study: As ``load`` gave it.
        load: Plans it anew, by what is finished then.
        launch: Computes what is not finished, or sees to it and returns None.
        command: What the user typed, for the report.

    Returns:
        The study as it was planned last, and the cells that failed, None where cells are under way elsewhere.
    """
    failed = launch(study)
    while failed is not None and study.tuning is not None:
        before = {cell.directory for cell in study.unique}
        study = load()
        if before >= {cell.directory for cell in study.unique}:
            study.save(command)
            break
        failed = launch(study)
    return study, None if failed is None else list(failed)


def _read(study: Study, files: set[Path]) -> Read:
    """What decided a plan; ``files`` are the experiment files that were read."""
    from alignlab.experiment.config import own_files

    return Read.now(
        files=files.union(*(own_files(cell.config) for cell in study.unique)),
        folders={folder for cell in study.unique for folder in cell.config["python_path"]},
        digests={cell.directory: cell.digest for cell in study.unique},
    )


def _done(directory: Path) -> bool:
    """Whether all cells of the last plan are finished, so that there may be nothing to start."""
    if not (directory / MANIFEST).is_file():
        return False
    results = Results.read(directory)
    return not results.pending and all(cell.finished for cell in (*results.cells, *results.trials))
