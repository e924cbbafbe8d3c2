"""Comparison: every arm against the baseline, in numbers and in words."""

import math
from dataclasses import dataclass

from alignlab.study.naming import lower_is_better
from alignlab.study.results import Results
from alignlab.study.statistics import (
    Interval,
    mean_interval,
    paired_difference,
    paired_differences,
    sign_flip_p,
    smallest_sign_flip_p,
)

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Entry:
    """One arm on one metric.

    Args:
        values: Of the finished cells.
        score: Mean over them, None where there is none.
        difference: To the baseline, or what the arm is compared with instead, over common (start, seed), None for the
            baseline itself.
        differences: One by one; fewer than ``values`` where a cell's partner is missing.
        p: Of the exact sign-flip test.
    """

    arm: str
    metric: str
    values: tuple[float, ...]
    score: Interval | None
    difference: Interval | None
    differences: tuple[float, ...]
    p: float | None

    @property
    def clear(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        return self.difference is not None and self.difference.excludes_zero


def paired(entry: Entry) -> str:
    """How many pairs a difference is made of, where they are not as many as the values."""
    partial = entry.difference is not None and len(entry.differences) != len(entry.values)
    return count(len(entry.differences), "pair") if partial else ""


def compare(results: Results, arm: str, metric: str) -> Entry:
    """Score an arm on a metric, and against the baseline."""
    values, reference = results.values(arm, metric), results.values(results.reference(arm), metric)
    pairs = arm != results.baseline
    differences = paired_differences(values, reference) if pairs else []
    return Entry(
        arm=arm,
        metric=metric,
        values=tuple(values.values()),
        score=mean_interval(list(values.values())) if values else None,
        difference=paired_difference(values, reference) if pairs else None,
        differences=tuple(differences),
        p=sign_flip_p(differences) if differences else None,
    )


@dataclass(frozen=True)
class Trade:
    """What an arm gains and what it pays, over the finished cells that have both metrics.

    Args:
        cells: The values of both, one for each cell.
        means: Their means.
        size: Mean of the third metric, if there is one and any of the arm's cells has it.
    """

    arm: str
    cells: tuple[tuple[float, ...], tuple[float, ...]]
    means: tuple[Interval, Interval]
    size: Interval | None = None


def trades(results: Results) -> list[Trade]:
    """The study's trade-off, of each arm that has it."""
    if not results.tradeoff:
        return []
    found, (gain, cost, *more) = [], results.tradeoff
    for arm in results.arms:
        gained, lost = results.values(arm, gain), results.values(arm, cost)
        if pairs := [pair for pair in gained if pair in lost]:
            cells = tuple(gained[pair] for pair in pairs), tuple(lost[pair] for pair in pairs)
            sizes = [value for metric in more for value in results.values(arm, metric).values()]
            means = mean_interval(cells[0]), mean_interval(cells[1])
            found.append(Trade(arm, cells, means, mean_interval(sizes) if sizes else None))
    return found


def trade_note(results: Results) -> str:
    """What the trade-off's plot shows, in one sentence."""
    gain, cost, *more = results.tradeoff
    better = [
        f"{'less' if lower_is_better(metric) else 'more'} of {metric} ({low if lower_is_better(metric) else high})"
        for metric, low, high in ((gain, "left", "right"), (cost, "down", "up"))
    ]
    note = (
        "Each arm's mean over its cells with 95 % intervals, and its cells as faint points; dashed lines cross at "
        f"{results.baseline}, the baseline, and what is better has {better[0]} and {better[1]}."
    )
    return note + "".join(f" The area of a point is its {metric}; a hollow one has none." for metric in more)


@dataclass(frozen=True)
class Verdict:
    """On which metrics an arm differs from the baseline; ``higher`` and ``lower`` where the interval excludes 0.

    Args:
        same: Where every cell has the baseline's score.
        unknown: Why nothing can be said, else None.
    """

    arm: str
    higher: tuple[Entry, ...]
    lower: tuple[Entry, ...]
    undecided: tuple[Entry, ...]
    same: tuple[Entry, ...]
    unknown: str | None


def verdict(results: Results, arm: str) -> Verdict:
    """Sort the metrics by what is known about an arm."""
    entries = [compare(results, arm, metric) for metric in results.metrics]
    compared = [entry for entry in entries if entry.difference is not None]
    unknown = None
    if not compared:
        both = _pairs(results, arm)
        unknown = "no metric is scored in both." if both else "no start and seed is finished in both."
    elif all(entry.difference.low is None for entry in compared):
        unknown = "a single pair of cells, which allows no interval and no conclusion."
    return Verdict(
        arm=arm,
        higher=tuple(entry for entry in compared if entry.clear and entry.difference.mean > 0),
        lower=tuple(entry for entry in compared if entry.clear and entry.difference.mean < 0),
        undecided=tuple(entry for entry in compared if any(entry.differences) and not entry.clear),
        same=tuple(entry for entry in compared if not any(entry.differences)),
        unknown=unknown,
    )


def extent(results: Results) -> list[str]:
    """How large the study is and how much of it is there."""
    axes = ((results.arms, "arm"), (results.starts, "start"), (results.seeds, "seed"))
    planned, missing = len(results.cells), len(results.cells) - len(results.finished)
    full = math.prod(len(values) for values, _ in axes)
    size = " × ".join(count(len(values), noun) for values, noun in axes)
    size += f"{'' if planned == full else ', not all arms with all of them'}: {count(planned, 'cell')}"
    if not results.finished:
        return [f"{size}, none finished: there is nothing to compare yet."]
    if not missing:
        return [f"{size}, all finished."]
    return [f"{size}, {len(results.finished)} finished. The other {count(missing, 'cell')} are listed below."]


def summary(results: Results) -> list[str]:
    """What came out, in sentences."""
    sentences = extent(results)
    return sentences + [_sentence(results, verdict(results, arm)) for arm in results.others if results.finished]


def _sentence(results: Results, verdict: Verdict) -> str:
    name = f"{verdict.arm} against {results.reference(verdict.arm)}"
    if verdict.unknown is not None:
        return f"{name}: {verdict.unknown}"
    parts = []
    for word, entries in (("higher", verdict.higher), ("lower", verdict.lower)):
        if entries:
            parts.append(f"{word} on {_listed([told(entry) for entry in entries])}")
    for word, entries in (("undecided", verdict.undecided), ("the same", verdict.same)):
        if entries:
            parts.append(f"{word} on {_listed([entry.metric for entry in entries])}")
    return f"{name}: {'; '.join(parts)}."


def told(entry: Entry) -> str:
    """A metric with its difference."""
    return f"{entry.metric} ({signed(entry.difference.mean)})"


def _listed(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def caveats(results: Results) -> list[str]:
    """What the numbers do not say; each is true of this study."""
    notes = list(results.notes)
    notes += [f"{metric}: no finished cell has this metric." for metric in _missing(results)]
    notes += _unmatched(results)
    notes += [sentence] if (sentence := power(results)) else []
    notes.append(
        "Intervals are 95 % Student t intervals over cells; differences are paired by start and seed. "
        "They are not corrected for the number of comparisons."
    )
    if len(results.starts) > 1:
        notes.append(
            "Cells of one start are counted as independent; for a claim about new starts the intervals are too narrow."
        )
    return notes


def power(results: Results) -> str | None:
    """What a test over so few cells can show at all."""
    sizes = {len(_pairs(results, arm)) for arm in results.others} - {0}
    return " ".join(_reach(pairs) for pairs in sorted(sizes, reverse=True)) or None


def _reach(pairs: int) -> str:
    floor = smallest_sign_flip_p(pairs)
    reach = "cannot reach p < 0.05, however large the effect" if floor >= 0.05 else "can reach p < 0.05"
    return f"An exact sign-flip test over {count(pairs, 'pair')} has p ≥ {floor:.3g}: it {reach}."


def _missing(results: Results) -> list[str]:
    named = dict.fromkeys((*results.headline, *results.tradeoff))
    return [metric for metric in named if results.finished and metric not in results.all_metrics]


def _pairs(results: Results, arm: str) -> set:
    ours = {cell.pair for cell in results.of(arm) if cell.finished}
    return ours & {cell.pair for cell in results.of(results.reference(arm)) if cell.finished}


def _unmatched(results: Results) -> list[str]:
    """Budgets that differ from the baseline's."""
    notes = []
    for arm in results.others:
        cell, reference = results.shown(arm), results.shown(results.reference(arm))
        if cell is None or reference is None:
            continue
        budgets = [(name, cell.metrics.get(name), reference.metrics.get(name)) for name in ("steps", "samples")]
        if cell.trained and reference.trained and abs(cell.trained / reference.trained - 1) > 0.01:
            budgets.append(("trained parameters", cell.trained, reference.trained))  # a learned scale is no matter
        if unknown := [name for name, *both in budgets if None in both]:
            whose = f"{arm} and {results.reference(arm)}"
            notes.append(f"Not known whether {' and '.join(unknown)} of {whose} match: a command trains one of them.")
        for name, ours, theirs in budgets:
            if None not in (ours, theirs) and ours != theirs:
                numbers = f"{number(ours)} against {number(theirs)}"
                notes.append(f"Not matched: {name} of {arm} and {results.reference(arm)} differ ({numbers}).")
    return notes


def score(interval: Interval | None) -> str:
    """A mean with its half width: 0.912 ± 0.021."""
    if interval is None:
        return "n/a"
    digits = _digits(interval.mean)
    half = "n/a" if interval.half_width is None else f"{interval.half_width:.{digits}f}"
    return f"{interval.mean:.{digits}f} ± {half}"


def signed(value: float) -> str:
    """A difference with its sign: +0.021."""
    text = f"{value:+.{_digits(value)}f}"
    return text.replace("-", MINUS) if float(text) else "0.000"


def _digits(value: float) -> int:
    """Behind the point, fewer of numbers with many before it."""
    return 3 if abs(value) < 1000 else 1 if abs(value) < 10_000 else 0


def bounds(interval: Interval) -> str:
    """The ends of a difference's interval: [+0.003, +0.039]."""
    if interval.low is None or interval.high is None:
        return "n/a"
    return f"[{signed(interval.low)}, {signed(interval.high)}]"


def number(value: float | None) -> str:
    """A count with thin spaces between thousands, as it reads in every language."""
    return "n/a" if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def count(amount: int, noun: str) -> str:
    """One pair, two pairs, in digits."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def setting(value: object) -> str:
    """A config value as YAML would have it, on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
