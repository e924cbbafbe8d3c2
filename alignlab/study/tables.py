"""tables: the results of a study in the terminal."""

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alignlab.study.audit import mismatches
from alignlab.study.calibration import gain
from alignlab.study.comparison import compare, paired
from alignlab.study.display import duration
from alignlab.study.entries import Entry
from alignlab.study.results import CellResult, Results
from alignlab.study.sheets import Sheet
from alignlab.study.wording import bounds, number, score, signed

STYLES = {"": "", "right": "green", "wrong": "red"}


def score_table(results: Results) -> Table:
    """Every metric: the arms with their means and their differences to the baseline."""
    table = Table(title=f"{results.name}: mean ± 95 % interval over cells", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("metric, arm", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column(f"difference to {escape(results.baseline)}", justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    for metric in results.metrics:
        table.add_row(f"[bold]{escape(metric)}")
        for arm in results.arms:
            entry = compare(results, arm, metric)
            count = f"{len(entry.values)} ({pairs})" if (pairs := paired(entry)) else str(len(entry.values))
            table.add_row(f"  {escape(results.label(arm))}", score(entry.score), _difference(entry), count)
    return table


def arm_table(results: Results) -> Table:
    """Every arm: its mean on each metric, marked where its difference is clear."""
    title = f"{results.name}: means; ▲ higher, ▼ lower than {results.baseline}"
    title += " or what an arm is compared with" if results.against else ""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm", min_width=10, overflow="fold")
    for metric in results.metrics:
        words = escape(metric.replace("/", " ").replace("_", " "))
        table.add_column(words, justify="right", min_width=6, overflow="fold")
    unmatched = {arm for arm in results.others if mismatches(results, arm)}
    for arm in results.arms:
        entries = [compare(results, arm, metric) for metric in results.metrics]
        table.add_row(escape(arm) + (" ≠" if arm in unmatched else ""), *map(_marked, entries))
    marks = "Marked where the 95 % interval of the paired difference excludes 0."
    table.caption = marks + (" ≠ The comparison is not matched; the report says why." if unmatched else "")
    table.caption_justify = "left"
    return table


def _marked(entry: Entry) -> Text:
    if entry.score is None:
        return Text("– ")
    mean = score(entry.score).partition(" ")[0]
    if not entry.clear:
        return Text(f"{mean} ")
    better = gain(entry.metric, entry.difference.mean) > 0
    return Text(f"{mean}{'▲' if entry.difference.mean > 0 else '▼'}", "green" if better else "magenta")


def _difference(entry: Entry) -> Text:
    if entry.difference is None:
        return Text("")
    better = gain(entry.metric, entry.difference.mean) > 0
    style = "" if not entry.clear else "bold green" if better else "bold magenta"
    return Text(f"{signed(entry.difference.mean)} {bounds(entry.difference)}", style)


def sheet_table(sheet: Sheet) -> Table:
    """A sheet in the terminal, its first two columns one below the other."""
    table = Table(title=sheet.title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column(escape(", ".join(item.text for item in sheet.header[:2])), overflow="fold")
    for head, *column in zip(sheet.header[2:], *(row[2:] for row in sheet.rows), strict=True):
        widest = max(map(len, (*head.text.split(), *(item.text for item in column))))
        table.add_column(escape(head.text), justify="right", max_width=widest)  # titles wrap, numbers do not
    last = None
    for metric, subject, *numbers in sheet.rows:
        if metric != last:
            table.add_row(Text(metric.text, "bold"))
        words = Padding(Text(subject.text, STYLES[subject.tone]), (0, 0, 0, 2))
        table.add_row(words, *(Text(item.text) for item in numbers))
        last = metric
    return table


def unfinished(results: Results) -> list[str]:
    """A line for every cell without results."""
    lines = []
    for cell in results.cells:
        if not cell.finished:
            why = f": {cell.reason}" if cell.reason else ""
            lines.append(
                f"{cell.arm} · {cell.start} · seed {cell.seed}: {told(cell.state)}{why} ({shown(cell.directory)})"
            )
    return lines


def expenses(cell: CellResult) -> list[str]:
    """Time, steps, samples, trained parameters."""
    time = "" if cell.seconds is None else duration(cell.seconds)
    counts = (cell.metrics.get("steps"), cell.metrics.get("samples"), cell.trained)
    return [time, *("" if count is None else number(count) for count in counts)]


def told(state: str) -> str:
    """A cell's state in a report."""
    return {"new": "not started", "interrupted": "not finished"}.get(state, state)


def shown(path: Path) -> str:
    """A path as short as the working directory allows."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else str(path)
