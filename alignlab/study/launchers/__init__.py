"""Launchers: where and when the cells of a study run."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

    from alignlab.study.plan import Cell, Study


class Launcher(Protocol):
    """Starts the cells of a study that are not finished."""

    def prepare(self) -> None:
        """What can go on, or be refused, before the study is read.

        Raises:
            InputError: Nothing could be started here.
        """

    def start(self, study: "Study", *, jobs: int | None, command: str, console: "Console") -> "list[Cell] | None":
        """Start them.

        Args:
            jobs: Cells at a time; None: the launcher's own choice.
            command: What the user typed, for the report.
            console: Takes what there is to say.

        Returns:
            The cells that failed, or None where cells are not finished when this returns.
        """
