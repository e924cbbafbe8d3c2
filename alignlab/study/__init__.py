"""Studies: which objective helps, over arms x starts x seeds, from one YAML to one report."""

import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.study.launchers import Launcher
    from alignlab.study.plan import Study as Study

__all__ = ["Study", "run_study"]


def run_study(
    path: Path,
    *,
    output: Path | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    overrides: Sequence[str] = (),
    launcher: "Launcher | None" = None,
) -> int:
    """Plan, run and report a study, as the command line does.

    Args:
        path: The study's YAML.
        output: The study's directory; default ``runs/<name of the file>``.
        jobs: Cells at once; see ``launch``.
        dry_run: Print the plan alone.
        overrides: ``key=value``, of the study file or of every cell.
        launcher: Where the cells run; default on this machine.

    Returns:
        The exit code: 0, 1 where a cell failed, 130 after Ctrl-C.

    Raises:
        InputError: The study or one of its configs is wrong; nothing has started.
    """
    from rich.console import Console

    from alignlab.study.launchers.local import Local
    from alignlab.study.plan import Study, default_directory
    from alignlab.study.report import report
    from alignlab.study.tables import plan_table

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a log has no edge
    launcher = launcher or Local()
    if not dry_run and not _done(output or default_directory(path)):
        launcher.prepare()
    study = Study.load(path, directory=output, overrides=overrides)
    if dry_run:
        console.print(plan_table(study))
        return 0
    command = shlex.join(["alignlab", *sys.argv[1:]])
    try:
        failed = launcher.start(study, jobs=jobs, command=command, console=console)
    except KeyboardInterrupt:
        done = sum(cell.state == "finished" for cell in study.cells)
        stopped = f"\nStopped with {done} of {len(study.cells)} cells finished. To go on from there: {command}"
        console.print(stopped, soft_wrap=True, markup=False, highlight=False)
        return 130
    if failed is None:
        return 0  # the same command reports once the cells are finished
    report(study.directory, console=console)
    return 1 if failed else 0


def _done(directory: Path) -> bool:
    """Whether all cells of the last plan are finished, so that there may be nothing to start."""
    from alignlab.study.results import Results
    from alignlab.study.state import MANIFEST

    return (directory / MANIFEST).is_file() and all(cell.finished for cell in Results.read(directory).cells)


def __getattr__(name: str) -> Any:
    # On first use: planning reads configs, and ``alignlab study status`` does not.
    if name == "Study":
        return import_module("alignlab.study.plan").Study
    raise AttributeError(f"module 'alignlab.study' has no attribute {name!r}")
