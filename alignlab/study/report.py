"""report: a study's results in the terminal, as ``report.md`` and as one self-contained ``report.html``."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.console import Console
from rich.markup import escape

from alignlab.experiment import shading
from alignlab.study import gallery, plots
from alignlab.study.comparison import (
    Entry,
    caveats,
    compare,
    extent,
    paired,
    power,
    summary,
    trade_note,
    trades,
    verdict,
)
from alignlab.study.display import duration
from alignlab.study.figures import svg_for_page
from alignlab.study.pictures import pictures
from alignlab.study.results import CellResult, Results
from alignlab.study.sheets import Sheet, audit_sheet, calibration_sheets
from alignlab.study.tables import score_table, sheet_table, shown, told, unfinished
from alignlab.study.wording import bounds, number, score, setting, signed


def report(directory: Path, *, console: Console | None = None) -> Path:
    """Report on a study, finished or not, from its directory alone.

    Args:
        directory: Of the study; ``report.md`` and ``report.html`` are written there.
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
    page.write_text(html(results), encoding="utf-8")
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)
    return page


def _print(results: Results, console: Console) -> None:
    if results.finished:
        console.print(score_table(results))
    for sheet in (audit_sheet(results, results.metrics), *calibration_sheets(results)):
        if sheet is not None:
            console.print(sheet_table(sheet))
    for line in summary(results):
        console.print(escape(line), highlight=False)
    for line in unfinished(results):
        console.print(f"[red]○[/] {escape(line)}", highlight=False, soft_wrap=True)
    for line in caveats(results):
        console.print(f"[dim]{escape(line)}[/]", highlight=False)


def markdown(results: Results) -> str:
    """The report as Markdown."""
    lines = [f"# {results.name}", ""]
    lines += [results.description, ""] if results.description else []
    lines += [f"- {sentence}" for sentence in summary(results)]
    if results.finished:
        lines += ["", "## Scores", "", "Mean ± 95 % interval over cells.", ""]
        lines += _rows(["metric", *results.arms], [[m, *_scores(results, m)] for m in results.metrics])
        lines += ["", f"## Differences to {results.baseline}", "", "Paired by start and seed, with 95 % intervals.", ""]
        lines += _rows(
            ["metric", *map(results.label, results.others)], [[m, *_differences(results, m)] for m in results.metrics]
        )
    lines += _tradeoff(results)
    lines += _sheet(audit_sheet(results, results.audits))
    lines += [line for sheet in calibration_sheets(results) for line in _sheet(sheet)]
    lines += ["", "## Arms", ""]
    differing = [[results.label(arm), _differs(results, arm)] for arm in results.arms]
    lines += _rows(["arm", f"differs from {results.baseline}"], differing)
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


def _scores(results: Results, metric: str) -> list[str]:
    return [score(compare(results, arm, metric).score) for arm in results.arms]


def _differences(results: Results, metric: str) -> list[str]:
    entries = [compare(results, arm, metric) for arm in results.others]
    texts = []
    for entry in entries:
        text = f"{signed(entry.difference.mean)} {bounds(entry.difference)}" if entry.difference else "n/a"
        pairs = f" ({paired(entry)})" if paired(entry) else ""
        texts.append((f"**{text}**" if entry.clear else text) + pairs)
    return texts


def _differs(results: Results, arm: str) -> str:
    return "; ".join(f"{key}: {setting(value)}" for key, value in results.of(arm)[0].differs.items()) or "–"


def _cell_row(cell: CellResult, directory: Path) -> list[str]:
    state = told(cell.state) + (f": {cell.reason}" if cell.reason else "")
    place = cell.directory.relative_to(directory).as_posix()
    return [cell.arm, cell.start, str(cell.seed), state, *_costs(cell), place]


def _costs(cell: CellResult) -> list[str]:
    """Time, steps, samples, trained parameters."""
    time = "" if cell.seconds is None else duration(cell.seconds)
    counts = (cell.metrics.get("steps"), cell.metrics.get("samples"), cell.trained)
    return [time, *("" if count is None else number(count) for count in counts)]


def html(results: Results) -> str:
    """The report as one page that needs nothing else."""
    environment = Environment(
        loader=PackageLoader("alignlab.study", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score, "signed": signed, "bounds": bounds, "setting": setting, "told": told}
    environment.filters |= {"breakable": _breakable, "paired": paired, "number": number}
    entries = _entries(results, results.metrics)
    more = _entries(results, [metric for metric in results.all_metrics if metric not in results.metrics])
    traded = trades(results)
    wide = len(results.arms) in (1, 2, 4)  # two a row, else three
    return environment.get_template("page.html.j2").render(
        results=results,
        colors={arm: plots.color_index(results, arm) for arm in results.arms},
        extent=extent(results),
        verdicts=[verdict(results, arm) for arm in results.others if results.finished],
        caveats=caveats(results),
        power=power(results),
        entries=entries,
        more=more,
        audit=audit_sheet(results, results.metrics),
        more_audits=audit_sheet(results, results.audits.keys() - set(results.metrics)),
        calibrations=calibration_sheets(results),
        score_plots={m: svg_for_page(plots.score_plot(results, row)) for m, row in entries.items() if _scored(row)},
        tradeoff=(svg_for_page(plots.tradeoff_plot(results, traded)), trade_note(results)) if traded else None,
        curves=[(arm, svg_for_page(p)) for arm in results.arms if (p := plots.curve_plot(results, arm, wide=wide))],
        wide=wide,
        pictures=pictures(results),
        walls=gallery.walls(results),
        shading=Markup(shading.STYLE),
        costs=_costs,
        facts=_facts(results),
        versions=_versions(results),
        place=shown,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _scored(row: Sequence[Entry]) -> bool:
    return any(entry.score for entry in row)


def _entries(results: Results, metrics: Sequence[str]) -> dict[str, list[Entry]]:
    """Every metric's row of the table."""
    return {metric: [compare(results, arm, metric) for arm in results.arms] for metric in metrics}


def _breakable(name: str) -> Markup:
    """A metric's name that may go on in the next line behind a slash or an underscore."""
    return Markup(str(Markup.escape(name)).replace("/", "/<wbr>").replace("_", "_<wbr>"))


def _facts(results: Results) -> list[str]:
    """The line below the title."""
    seconds = sum(cell.seconds or 0 for cell in {cell.directory: cell for cell in results.finished}.values())
    facts = [f"{len(results.finished)} of {len(results.cells)} cells finished"]
    return facts + ([f"{duration(seconds)} of computation"] if seconds else [])


def _versions(results: Results) -> list[tuple[str, str]]:
    """What the first finished cell ran on."""
    found: dict[str, Any] = results.finished[0].versions if results.finished else {}
    flat = []
    for key, value in found.items():
        inner = value.items() if isinstance(value, dict) else [(key, value)]
        flat += [(name, str(item)) for name, item in inner if item not in (None, "")]
    return flat
