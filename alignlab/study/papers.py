"""papers: a study's scores and differences as tables for a paper, in LaTeX (booktabs), Markdown and CSV."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignlab.study.comparison import Entry
from alignlab.study.figures import name_of, write_csv
from alignlab.study.naming import is_chance, lower_is_better
from alignlab.study.results import Results
from alignlab.study.wording import MINUS, bounds, score, signed

MARK = "*"
WIDE = 4
"""Columns of numbers from which on a table takes the width of both columns of a page."""

LATEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "\N{MINUS SIGN}": "$-$", "±": r"$\pm$"},
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # behind a line's end they would be its arguments
}


@dataclass(frozen=True)
class Paper:
    """A table of numbers, a row an arm and a column a metric.

    Args:
        title: The caption.
        metrics: One a column.
        rows: By the name of the arm: its number of cells or pairs, then texts; a marked one ends with ``MARK``.
        long: The same with all digits, a row an arm and metric; the header first.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    rows: dict[str, tuple[str, ...]]
    long: tuple[tuple[str | float | None, ...], ...]


def write(results: Results, entries: Mapping[str, Sequence[Entry]], folder: Path) -> None:
    """Write ``scores`` and ``differences``, each as ``.tex``, ``.md`` and ``.csv``; nothing where no cell is finished.

    Args:
        entries: Of all arms on every metric of the tables.
    """
    if not results.finished or not entries:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for paper in (scores(results, entries), differences(results, entries)):
        (folder / f"{paper.name}.tex").write_text(latex(paper, results.name), encoding="utf-8")
        (folder / f"{paper.name}.md").write_text(markdown(paper), encoding="utf-8")
        write_csv(folder / f"{paper.name}.csv", paper.long[0], paper.long[1:])


def scores(results: Results, entries: Mapping[str, Sequence[Entry]]) -> Paper:
    """Means with the half widths of their intervals."""
    by_arm = _by_arm(results, entries)
    title = f"{results.name}: mean ± half width of its 95 % interval over {results.unit}s; n is the number of cells. "
    title += _marked(results, by_arm)
    rows = {
        arm: (str(results.done(arm)), *(score(e.score) + MARK * is_marked(e) for e in row))
        for arm, row in by_arm.items()
    }
    header = ("metric", "arm", "n", "mean", "low", "high")
    long = [
        (entry.metric, entry.arm, len(entry.values), *(entry.score or (None, None, None)))
        for row in entries.values()
        for entry in row
    ]
    return Paper("scores", title, tuple(entries), rows, (header, *long))


def differences(results: Results, entries: Mapping[str, Sequence[Entry]]) -> Paper:
    """Differences to the baseline, or to what an arm is compared with, with their intervals."""
    by_arm = {arm: row for arm, row in _by_arm(results, entries).items() if arm != results.baseline}
    title = f"{results.name}: difference to {results.baseline}{', or to the arm named,' if results.against else ''}"
    title += f" paired by start and seed, with its 95 % interval over {results.unit}s; n is the number of pairs. "
    title += _marked(results, by_arm)
    rows = {
        results.label(arm): (_pairs(row), *(_difference(entry) + MARK * is_marked(entry) for entry in row))
        for arm, row in by_arm.items()
    }
    header = ("metric", "arm", "against", "pairs", "mean", "low", "high", "p", "p_holm", "improvement", "detectable")
    long = [
        (
            *(entry.metric, entry.arm, results.reference(entry.arm), len(entry.differences)),
            *(entry.difference or (None, None, None)),
            *(entry.p, entry.p_holm, entry.improvement, entry.detectable),
            entry.finding.verdict if entry.finding else None,
        )
        for row in entries.values()
        for entry in row
        if entry.arm != results.baseline
    ]
    return Paper("differences", title, tuple(entries), rows, ((*header, "verdict"), *long))


def is_marked(entry: Entry) -> bool:
    """Whether a difference is supported; where nobody judged, whether its interval excludes 0."""
    return entry.finding.verdict == "supported" if entry.finding else entry.clear


def latex(paper: Paper, study: str) -> str:
    """The table for ``\\input``; needs booktabs."""
    kind = "table*" if len(paper.metrics) >= WIDE else "table"
    head = " & ".join(("arm", "$n$", *map(_head, paper.metrics)))
    lines = [
        f"% {paper.name} of the study {' '.join(study.split())}, made by alignlab; needs \\usepackage{{booktabs}}",
        f"\\begin{{{kind}}}",
        r"\centering",
        r"\small",
        f"\\caption{{{escaped(paper.title)}}}",
        f"\\label{{tab:{name_of(study, paper.name)}}}",
        f"\\begin{{tabular}}{{lr{'r' * len(paper.metrics)}}}",
        r"\toprule",
        f"{head} \\\\",
        r"\midrule",
        *(f"{escaped(arm)} & {' & '.join(map(_number, row))} \\\\" for arm, row in paper.rows.items()),
        r"\bottomrule",
        r"\end{tabular}",
        f"\\end{{{kind}}}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX sets as it stands here."""
    return "".join(LATEX.get(sign, sign) for sign in " ".join(text.split()))


def markdown(paper: Paper) -> str:
    """The table below its caption."""
    lines = [["arm", "n", *paper.metrics], ["---", *["---:"] * (1 + len(paper.metrics))]]
    lines += [[arm, *row] for arm, row in paper.rows.items()]
    head, rule, *rows = (f"| {' | '.join(line)} |" for line in ([_plain(text) for text in line] for line in lines))
    return "\n".join([_plain(paper.title), "", head, rule, *rows]) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown leaves alone."""
    return re.sub(r"([\\`*_<\[|~#])", r"\\\1", " ".join(text.split()))


def _head(metric: str) -> str:
    """A metric over its column, in a line for each part of its name, with which way is better."""
    arrow = "" if is_chance(metric) else r" $\downarrow$" if lower_is_better(metric) else r" $\uparrow$"
    parts = [escaped(part) for part in metric.split("/")]
    return f"\\shortstack[r]{{{' / '.join(parts[:-1])} \\\\ {parts[-1]}{arrow}}}" if parts[1:] else parts[0] + arrow


def _number(text: str) -> str:
    """Numbers in math, so that signs have their widths; words as words."""
    bare = text.removesuffix(MARK)
    if not re.search(r"\d", bare):
        return escaped(text)
    math = bare.replace("±", r"\pm").replace(MINUS, "-").replace("n/a", r"\mathrm{n/a}")
    return f"${math}{'^{*}' if text != bare else ''}$"


def _difference(entry: Entry) -> str:
    if entry.difference is None:
        return "n/a"
    return f"{signed(entry.difference.mean)} {bounds(entry.difference)}"


def _by_arm(results: Results, entries: Mapping[str, Sequence[Entry]]) -> dict[str, list[Entry]]:
    return {arm: [entry for row in entries.values() for entry in row if entry.arm == arm] for arm in results.arms}


def _pairs(row: Sequence[Entry]) -> str:
    return str(max(len(entry.differences) for entry in row))


def _marked(results: Results, rows: Mapping[str, Sequence[Entry]]) -> str:
    """What the mark means."""
    judged = any(entry.finding for row in rows.values() for entry in row)
    of = results.baseline if not results.against else "the arm compared with"
    if judged:
        return f"{MARK}: the difference to {of} is supported by the report's rule."
    return f"{MARK}: the interval of the difference to {of} excludes 0."
