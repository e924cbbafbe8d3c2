"""curves: how the losses of an arm fell, as a band over its units."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alignlab.study.figures import ARMS, SETTINGS, Drawing, name_of
from alignlab.study.plots import color_index
from alignlab.study.results import CellResult, Results
from alignlab.study.statistics import mean_interval, unit_means

LOSSES = {"train/loss": "-", "val/loss": "--"}
FEWEST = 3
"""Units (starts, else seeds) of a band; cells of fewer are drawn one by one."""

Unit = Literal["start", "seed"]

MOST_STEPS = 120
"""Drawn of one curve, evenly spread, so that a page of long runs stays light; the data have all."""


def curve_plot(results: Results, arm: str, *, wide: bool = False) -> Drawing | None:
    """Training and validation loss of an arm over steps; None where nothing was logged.

    The mean over finished cells with a 95 % band; cells that are not finished, or too few for a band, are thin lines.

    Args:
        wide: For half of the page's width, else for a third.
    """
    cells = results.of(arm)
    if not any(cell.curve(metric)[0] for cell in cells for metric in LOSSES):
        return None
    with rc_context(SETTINGS):
        figure = Figure(figsize=(400 / 72, 235 / 72) if wide else (340 / 72, 220 / 72))
        axes = figure.subplots()
        figure.subplots_adjust(left=0.13, right=0.97, top=0.96, bottom=0.19)
        for metric, style in LOSSES.items():
            _draw(axes, cells, metric, style, ARMS[color_index(results, arm)], results.unit)
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.02)
    dashed = ", validation loss dashed" if any(cell.curve("val/loss")[0] for cell in cells) else ""
    label = f"learning curves of {arm}: training loss solid{dashed}"
    return Drawing(name_of("curves", arm), label, figure, ("metric", "start", "seed", "step", "value"), _rows(cells))


def _draw(axes: Axes, cells: Sequence[CellResult], metric: str, style: str, color: str, unit: Unit) -> None:
    finished = [cell for cell in cells if cell.finished and cell.curve(metric)[0]]
    units = unit_means(dict.fromkeys((cell.pair for cell in finished), 0.0), unit)
    banded = finished if len(units) >= FEWEST else []
    for cell in cells:
        steps, values = (sparse(each) for each in cell.curve(metric))
        if steps and cell not in banded:
            marker = "" if len(steps) > 1 else "."
            axes.plot(steps, values, style, marker=marker, color=color, alpha=0.5, linewidth=0.8)
    steps, rows = common(finished, metric)
    if not steps:
        return
    steps, rows = sparse(steps), sparse(rows)
    pairs = [cell.pair for cell in finished]
    means = [mean_interval(unit_means(dict(zip(pairs, row, strict=True)), unit)) for row in rows]
    marker = "" if len(steps) > 1 else "."
    axes.plot(steps, [mean.mean for mean in means], style, marker=marker, color=color, linewidth=2)
    if banded and len(steps) > 1:
        low, high = [mean.low for mean in means], [mean.high for mean in means]
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    elif banded:
        axes.errorbar(steps, [means[0].mean], yerr=means[0].half_width, color=color, linewidth=1)


def common(cells: Sequence[CellResult], metric: str) -> tuple[list[int], list[list[float]]]:
    """The steps that all cells have, and at each the values of all; none of fewer than two cells."""
    curves = [dict(zip(*cell.curve(metric), strict=True)) for cell in cells]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if len(curves) > 1 else []
    return steps, [[curve[step] for curve in curves] for step in steps]


def sparse(values: Sequence[Any], most: int = MOST_STEPS) -> list[Any]:
    """No more than so many of a sequence, evenly spread, first and last among them."""
    if len(values) <= most:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _rows(cells: Sequence[CellResult]) -> tuple[tuple[str | float, ...], ...]:
    return tuple(
        (metric, cell.start, cell.seed, step, value)
        for metric in LOSSES
        for cell in cells
        for step, value in zip(*cell.curve(metric), strict=True)
    )
