"""lines: a study's cells as shell commands, for any other scheduler."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from alignlab.errors import InputError
from alignlab.study.cell import words
from alignlab.study.launchers.claiming import claim, locked, write_launch
from alignlab.study.launchers.devices import check_nodes, needs
from alignlab.study.plan import Cell, Study

PORT = 29500


class Print:
    """Prints a line for every cell that is not finished.

    The lines need no order: what cells have in common is computed by the first, for which the others wait. A line that
    is run again goes on from the last checkpoint, or does nothing where its cell is finished.
    """

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def start(self, study: Study, *, jobs: int | None, command: str, console: Console) -> list[Cell] | None:
        """Write the cells' configs and print the lines.

        Raises:
            InputError: ``jobs`` is given, which is the scheduler's business, a cell's directory holds something else,
                or a cell has stages and needs several machines.
        """
        if jobs is not None:
            raise InputError(f"--jobs {jobs} goes with --launcher local or slurm; who runs the lines says how many")
        with locked(study):
            study.save(command)
            cells = study.unique
            left = [cell for cell in cells if cell.state != "finished"]
            if not left:
                return []
            check_nodes(left)
            for cell in left:
                claim(cell)
            write_launch(study, launcher="print", parallel=0)
        print(f"# {study.name}: {len(left)} of {len(cells)} cells are not finished; after these lines the study's own")
        print(f"# command reports them: {command}")
        print("\n".join(lines(left)))
        return None


def lines(cells: list[Cell]) -> Iterator[str]:
    """A complete command for every cell."""
    here = shlex.quote(os.getcwd())
    for cell in cells:
        yield f"cd {here} && {_command(cell)}"


def _command(cell: Cell) -> str:
    asked, (python, *own) = needs(cell.config), words(_short(cell.directory))
    if asked.nodes == 1:
        return shlex.join([python, *own])
    each = f"--nnodes {asked.nodes} --nproc-per-node {asked.processes or 'gpu'} --rdzv-backend c10d"
    where = f'--rdzv-id {cell.digest} --rdzv-endpoint "${{MASTER:?is the first machine}}:{PORT}"'
    return f"{shlex.quote(python)} -m torch.distributed.run {each} {where} {shlex.join(own)}"


def _short(directory: Path) -> Path:
    """Relative to where the lines go first, if it lies there."""
    here = Path(os.getcwd())
    return directory.relative_to(here) if directory.is_absolute() and directory.is_relative_to(here) else directory
