"""scatter: one metric against another, or against what it cost, a named point an arm."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from alignlab.study.comparison import Trade
from alignlab.study.figures import ARMS, CARD, MUTED, SETTINGS, Drawing, name_of
from alignlab.study.labels import DISTANCES, Box, Point, place_names
from alignlab.study.naming import is_size
from alignlab.study.payoff import Payoffs
from alignlab.study.plots import color_index, short, tick
from alignlab.study.results import Results

POINT, LARGEST = 8.0, 22.0
"""Widths of points: of all where there is no third metric, and of the one with most of it."""


class Mark(NamedTuple):
    """How an arm's point is drawn."""

    width: float = POINT
    hollow: bool = False


class Frame(NamedTuple):
    """How large a plot is, in typographic points, and up to what part of its height it is drawn."""

    width: int = 520
    height: int = 360
    top: float = 0.97


def tradeoff_plot(results: Results, trades: Sequence[Trade]) -> Drawing:
    """What is gained to the right, what it costs upwards: a point an arm with its intervals, faint ones its cells.

    The area of a point is the third metric, if there is one.

    Args:
        trades: At least one.
    """
    most = max((trade.size.mean for trade in trades if trade.size is not None), default=0.0)
    marks = {}
    for trade in trades:
        width = POINT if most <= 0 or trade.size is None else _width(trade.size.mean / most)
        marks[trade.arm] = Mark(width, hollow=len(results.tradeoff) > 2 and trade.size is None)
    logs = [
        is_size(results.tradeoff[place]) and min(min(trade.cells[place]) for trade in trades) > 0 for place in (0, 1)
    ]
    frame = Frame(top=0.97 if most <= 0 else 0.9)
    figure = _scatter(results, trades, marks, results.tradeoff[:2], (logs[0], logs[1]), frame)
    if most > 0:
        with rc_context(SETTINGS):
            _draw_sizes(figure, results.tradeoff[2], most)
    label = f"{results.tradeoff[0]} against {results.tradeoff[1]}, by arm"
    header = tuple(f"{metric}{end}" for metric in results.tradeoff for end in ("", "_low", "_high"))
    rows = []
    for trade in trades:
        means = (*trade.means, trade.size)[: len(results.tradeoff)]
        rows.append((trade.arm, *(value for mean in means for value in mean or (None, None, None))))
    return Drawing(name_of("tradeoff", *results.tradeoff), label, figure, ("arm", *header), tuple(rows))


def payoff_plot(results: Results, payoffs: Payoffs) -> Drawing:
    """What training cost to the right, what came of it upwards; hollow where a comparison is not matched."""
    marks = {trade.arm: Mark(hollow=trade.arm in payoffs.unmatched) for trade in payoffs.trades}
    costs = [trade.means[0].mean for trade in payoffs.trades]
    titles, logs = (payoffs.cost, payoffs.metric), (min(costs) > 0, False)
    figure = _scatter(results, payoffs.trades, marks, titles, logs, Frame(410, 320))
    header = ("arm", payoffs.cost, payoffs.metric, f"{payoffs.metric}_low", f"{payoffs.metric}_high", "matched")
    rows = tuple(
        (trade.arm, trade.means[0].mean, *trade.means[1], "no" if trade.arm in payoffs.unmatched else "yes")
        for trade in payoffs.trades
    )
    label = f"{payoffs.metric} against {payoffs.cost}, by arm"
    return Drawing(name_of("cost", payoffs.metric), label, figure, header, rows)


def _scatter(
    results: Results,
    trades: Sequence[Trade],
    marks: Mapping[str, Mark],
    titles: Sequence[str],
    logs: tuple[bool, bool],
    frame: Frame,
) -> Figure:
    with rc_context(SETTINGS):
        figure = Figure(figsize=(frame.width / 72, frame.height / 72), dpi=72)
        axes = figure.subplots()
        figure.subplots_adjust(left=62 / frame.width, right=0.98, top=frame.top, bottom=47 / frame.height)
        for scale, log in zip((axes.set_xscale, axes.set_yscale), logs, strict=True):
            scale("log" if log else "linear")
        for trade in trades:
            color = ARMS[color_index(results, trade.arm)]
            _draw_trade(axes, trade, color, _shape(results, trade.arm), marks[trade.arm])
            if trade.arm == results.baseline:
                _draw_cross(axes, trade)
        axes.margins(0.14)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # as names are placed in a plot that stays as it is
        axes.set(xlabel=titles[0], ylabel=titles[1])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_ratio_ticks(axis) if axis.get_scale() == "log" else _ticks())
            axis.set_major_formatter(tick)
            axis.set_minor_locator(NullLocator())
        _draw_names(axes, results, [trade for trade in trades if trade.arm not in results.tuned])
    return figure


def _ticks() -> MaxNLocator:
    return MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])


def _ratio_ticks(axis: Axis) -> LogLocator:
    """As many as there is room for: a hundredfold has ticks between its powers of ten."""
    low, high = axis.get_view_interval()
    subs = (1, 1.5, 2, 3, 4, 6, 8) if high < 8 * low else (1, 2, 5) if high < 200 * low else (1,)
    return LogLocator(subs=subs)


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


def _draw_trade(axes: Axes, trade: Trade, color: str, shape: str, mark: Mark) -> None:
    gain, cost = trade.means
    width, hollow = mark
    axes.plot(*trade.cells, "o", color=color, alpha=0.35, ms=4.5, mew=0)
    if gain.low is not None:
        axes.plot([gain.low, gain.high], [cost.mean] * 2, color=color, linewidth=1.2)
    if cost.low is not None:
        axes.plot([gain.mean] * 2, [cost.low, cost.high], color=color, linewidth=1.2)
    edge = {"mfc": CARD, "mec": color, "mew": 1.8} if hollow else {"mfc": color, "mec": CARD, "mew": 1.2}
    axes.plot(gain.mean, cost.mean, shape, ms=width, zorder=5 - width / 100, **edge)


def _shape(results: Results, arm: str) -> str:
    """A diamond is the baseline, a square a tuned arm, which has the colour of its default and no name."""
    return "D" if arm == results.baseline else "s" if arm in results.tuned else "o"


def _draw_cross(axes: Axes, trade: Trade) -> None:
    """Lines that meet at the baseline."""
    gain, cost = trade.means
    for line, place in ((axes.axvline, gain.mean), (axes.axhline, cost.mean)):
        line(place, color=MUTED, linewidth=0.8, linestyle=(0, (3, 4)), zorder=1)


def _draw_names(axes: Axes, results: Results, trades: Sequence[Trade]) -> None:
    """Write every arm's name beside its point, joined to it where it had to be moved away."""
    shown, back = axes.transData.transform, axes.transData.inverted().transform
    points = [Point(*shown([each.mean for each in trade.means])) for trade in trades]
    names = [short(trade.arm, 24) + (" (baseline)" if trade.arm == results.baseline else "") for trade in trades]
    sizes = [(0.6 * 11 * len(name), 14.0) for name in names]
    clear = [Point(*place).box(3) for trade in trades if trade.cells[0] for place in shown(np.transpose(trade.cells))]
    for trade, point in zip(trades, points, strict=True):
        ends = [(mean.low, mean.high) if mean.low is not None else (mean.mean,) * 2 for mean in trade.means]
        (left, bottom), (right, top) = shown(np.transpose(ends))
        clear += [Box(left, point.y - 2, right, point.y + 2), Box(point.x - 2, bottom, point.x + 2, top)]
    boxes = place_names(points, sizes, Box(*axes.bbox.extents), clear)
    for name, point, box in zip(names, points, boxes, strict=True):
        near = Point(min(max(point.x, box.left), box.right), min(max(point.y, box.bottom), box.top))
        if np.hypot(near.x - point.x, near.y - point.y) > 1.5 * DISTANCES[0]:
            dots = {"color": MUTED, "linewidth": 1, "linestyle": (0, (1, 2))}  # unlike an interval's line
            axes.plot(*np.transpose(back([point, near])), zorder=2, **dots)
        middle = back(((box.left + box.right) / 2, (box.bottom + box.top) / 2))
        axes.text(*middle, name, ha="center", va="center_baseline", zorder=5)
