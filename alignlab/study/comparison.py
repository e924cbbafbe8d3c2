"""Comparison: every arm against the baseline, in numbers and in words."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignlab.study.audit import mismatches
from alignlab.study.entries import Entry, row
from alignlab.study.naming import Pair, lower_is_better
from alignlab.study.results import Results
from alignlab.study.statistics import Interval, mean_interval, smallest_sign_flip_p, unit_means
from alignlab.study.verdicts import RULE, find
from alignlab.study.wording import count, signed


def paired(entry: Entry) -> str:
    """How many pairs a difference is made of, where they are not as many as the values."""
    partial = entry.difference is not None and len(entry.differences) != len(entry.values)
    return count(len(entry.differences), "pair") if partial else ""


def compare(results: Results, arm: str, metric: str) -> Entry:
    """Score an arm on a metric, and against the baseline, and say what may be said of the difference."""
    key = "entry", arm, metric
    if key not in results.memory:
        entry = row(results, metric)[arm]
        finding = (
            None if entry.difference is None else find(entry, results.unit, mismatches(results, arm, metric=metric))
        )
        results.memory[key] = replace(entry, finding=finding)
    return results.memory[key]


@dataclass(frozen=True)
class Trade:
    """What an arm gains and what it pays, over the finished cells that have both metrics.

    Args:
        cells: The values of both, one for each cell.
        means: Their means over units (starts, else seeds).
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

    def mean(values: Mapping[Pair, float]) -> Interval:
        return mean_interval(unit_means(values, results.unit))

    for arm in results.arms:
        gained, lost = results.values(arm, gain), results.values(arm, cost)
        if pairs := [pair for pair in gained if pair in lost]:
            cells = tuple(gained[pair] for pair in pairs), tuple(lost[pair] for pair in pairs)
            means = mean({p: gained[p] for p in pairs}), mean({p: lost[p] for p in pairs})
            sizes = results.values(arm, more[0]) if more else {}
            found.append(Trade(arm, cells, means, mean(sizes) if sizes else None))
    return found


def trade_note(results: Results) -> str:
    """What the trade-off's plot shows, in one sentence."""
    gain, cost, *more = results.tradeoff
    better = [
        f"{'less' if lower_is_better(metric) else 'more'} of {metric} ({low if lower_is_better(metric) else high})"
        for metric, low, high in ((gain, "left", "right"), (cost, "down", "up"))
    ]
    note = (
        f"Each arm's mean over its {results.unit}s with 95 % intervals, and its cells as faint points; dashed lines "
        f"cross at {results.baseline}, the baseline, and what is better has {better[0]} and {better[1]}."
    )
    note += " A square is the tuned arm of its colour." if results.tuned else ""
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
        unknown = f"a single {results.unit} is finished in both, which allows no interval and no conclusion."
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
    notes += [note for arm in results.others for note in mismatches(results, arm)]
    notes += [sentence] if (sentence := power(results)) else []
    if not results.finished:
        return notes
    notes += [_intervals(results), RULE]
    if results.unit == "seed":
        notes.append("There is one start: intervals, tests and findings are about more seeds of it, not about others.")
    return notes


def _intervals(results: Results) -> str:
    """What the intervals of this study hold."""
    over = "starts, each the mean of its seeds" if results.unit == "start" else "seeds"
    entries = {metric: row(results, metric).values() for metric in results.metrics}
    alone = [m for m, found in entries.items() if any(e.spread is not None and e.spread.items is None for e in found)]
    texts = [f"Intervals are 95 % intervals of means over {over}; differences are paired by start and seed."]
    if len(alone) < len(entries):
        texts.append(
            "Where all cells judged the same items and the score is their mean, the variance of the items is inside: "
            "the interval is about more items of the kind, too (a t interval of crossed random effects, Howe 1974)"
            + (f"; those of {_listed(alone)} are Student's, over {results.unit}s alone." if alone else ".")
        )
    else:
        texts.append(f"They are Student's, over {results.unit}s alone: no items are kept that tell their own variance.")
    return " ".join([*texts, "They are not corrected for the number of comparisons."])


def power(results: Results) -> str | None:
    """What a test over so few units can show at all."""
    arms = {arm: len(_units(results, arm)) for arm in results.others if _units(results, arm)}
    reaches = [_reach(units, results.unit, len(arms)) for units in sorted({*arms.values()}, reverse=True)]
    return " ".join(reaches) or None


def _reach(units: int, unit: str, arms: int) -> str:
    floor = smallest_sign_flip_p(units)
    reach = "cannot reach p < 0.05, however large the effect" if floor >= 0.05 else "can reach p < 0.05"
    text = f"An exact sign-flip test over {count(units, unit)} has p ≥ {floor:.3g}: it {reach}."
    if arms == 1 or arms * floor <= 0.05:
        return text
    needed = math.ceil(1 + math.log2(arms / 0.05))  # 2^(1 - n) m <= 0.05
    return f"{text} Corrected for {arms} comparisons on a metric (Holm), that takes {count(needed, unit)}."


def _missing(results: Results) -> list[str]:
    named = dict.fromkeys((*results.headline, *results.tradeoff))
    return [metric for metric in named if results.finished and metric not in results.all_metrics]


def _pairs(results: Results, arm: str) -> set:
    ours = {cell.pair for cell in results.of(arm) if cell.finished}
    return ours & {cell.pair for cell in results.of(results.reference(arm)) if cell.finished}


def _units(results: Results, arm: str) -> set:
    """The starts, or the seeds, that are finished in an arm and in what it is compared with."""
    return {start if results.unit == "start" else seed for start, seed in _pairs(results, arm)}
