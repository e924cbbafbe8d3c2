"""pairs: the preference pairs on which an arm was trained, as its stage wrote them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.data.pairs import read_parquet, text_of
from alignlab.study.gallery import embed, marked
from alignlab.study.results import CellResult, Results
from alignlab.study.state import METRICS, read_json

MOST = 6
STAGES = "stages.json"

Words = tuple[tuple[str, bool], ...]
"""Words, and whether each is not in its place on the other side."""


@dataclass(frozen=True)
class Pair:
    """A picture, a question, and two answers.

    Args:
        picture: A data URI; None where there is none or it cannot be read.
        width: Of the picture, in pixels.
        quality: Whether the chosen answer is in truth ``better``, ``equal`` or ``worse``; None: not known.
    """

    picture: str | None
    width: int
    prompt: str
    chosen: Words
    rejected: Words
    quality: str | None


@dataclass(frozen=True)
class Pairs:
    """Some pairs of a stage, and what is known of all.

    Args:
        arms: That were trained on them.
        kept, asked: Pairs, and questions that they come from; None where the stage does not tell.
        truth: Shares of ``better``, ``equal`` and ``worse`` chosen answers, in [0, 1]; empty where nobody knows.
    """

    arms: tuple[str, ...]
    shown: tuple[Pair, ...]
    kept: int | None
    asked: int | None
    truth: dict[str, float]


def pairs(results: Results) -> list[Pairs]:
    """Of each stage of pairs of the cells that speak for their arms."""
    arms: dict[Path, list[str]] = {}
    for arm in results.arms:
        for folder in _folders(results.shown(arm)):
            arms.setdefault(folder, []).append(arm)
    return [_pairs(folder, names) for folder, names in arms.items()]


def _folders(cell: CellResult | None) -> list[Path]:
    stages = {} if cell is None else read_json(cell.directory / STAGES) or {}
    folders = [(cell.directory / place).resolve() for place in stages.values()]
    return [folder for folder in folders if (folder / "pairs/train.parquet").is_file()]


def _pairs(folder: Path, arms: Sequence[str]) -> Pairs:
    splits = (read_json(folder / METRICS) or {}).get("pairs", {}).get("splits", {})
    known = splits.get("train", {})
    rows = read_parquet(folder / "pairs/train.parquet", 8 * MOST)
    shown = tuple(_pair(row) for row in _various(rows))
    return Pairs(tuple(arms), shown, known.get("kept"), known.get("asked"), known.get("truth") or {})


def _various(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some rows, of one truth after the other and of different questions first."""
    groups: dict[str | None, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for row in sorted(rows, key=lambda row: _is_seen(text_of(row["prompt"]), seen)):
        groups.setdefault(row["quality"], []).append(row)
    order = [row for turn in range(MOST) for group in groups.values() for row in group[turn : turn + 1]]
    return order[:MOST]


def _is_seen(prompt: str, seen: set[str]) -> bool:
    """Whether a question came before; it has come now."""
    before = prompt in seen
    seen.add(prompt)
    return before


def _pair(row: Mapping[str, Any]) -> Pair:
    image = row["images"][0]["bytes"] if row["images"] else None
    uri, (width, _) = (embed(io.BytesIO(image)) if image else None) or (None, (0, 0))
    chosen, rejected = text_of(row["chosen"]), text_of(row["rejected"])
    words = (marked(chosen, rejected or " "), marked(rejected, chosen or " "))
    return Pair(uri, width, text_of(row["prompt"]), *words, row["quality"])
