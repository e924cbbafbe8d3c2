"""similarities: how near pictures and texts come to one another, arm by arm, as UniME's figure shows it."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from PIL import Image

from alignlab.study.figures import SETTINGS, Drawing, name_of
from alignlab.study.naming import Pair
from alignlab.study.results import CellResult, Results
from alignlab.study.statistics import Interval, mean_interval, unit_means

COLORS = "viridis"
COLUMNS = 4
"""Of the figure for a paper."""


@dataclass(frozen=True)
class Matrix:
    """Cosines of an arm's pictures (rows) with their texts (columns), in the mean over its finished cells.

    Args:
        cosines: (Q, Q) in [-1, 1]; on the diagonal what belongs together.
        uri: The heat map as a data URI, a pixel a pair.
        matched: Mean of the diagonal.
        others: Mean of all else.
        gap: The one minus the other.
        found: Share of pictures to which no other of the Q texts is as near as their own, in [0, 1].
    """

    arm: str
    cosines: np.ndarray
    uri: str
    matched: float
    others: float
    gap: Interval
    found: Interval


@dataclass(frozen=True)
class Similarities:
    """One evaluator's matrices, on one scale.

    Args:
        low, high: Cosines of the darkest and the lightest colour, all but the outermost 0.5 % of each side between.
        scale: The colours from low to high, as a data URI.
    """

    evaluator: str
    matrices: tuple[Matrix, ...]
    low: float
    high: float
    scale: str

    @property
    def size(self) -> int:
        """Pictures, and texts."""
        return len(self.matrices[0].cosines)


def similarities(results: Results, evaluator: str) -> Similarities | None:
    """The matrices of all arms that have them; None where none has."""
    found = {arm: stack for arm in results.arms if (stack := _matrices(results.of(arm), evaluator))}
    if not found:
        return None
    size = max(len(matrix) for stack in found.values() for matrix in stack.values())
    found = {arm: {p: m for p, m in stack.items() if len(m) == size} for arm, stack in found.items()}
    means = {arm: np.mean([*stack.values()], axis=0) for arm, stack in found.items() if stack}
    low, high = np.quantile(np.stack([*means.values()]), (0.005, 0.995)).tolist()
    high = max(high, low + 0.01)
    numbers = {arm: _numbers(found[arm], results) for arm in means}
    matrices = tuple(Matrix(arm, mean, _uri(mean, (low, high)), *numbers[arm]) for arm, mean in means.items())
    scale = _uri(np.linspace(low, high, 64)[None], (low, high))
    return Similarities(evaluator, matrices, low, high, scale)


def _matrices(cells: Iterable[CellResult], evaluator: str) -> dict[Pair, np.ndarray]:
    """Of the finished cells that have one, (Q, Q)."""
    read = {cell.pair: _read(cell.items(evaluator)) for cell in cells if cell.finished}
    return {pair: matrix for pair, matrix in read.items() if matrix is not None}


def _read(items: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    rows = [item["similarities"] for item in items if "similarities" in item]
    square = len(rows) > 1 and all(len(row) == len(rows) for row in rows)
    return np.asarray(rows, dtype=np.float64) if square else None


def _numbers(matrices: Mapping[Pair, np.ndarray], results: Results) -> tuple[float, float, Interval, Interval]:
    """The last fields of ``Matrix``."""
    stack = np.stack([*matrices.values()])
    own = np.eye(stack.shape[-1], dtype=bool)
    diagonal, others = stack[:, own].mean(axis=1), stack[:, ~own].mean(axis=1)  # (cells,)
    nearest = stack[:, own] > np.where(own, -np.inf, stack).max(axis=2)  # (cells, Q); ties count against
    gap, found = (
        mean_interval(unit_means(dict(zip(matrices, values.tolist(), strict=True)), results.unit))
        for values in (diagonal - others, nearest.mean(axis=1))
    )
    return float(diagonal.mean()), float(others.mean()), gap, found


def _uri(values: np.ndarray, bounds: tuple[float, float]) -> str:
    low, high = bounds
    colors = colormaps[COLORS](np.clip((values - low) / (high - low), 0, 1), bytes=True)[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colors)).quantize(64).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def matrix_plot(shown: Similarities) -> Drawing:
    """All matrices in one figure, for a paper."""
    columns = min(COLUMNS, len(shown.matrices))
    lines = -(-len(shown.matrices) // columns)
    with rc_context(SETTINGS | {"axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(1.8 * columns + 0.7, 2.1 * lines + 0.1), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.flat[len(shown.matrices) :]:
            axes.set_axis_off()
        for axes, matrix in zip(panels.flat, shown.matrices, strict=False):
            image = axes.imshow(matrix.cosines, cmap=COLORS, vmin=shown.low, vmax=shown.high, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(matrix.arm, fontsize=10)
        bar = figure.colorbar(image, ax=panels, shrink=0.7, label="cosine")
        bar.outline.set_visible(False)
    rows = [
        (matrix.arm, row, column, round(float(value), 4))
        for matrix in shown.matrices
        for (row, column), value in np.ndenumerate(matrix.cosines)
    ]
    label = f"{shown.evaluator}: cosines of {shown.size} pictures (rows) with their texts (columns), by arm"
    header = ("arm", "picture", "text", "cosine")
    return Drawing(name_of("similarities", shown.evaluator), label, figure, header, tuple(rows))
