"""figures: a report's drawings with their data, as SVG for the page and as SVG, PNG and CSV files.

Drawings have the page's colours of light mode, white ground included. The page replaces them by its CSS variables.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from alignlab.study.state import read_json, write_json

INK, MUTED, GRID, CARD = "#1d2127", "#616a76", "#e3e5e8", "#ffffff"
ARMS = (
    *("#6b7480", "#0072b2", "#cf5a00", "#008a66", "#b0568c", "#b07d00", "#2f93cc", "#7a5240", "#6f6fd0", "#c62f3e"),
    *("#5f8a1f", "#0f8b9d", "#a63fc0", "#2c3f8f", "#d9657a", "#2f6b3a"),
)
"""The page's --arm0 (the baseline) and following; more arms begin again at --arm1. All these colours are distinct."""

DARK = (
    *("#a3acb8", "#56abe3", "#f0883e", "#3fc09a", "#df93c0", "#e3b341", "#8fd0f5", "#c29a86", "#a9a9f5", "#f2737f"),
    *("#a5cc5a", "#4fcfdc", "#d98af0", "#8ea2f2", "#f5a3b0", "#8cc99a"),
)
"""The same on a dark page."""

VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", CARD: "--card"}
VARIABLES |= {color: f"--arm{index}" for index, color in enumerate(ARMS)}

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignlab",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}
"""matplotlib's, in which a drawing is made and written."""

DPI = 200
INDEX = "figures.json"
"""What each drawing in the folder shows, by its name."""


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers that it shows.

    Args:
        name: Of its files, such as ``effects-caption-exact``; see ``name_of``.
        label: What it shows, in a sentence.
        header: Of the rows.
        rows: The data; None is an empty place.
    """

    name: str
    label: str
    figure: Figure
    header: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]


def name_of(*words: str) -> str:
    """A name for files: ``effects-caption-exact`` of ``effects`` and ``caption/exact``."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def svg_for_page(drawing: Drawing) -> str:
    """The drawing as an ``<svg>`` element that takes the page's width, font and colours; text stays text."""
    text = _svg(drawing.figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found[0]), text)
    view = re.search(r'viewBox="[^"]*"', text)[0]
    label = drawing.label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    opening = f'<svg class="plot" role="img" aria-label="{label}" {view} xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + text[text.index(">") + 1 :]


def _variable(color: str) -> str:
    return f"var({VARIABLES[color]})" if color in VARIABLES else color


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with rc_context(SETTINGS):
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def write(drawings: Iterable[Drawing], folder: Path) -> dict[str, str]:
    """Write each drawing as SVG and PNG in light colours on white, and its data as CSV.

    Files of drawings that an earlier call wrote and that are none of these are removed; all others stay.

    Returns:
        What each drawing shows, by the name of its files; also in ``figures.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels: dict[str, str] = {}
    for drawing in drawings:
        same = sum(name == drawing.name or re.fullmatch(rf"{drawing.name}-\d+", name) is not None for name in labels)
        name = f"{drawing.name}-{same + 1}" if drawing.name in labels else drawing.name
        labels[name] = drawing.label
        _write(drawing, folder / name)
    for name in (read_json(folder / INDEX) or {}).keys() - labels.keys():
        for suffix in ("svg", "png", "csv"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    write_json(folder / INDEX, labels)
    return labels


def _write(drawing: Drawing, place: Path) -> None:
    with rc_context(SETTINGS):
        drawing.figure.set_facecolor(CARD)
        title = drawing.figure.text(0.01, 1.0, drawing.label, ha="left", va="bottom")  # a page has headings instead
        for suffix, canvas in (("svg", FigureCanvasSVG), ("png", FigureCanvasAgg)):
            canvas(drawing.figure)
            metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
            drawing.figure.savefig(f"{place}.{suffix}", dpi=DPI, bbox_inches="tight", metadata=metadata)
        title.remove()
    write_csv(Path(f"{place}.csv"), drawing.header, drawing.rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> None:
    """Write a table in which None is an empty place."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
