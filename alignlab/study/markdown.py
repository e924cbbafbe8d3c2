"""markdown: a study's report as Markdown."""

from collections.abc import Callable, Mapping
from pathlib import Path

from alignlab.study.comparison import caveats, compare, paired, summary, trades
from alignlab.study.costsheet import cost_sheet
from alignlab.study.entries import Entry
from alignlab.study.evidence import claims_sheet, evidence_sheet, tuning_sheet
from alignlab.study.results import CellResult, Results
from alignlab.study.sheets import Sheet, audit_sheet, calibration_sheets
from alignlab.study.tables import expenses, told
from alignlab.study.wording import bounds, score, setting, signed


def markdown(results: Results) -> str:
    """The report as Markdown."""
    lines = [f"# {results.name}", ""]
    lines += [results.description, ""] if results.description else []
    lines += [f"- {sentence}" for sentence in summary(results)]
    lines += _sheet(claims_sheet(results))
    if results.finished:
        lines += ["", "## Scores", "", "Mean ± 95 % interval over cells.", ""]
        lines += _crossed(results, {arm: arm for arm in results.arms}, _score)
        lines += ["", f"## Differences to {results.baseline}", "", "Paired by start and seed, with 95 % intervals.", ""]
        lines += _crossed(results, {arm: results.label(arm) for arm in results.others}, _difference)
        lines += _sheet(evidence_sheet(results)) + _sheet(tuning_sheet(results))
    lines += _tradeoff(results)
    lines += _sheet(audit_sheet(results, results.audits))
    lines += [line for sheet in calibration_sheets(results) for line in _sheet(sheet)]
    lines += ["", "## Arms", ""]
    differing = [[results.label(arm), _differs(results, arm)] for arm in results.arms]
    lines += _rows(["arm", f"differs from {results.baseline}"], differing)
    lines += _sheet(cost_sheet(results))
    header = ["arm", "start", "seed", "state", "time", "steps", "samples", "trained parameters", "directory"]
    lines += ["", "## Cells", "", *_rows(header, [_cell_row(cell, results.directory) for cell in results.cells])]
    lines += ["", "## How to read this", "", *(f"- {note}" for note in caveats(results))]
    lines += ["", "## Made by", "", "```", results.command or f"alignlab study report {results.directory}", "```", ""]
    return "\n".join(lines)


def _tradeoff(results: Results) -> list[str]:
    rows = [[trade.arm, *map(score, (*trade.means, trade.size)[: len(results.tradeoff)])] for trade in trades(results)]
    if not rows:
        return []
    note = "Means ± 95 % intervals over the cells that have both; the page report.html draws them."
    return ["", "## Trade-off", "", note, "", *_rows(["arm", *results.tradeoff], rows)]


def _sheet(sheet: Sheet | None) -> list[str]:
    if sheet is None:
        return []
    rows = _rows([item.text for item in sheet.header], [[item.text for item in row] for row in sheet.rows])
    return ["", f"## {sheet.title}", "", sheet.note, "", *rows]


def _rows(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [[text.replace("|", "\\|").replace("\n", "<br>") for text in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + " --- |" * len(header), *lines[1:]]


def _crossed(results: Results, arms: Mapping[str, str], told: Callable[[Entry], str]) -> list[str]:
    """Arms, with what they are called, and metrics; the longer of the two goes down."""
    rows = [[told(compare(results, arm, metric)) for arm in arms] for metric in results.metrics]
    if len(arms) > len(results.metrics) > 0:
        turned = zip(arms.values(), zip(*rows, strict=True), strict=True)
        return _rows(["arm", *results.metrics], [[name, *row] for name, row in turned])
    return _rows(
        ["metric", *arms.values()], [[metric, *row] for metric, row in zip(results.metrics, rows, strict=True)]
    )


def _score(entry: Entry) -> str:
    return score(entry.score)


def _difference(entry: Entry) -> str:
    text = f"{signed(entry.difference.mean)} {bounds(entry.difference)}" if entry.difference else "n/a"
    pairs = f" ({paired(entry)})" if paired(entry) else ""
    return (f"**{text}**" if entry.clear else text) + pairs


def _differs(results: Results, arm: str) -> str:
    return "; ".join(f"{key}: {setting(value)}" for key, value in results.of(arm)[0].differs.items()) or "–"


def _cell_row(cell: CellResult, directory: Path) -> list[str]:
    state = told(cell.state) + (f": {cell.reason}" if cell.reason else "")
    place = cell.directory.relative_to(directory).as_posix()
    return [cell.arm, cell.start, str(cell.seed), state, *expenses(cell), place]
