"""frames: what a study or a run has found, as pandas data frames of its cells and of their items."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import InputError
from alignlab.study.costs import Costs
from alignlab.study.differences import leaves
from alignlab.study.examination import read_config
from alignlab.study.layers import own_start
from alignlab.study.plan import MANIFEST
from alignlab.study.results import CellResult, Results
from alignlab.study.state import METRICS, read_json

if TYPE_CHECKING:
    from pandas import DataFrame

COSTS = tuple(each.name for each in fields(Costs) if each.name != "parts")
TOLD = ("id", "score", "prompt", "output", "reference", "picture")
"""What the frame has of every item, None where an evaluator writes none; lists, such as token weights, stay files."""


@dataclass(frozen=True)
class Frames:
    """The cells of a study and their items; one cell for a single run.

    Args:
        runs: Each cell and its files.
        settings: Dotted config keys that differ between arms.
    """

    runs: tuple[CellResult, ...]
    settings: tuple[str, ...]

    @cached_property
    def cells(self) -> "DataFrame":
        """One row a cell, finished or not.

        Columns: ``arm``, ``start``, ``seed``, ``state``, ``directory``; every score under its name
        (``caption/exact``), those of blind audits as well; the costs of the cell alone (``steps``, ``samples``,
        ``tokens``, ``forward`` and ``backward`` in floating-point operations, ``trained`` and ``total`` weights,
        ``training`` and ``evaluation`` in seconds, ``memory`` in MiB), and the same with the stages that it builds on
        (``with_stages.steps`` and so on); every config key that differs between arms, as ``config.optimization.lr``.
        """
        rows = [self._row(cell) for cell in self.runs]
        return _frame({name: [row.get(name) for row in rows] for row in rows for name in row})

    @cached_property
    def items(self) -> "DataFrame":
        """One row for every cell, evaluator and item; ``items/<evaluator>.jsonl`` of finished cells.

        Columns: ``arm``, ``start``, ``seed``, ``evaluator``, ``id``, ``score``, ``prompt``, ``output``, ``reference``,
        ``picture`` (below the cell's directory); what the item adds to the mean of each score, under the score's name:
        the mean of ``caption/exact`` over a cell's items is the cell's ``caption/exact``. Reads the files when first
        asked for.
        """
        names = ("arm", "start", "seed", "evaluator", *TOLD)
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for count, (place, item) in enumerate(self._items()):
            for name, value in zip(names, (*place, *(item.get(name) for name in TOLD)), strict=True):
                columns[name].append(value)
            for name, value in (item.get("metrics") or {}).items():
                column = columns.setdefault(f"{place[3]}/{name}", [])
                column.extend([None] * (count - len(column)))
                column.append(value)
        length = len(columns["arm"])
        return _frame({name: column + [None] * (length - len(column)) for name, column in columns.items()})

    def _items(self) -> Iterator[tuple[tuple[str, str, int, str], dict[str, Any]]]:
        for cell in self.runs:
            for evaluator in cell.evaluators if cell.finished else ():
                place = (cell.arm, cell.start, cell.seed, evaluator)
                yield from ((place, item) for item in cell.items(evaluator))

    def _row(self, cell: CellResult) -> dict[str, Any]:
        row = {name: getattr(cell, name) for name in ("arm", "start", "seed", "state")}
        row |= {"directory": str(cell.directory), **cell.metrics.get("scores", {})}
        whole = vars(cell.whole_costs) if cell.finished else dict.fromkeys(COSTS)
        row |= {name: getattr(cell.costs, name) if cell.finished else None for name in COSTS}
        row |= {f"with_stages.{name}": whole[name] for name in COSTS}
        return row | {f"config.{name}": value for name, value in self._settings_of(cell).items()}

    def _settings_of(self, cell: CellResult) -> dict[str, Any]:
        """The cell's values of the config keys that differ between arms; None for what it has not."""
        config = dict(leaves(read_config(cell.directory))) if self.settings else {}
        return {name: _plain(config.get(name, cell.differs.get(name))) for name in self.settings}


def _plain(value: Any) -> Any:
    """Lists and mappings as text, since what stands in a data frame is to be grouped by."""
    return str(value) if isinstance(value, list | dict) else value


def _frame(columns: Mapping[str, list[Any]]) -> "DataFrame":
    import pandas  # takes half a second; `import alignlab` does without

    return pandas.DataFrame(columns)


def results(directory: Path | str) -> Frames:
    """The cells and items of a study, finished or not, or of a single finished run.

    Args:
        directory: What ``alignlab study run`` or ``alignlab fit`` left.

    Raises:
        InputError: It is neither.

    Example::

        found = alignlab.results("runs/objectives")
        found.cells.groupby("arm")["caption/exact"].mean()
        found.items.query("evaluator == 'vqa'").groupby(["arm", "prompt"])["vqa/accuracy"].mean()
    """
    directory = Path(directory)
    if (directory / MANIFEST).is_file():
        cells = Results.read(directory).cells
        return Frames(cells, tuple(dict.fromkeys(name for cell in cells for name in cell.differs)))
    return Frames((_run(directory),), ())


def _run(directory: Path) -> CellResult:
    """A single run as the one cell of its objective."""
    metrics = read_json(directory / METRICS)
    if metrics is None or "scores" not in metrics:
        what = f"it has neither {MANIFEST} nor {METRICS} with scores" if directory.is_dir() else "it is no directory"
        raise InputError(
            f"{directory}: holds no results: {what}; expected what `alignlab study run` or a finished `alignlab fit` "
            "left"
        )
    return CellResult(
        arm=metrics.get("objective") or "command",
        start=own_start(read_config(directory)),
        seed=metrics.get("seed", 0),
        directory=directory,
        digest=metrics.get("config_hash", ""),
        differs={},
        state="finished",
    )
