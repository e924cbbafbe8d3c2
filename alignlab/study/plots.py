"""plots: the drawings of a report, with the numbers that they show."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignlab.study.audit import mismatches
from alignlab.study.entries import Entry
from alignlab.study.figures import ARMS, CARD, INK, MUTED, SETTINGS, Drawing, name_of
from alignlab.study.naming import is_chance, lower_is_better
from alignlab.study.results import Results
from alignlab.study.statistics import Interval


def color_index(results: Results, arm: str) -> int:
    """The number of an arm's colour: 0 for the baseline; a tuned arm has that of its arm."""
    arm = results.tuned.get(arm, arm)
    if arm == results.baseline:
        return 0
    return 1 + results.others.index(arm) % (len(ARMS) - 1)


def effect_plot(results: Results, entries: Sequence[Entry]) -> Drawing:
    """One metric: each arm's difference to what it is compared with, with its interval; of arms that have one.

    A point is filled where the difference is supported or, where nothing was judged, its interval excludes 0.

    Args:
        entries: Of all arms on one metric.
    """
    rows = _grouped(results, [entry for entry in entries if entry.difference is not None])
    height = 44 + 22 * len(rows)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(340 / 72, height / 72))
        axes = figure.subplots()
        names = [_row_name(results, entry) for entry in rows]
        left = max(0.37, (6 * max(map(len, names)) + 12) / 340)
        figure.subplots_adjust(left=left, right=0.97, top=1 - 4 / height, bottom=38 / height)
        for row, entry in enumerate(rows):
            if isinstance(entry, str):
                place = {"transform": axes.get_yaxis_transform(), "va": "center", "size": 10, "color": MUTED}
                axes.text(-0.9 * left / (0.97 - left), row, f"against {short(entry, 30)}", ha="left", **place)
            else:
                _draw_difference(axes, row, entry, ARMS[color_index(results, entry.arm)])
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", labelcolor=INK, labelsize=11)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_xlim(*_difference_range(entries))
        axes.set_xlabel(f"difference{_to(results, short(results.baseline))}, {_better(entries[0].metric)}")
        _plain(axes)
    label = f"{entries[0].metric}: differences{_to(results, results.baseline)}"
    return Drawing(name_of("effects", entries[0].metric), label, figure, *_effects(results, entries))


def _grouped(results: Results, entries: Sequence[Entry]) -> list[Entry | str]:
    """The arms, each group below the name of what it is compared with, where that is not the same for all."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(results.reference(entry.arm), []).append(entry)
    if len(groups) < 2:
        return list(entries)
    return [row for reference, group in groups.items() for row in (reference, *group)]


def _row_name(results: Results, row: Entry | str) -> str:
    if isinstance(row, str):
        return ""
    return short(row.arm, 26) + (" ≠" if mismatches(results, row.arm) else "")


def _better(metric: str) -> str:
    """To which side is better."""
    if is_chance(metric):
        return "neither better"
    return "less is better" if lower_is_better(metric) else "more is better"


def _effects(results: Results, entries: Sequence[Entry]) -> tuple[tuple[str, ...], tuple[tuple, ...]]:
    """The numbers of ``effect_plot``: header and rows."""
    header = ("arm", "against", "pairs", "difference", "low", "high", "p", "p_holm", "improvement", "detectable")
    rows = []
    for entry in entries:
        if entry.difference is not None:
            verdict = None if entry.finding is None else entry.finding.verdict
            found = (len(entry.differences), *entry.difference, entry.p, entry.p_holm, entry.improvement)
            matched = "no" if mismatches(results, entry.arm) else "yes"
            rows.append((entry.arm, results.reference(entry.arm), *found, entry.detectable, verdict, matched))
    return (*header, "verdict", "matched"), tuple(rows)


def score_plot(results: Results, entries: Sequence[Entry]) -> Drawing:
    """One metric: every arm's mean with its interval and its cells.

    Args:
        entries: Of all arms on one metric.
    """
    height = 40 + 24 * len(entries)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(340 / 72, height / 72))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.35, right=0.97, top=0.99, bottom=36 / height)
        for row, entry in enumerate(entries):
            _draw_score(axes, row, entry, ARMS[color_index(results, entry.arm)])
        axes.set_yticks(range(len(entries)), [short(entry.arm, 18) for entry in entries])
        axes.tick_params(axis="y", labelcolor=INK, labelsize=11)
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.set_xlim(*_score_range(entries))
        axes.set_xlabel("score")
        _plain(axes)
    header = ("arm", "cells", "score", "low", "high")
    rows = tuple((e.arm, len(e.values), *(e.score or (None, None, None))) for e in entries)
    return Drawing(name_of("scores", entries[0].metric), f"{entries[0].metric}: scores", figure, header, rows)


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(tick)


def _to(results: Results, baseline: str) -> str:
    """To what differences are, where it is one arm for all."""
    return "" if results.against else f" to {baseline}"


def _draw_score(axes: Axes, row: int, entry: Entry, color: str) -> None:
    if entry.score is None:
        place = axes.get_yaxis_transform()
        axes.text(0.01, row, "no score", va="center", color=MUTED, transform=place, size=10)
        return
    axes.barh(row, entry.score.mean, height=0.6, color=color, alpha=0.3, linewidth=0)
    _draw_interval(axes, row, entry.score, color)
    _draw_cells(axes, row, entry.values, color)


def _draw_difference(axes: Axes, row: int, entry: Entry, color: str) -> None:
    _draw_interval(axes, row, entry.difference, color)
    sure = entry.clear if entry.finding is None else entry.finding.verdict == "supported"
    fill = color if sure else CARD
    axes.plot(entry.difference.mean, row, "o", color=fill, ms=7, mec=color, mew=1.5, zorder=4)


def _draw_interval(axes: Axes, row: int, interval: Interval, color: str) -> None:
    if interval.low is not None:
        axes.plot([interval.low, interval.high], [row, row], color=color, linewidth=2, solid_capstyle="round")


def _draw_cells(axes: Axes, row: int, values: Sequence[float], color: str) -> None:
    axes.plot(values, _spread(row, len(values)), "o", color=color, ms=5, mec=CARD, mew=0.8, zorder=3)


def _spread(row: int, count: int) -> np.ndarray:
    """Heights at which equal values do not hide one another."""
    return row + (np.linspace(-0.16, 0.16, count) if count > 1 else np.zeros(count))


def _score_range(entries: Sequence[Entry]) -> tuple[float, float]:
    """From 0, and to 1 where the values come near it; bars that do not begin at 0 would mislead."""
    values = [value for entry in entries for value in entry.values] or [0.0, 1.0]
    low, high = min(0.0, *values), max(values)
    if low == 0 and 0.4 <= high <= 1:
        return 0.0, 1.0
    margin = 0.12 * ((high - low) or 1)
    return (low if low == 0 else low - margin), high + margin


def _difference_range(entries: Sequence[Entry]) -> tuple[float, float]:
    reach = [0.0]
    for entry in entries:
        if entry.difference is not None:
            reach += [end for end in entry.difference if end is not None]
    margin = 0.1 * ((max(reach) - min(reach)) or 0.1)
    return min(reach) - margin, max(reach) + margin


def tick(value: float, _: int) -> str:
    """A number at an axis."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def short(name: str, most: int = 14) -> str:
    """A name cut to the room that there is."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
