"""report: a study's results in the terminal, as ``report.md`` and as one self-contained ``report.html``."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from alignlab.study import figures, papers
from alignlab.study.comparison import caveats, extent, summary
from alignlab.study.costsheet import SHORT, cost_sheet
from alignlab.study.drawn import draw
from alignlab.study.evidence import TONES, expected, grounds, judgements
from alignlab.study.markdown import markdown
from alignlab.study.page import html, rows
from alignlab.study.results import Results
from alignlab.study.sheets import audit_sheet, calibration_sheets
from alignlab.study.summaryrun import summarize
from alignlab.study.tables import STYLES, arm_table, score_table, sheet_table, unfinished

__all__ = ["html", "markdown", "report"]

MANY = 5
"""Arms from which on a terminal shows one line an arm, and the rest is left to the report."""

LONGEST = 20
"""Rows of a sheet, and lines of unfinished cells, that a terminal shows."""


def report(directory: Path, *, console: Console | None = None) -> Path:
    """Report on a study, finished or not, from its directory alone.

    Args:
        directory: Of the study; ``report.md`` and ``report.html`` are written there, the drawings as files
            in ``figures``, and tables for papers in ``tables``.
        console: Takes the table and the page's place; default the terminal.

    Returns:
        The HTML file.

    Raises:
        InputError: The directory is not a study's.
    """
    results = Results.read(Path(directory))
    console = console or Console()
    _print(results, console)
    (results.directory / "report.md").write_text(markdown(results), encoding="utf-8")
    page = results.directory / "report.html"
    entries = rows(results, results.metrics)
    drawn = draw(results, entries)
    page.write_text(html(results, drawn), encoding="utf-8")
    figures.write(drawn.all, results.directory / "figures")
    papers.write(results, entries, results.directory / "tables")
    summarize(results)
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)
    return page


def _print(results: Results, console: Console) -> None:
    many = len(results.arms) > MANY
    if results.finished:
        console.print(arm_table(results) if many else score_table(results))
    sheets = calibration_sheets(results)
    sheets += [] if many else [audit_sheet(results, results.metrics), cost_sheet(results, SHORT)]
    for sheet in sheets:
        if sheet is not None and len(sheet.rows) <= LONGEST:
            console.print(sheet_table(sheet))
    for line in extent(results) if many else summary(results):
        console.print(escape(line), highlight=False)
    for judged in judgements(results):
        verdict = judged.finding.verdict
        tone = STYLES[TONES[verdict]] or "bold"
        told = escape(f"{expected(judged.registered.claim)} ({grounds(judged, results.unit)})")
        console.print(f"[{tone}]{verdict}[/] {told}", highlight=False)
    lines = unfinished(results)
    for line in lines[:LONGEST]:
        console.print(f"[red]○[/] {escape(line)}", highlight=False, soft_wrap=True)
    if len(lines) > LONGEST:
        console.print(f"[red]○[/] and {len(lines) - LONGEST} more, listed in the report", highlight=False)
    for line in [] if many else caveats(results):
        console.print(f"[dim]{escape(line)}[/]", highlight=False)
