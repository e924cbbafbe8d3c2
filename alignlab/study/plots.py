"""plots: the drawings of a report, with the numbers that they show."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from alignlab.study.comparison import Entry, Trade
from alignlab.study.figures import ARMS, CARD, INK, MUTED, SETTINGS, Drawing, name_of
from alignlab.study.labels import DISTANCES, Box, Point, place_names
from alignlab.study.naming import is_size
from alignlab.study.results import CellResult, Results
from alignlab.study.statistics import Interval

POINT, LARGEST = 8.0, 22.0
"""Widths of points: of all where there is no third metric, and of the one with most of it."""


def color_index(results: Results, arm: str) -> int:
    """The number of an arm's colour: 0 for the baseline."""
    if arm == results.baseline:
        return 0
    return 1 + results.others.index(arm) % (len(ARMS) - 1)


def score_plot(results: Results, entries: Sequence[Entry]) -> Drawing:
    """One metric: on the left every arm's mean with its interval and its cells, on the right the paired differences.

    Args:
        entries: Of all arms on one metric.
    """
    with rc_context(SETTINGS):
        figure = Figure(figsize=(400 / 72, (40 + 28 * len(entries)) / 72))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        figure.subplots_adjust(left=0.255, right=0.97, top=0.99, bottom=36 / (40 + 28 * len(entries)), wspace=0.18)
        for row, entry in enumerate(entries):
            color = ARMS[color_index(results, entry.arm)]
            _draw_score(left, row, entry, color)
            _draw_difference(right, row, entry, color)
        left.set_yticks(range(len(entries)), [_short(entry.arm) for entry in entries])
        left.tick_params(axis="y", labelcolor=INK, labelsize=11)
        left.set_ylim(len(entries) - 0.5, -0.5)
        left.set_xlim(*_score_range(entries))
        left.set_xlabel("score")
        right.axvline(0, color=MUTED, linewidth=1)
        right.set_xlim(*_difference_range(entries))
        right.set_xlabel(f"difference{_to(results, _short(results.baseline))}")
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
            axes.xaxis.set_major_formatter(_tick)
        right.tick_params(axis="y", labelleft=False)
    label = f"{entries[0].metric}: scores and differences{_to(results, results.baseline)}"
    return Drawing(name_of("effects", entries[0].metric), label, figure, *_effects(results, entries))


def _effects(results: Results, entries: Sequence[Entry]) -> tuple[tuple[str, ...], tuple[tuple, ...]]:
    """The numbers of ``score_plot``: header and rows."""
    header = ("arm", "cells", "score", "score_low", "score_high")
    header += ("against", "pairs", "difference", "difference_low", "difference_high")
    rows = []
    for entry in entries:
        against = None if entry.difference is None else results.reference(entry.arm)
        score, difference = (each or (None, None, None) for each in (entry.score, entry.difference))
        rows.append((entry.arm, len(entry.values), *score, against, len(entry.differences), *difference))
    return header, tuple(rows)


def tradeoff_plot(results: Results, trades: Sequence[Trade]) -> Drawing:
    """What is gained to the right, what it costs upwards: a point an arm with its intervals, faint ones its cells.

    The area of a point is the third metric, if there is one.

    Args:
        trades: At least one.
    """
    most = max((trade.size.mean for trade in trades if trade.size is not None), default=0.0)
    with rc_context(SETTINGS):
        figure = Figure(figsize=(520 / 72, 360 / 72), dpi=72)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.12, right=0.98, top=0.97 if most <= 0 else 0.9, bottom=0.13)
        for place, scale in enumerate((axes.set_xscale, axes.set_yscale)):
            if is_size(results.tradeoff[place]) and min(min(trade.cells[place]) for trade in trades) > 0:
                scale("log")
        for trade in trades:
            hollow = len(results.tradeoff) > 2 and trade.size is None
            width = POINT if most <= 0 or trade.size is None else _width(trade.size.mean / most)
            color = ARMS[color_index(results, trade.arm)]
            _draw_trade(axes, trade, color, trade.arm == results.baseline, width, hollow)
        axes.margins(0.14)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # as names are placed in a plot that stays as it is
        axes.set_xlabel(results.tradeoff[0])
        axes.set_ylabel(results.tradeoff[1])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_ratio_ticks(axis) if axis.get_scale() == "log" else _ticks())
            axis.set_major_formatter(_tick)
            axis.set_minor_locator(NullLocator())
        _draw_names(axes, results, trades)
        if most > 0:
            _draw_sizes(figure, results.tradeoff[2], most)
    label = f"{results.tradeoff[0]} against {results.tradeoff[1]}, by arm"
    header = tuple(f"{metric}{end}" for metric in results.tradeoff for end in ("", "_low", "_high"))
    rows = []
    for trade in trades:
        means = (*trade.means, trade.size)[: len(results.tradeoff)]
        rows.append((trade.arm, *(value for mean in means for value in mean or (None, None, None))))
    return Drawing(name_of("tradeoff", *results.tradeoff), label, figure, ("arm", *header), tuple(rows))


def _ticks() -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])


def _ratio_ticks(axis: Axis) -> LogLocator:
    """As many as there is room for: a hundredfold has ticks between its powers of ten."""
    low, high = axis.get_view_interval()
    return LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,))


def _width(share: float) -> float:
    """Width of a point whose area is a share of the largest one's; the smallest are seen still."""
    return max(LARGEST * max(share, 0.0) ** 0.5, 4.0)


def _draw_sizes(figure: Figure, metric: str, most: float) -> None:
    """Write above the plot what the areas of points mean."""
    shares = (0.1, 0.5, 1.0)
    dots = [Line2D([], [], color=MUTED, alpha=0.6, linestyle="", marker="o", ms=_width(s), mew=0) for s in shares]
    dots.insert(0, Line2D([], [], linestyle=""))
    names = [metric, *(f"{float(f'{share * most:.2g}'):g}" for share in shares)]
    legend = {"loc": "upper right", "ncols": len(dots), "frameon": False, "labelcolor": MUTED, "fontsize": 10}
    figure.legend(dots, names, borderpad=0.2, handletextpad=0.3, columnspacing=1.2, **legend)


def _draw_trade(axes: Axes, trade: Trade, color: str, is_baseline: bool, width: float, hollow: bool) -> None:
    gain, cost = trade.means
    axes.plot(*trade.cells, "o", color=color, alpha=0.35, ms=4.5, mew=0)
    if gain.low is not None:
        axes.plot([gain.low, gain.high], [cost.mean] * 2, color=color, linewidth=1.2)
        axes.plot([gain.mean] * 2, [cost.low, cost.high], color=color, linewidth=1.2)
    edge = {"mfc": CARD, "mec": color, "mew": 1.8} if hollow else {"mfc": color, "mec": CARD, "mew": 1.2}
    axes.plot(gain.mean, cost.mean, "D" if is_baseline else "o", ms=width, zorder=5 - width / 100, **edge)
    if is_baseline:
        for line, place in ((axes.axvline, gain.mean), (axes.axhline, cost.mean)):
            line(place, color=MUTED, linewidth=0.8, linestyle=(0, (3, 4)), zorder=1)


def _draw_names(axes: Axes, results: Results, trades: Sequence[Trade]) -> None:
    """Write every arm's name beside its point, joined to it where it had to be moved away."""
    shown, back = axes.transData.transform, axes.transData.inverted().transform
    points = [Point(*shown([each.mean for each in trade.means])) for trade in trades]
    names = [_short(trade.arm, 24) + (" (baseline)" if trade.arm == results.baseline else "") for trade in trades]
    sizes = [(0.6 * 11 * len(name), 14.0) for name in names]
    clear = [Point(*place).box(3) for trade in trades for place in shown(np.transpose(trade.cells))]
    for trade, point in zip(trades, points, strict=True):
        if trade.means[0].low is not None:
            ends = shown([[each.low for each in trade.means], [each.high for each in trade.means]])
            clear += [Box(ends[0][0], point.y - 2, ends[1][0], point.y + 2)]
            clear += [Box(point.x - 2, ends[0][1], point.x + 2, ends[1][1])]
    boxes = place_names(points, sizes, Box(*axes.bbox.extents), clear)
    for name, point, box in zip(names, points, boxes, strict=True):
        near = Point(min(max(point.x, box.left), box.right), min(max(point.y, box.bottom), box.top))
        if np.hypot(near.x - point.x, near.y - point.y) > 1.5 * DISTANCES[0]:
            dots = {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}  # unlike an interval's line
            axes.plot(*np.transpose(back([point, near])), zorder=2, **dots)
        middle = back(((box.left + box.right) / 2, (box.bottom + box.top) / 2))
        axes.text(*middle, name, ha="center", va="center_baseline", zorder=5)


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
    if entry.difference is None:
        return
    _draw_interval(axes, row, entry.difference, color)
    fill = color if entry.clear else CARD
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
        reach += entry.differences
        if entry.difference is not None and entry.difference.low is not None:
            reach += entry.difference[1:]
    margin = 0.1 * ((max(reach) - min(reach)) or 0.1)
    return min(reach) - margin, max(reach) + margin


def curve_plot(results: Results, arm: str, *, wide: bool = False) -> Drawing | None:
    """Training and validation loss of an arm's cells over steps, with their means; None where nothing was logged.

    Args:
        wide: For half of the page's width, else for a third.
    """
    cells = results.of(arm)
    if not any(cell.curve(metric)[0] for cell in cells for metric in ("train/loss", "val/loss")):
        return None
    with rc_context(SETTINGS):
        figure = Figure(figsize=(400 / 72, 235 / 72) if wide else (340 / 72, 220 / 72))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.13, right=0.97, top=0.96, bottom=0.19)
        color = ARMS[color_index(results, arm)]
        for metric, style in (("train/loss", "-"), ("val/loss", "--")):
            for cell in cells:
                marker = "" if len(cell.curve(metric)[0]) > 1 else "."
                axes.plot(*cell.curve(metric), style, marker=marker, color=color, alpha=0.5, linewidth=0.8)
            axes.plot(*_mean_curve(cells, metric), style, color=color, linewidth=2)
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.02)
    label = f"learning curves of {arm}: training loss solid, validation loss dashed"
    return Drawing(name_of("curves", arm), label, figure, ("metric", "start", "seed", "step", "value"), _steps(cells))


def _steps(cells: Sequence[CellResult]) -> tuple[tuple[str | float, ...], ...]:
    return tuple(
        (metric, cell.start, cell.seed, step, value)
        for metric in ("train/loss", "val/loss")
        for cell in cells
        for step, value in zip(*cell.curve(metric), strict=True)
    )


def _mean_curve(cells: Sequence[CellResult], metric: str) -> tuple[list[int], list[float]]:
    """Mean over the finished cells, at the steps that all of them have."""
    curves = [dict(zip(*cell.curve(metric), strict=True)) for cell in cells if cell.finished]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if len(curves) > 1 else []
    return steps, [float(np.mean([curve[step] for curve in curves])) for step in steps]


def _tick(value: float, _: int) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
