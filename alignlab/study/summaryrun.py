"""summaryrun: a study's own run in Weights & Biases, beside those of its cells: tables, plots, pictures, report."""

import base64
import io
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from alignlab.experiment.reading import load
from alignlab.experiment.resolving import WandbSettings
from alignlab.study import gallery
from alignlab.study.plan import MANIFEST
from alignlab.study.records import COSTS, content_of, costs
from alignlab.study.results import CellResult, Results
from alignlab.study.state import read_json, write_json

if TYPE_CHECKING:
    from alignlab.experiment.wandbrun import Summary

WRITTEN = "wandb/summary.json"
VERDICTS = ("supported", "not supported", "inconclusive")
REPORTS = ("report.html", "report.md", MANIFEST)

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


def summarize(results: Results) -> bool:
    """Write the study's summary run, where the cells' own settings ask for runs and anything has changed.

    A second report updates the same run. W&B's failure is a warning: the report is on the disk.

    Returns:
        Whether a run was written.
    """
    settings = _settings(results)
    if settings is None or settings.mode == "disabled":
        return False
    tables, files = _tables(results), _files(results.directory)
    mark = {"hash": _hash(settings, tables, files), "mode": settings.mode}
    written = results.directory / WRITTEN
    if read_json(written) == mark:
        return False
    from alignlab.experiment import wandbrun

    tables |= {f"gallery/{name}": table for name, table in _gallery(results)}
    manifest = read_json(results.directory / MANIFEST) or {}
    config = {key: value for key, value in manifest.items() if key not in ("cells", "trials")}
    summary = _summary(results, tables, files)
    try:
        place = {"folder": results.directory, "name": results.name, "id": _id(results)}
        wandbrun.summarize(summary, settings, config=config, **place)
    except Exception as error:  # whatever it is: the report is written, and W&B may have it next time
        warnings.warn(
            f"Weights & Biases failed ({type(error).__name__}: {error}) and does not have this report, which is on the "
            "disk; the next report tries again",
            stacklevel=2,
        )
        return False
    write_json(written, mark)
    return True


def _settings(results: Results) -> WandbSettings | None:
    """As of the first finished cell, without what is of that cell alone; None where no cell says any."""
    for cell in results.finished:
        file = cell.directory / "config.yaml"
        if file.is_file():
            own = load(file).get("wandb") or {}
            settings = WandbSettings(**{**own, "tags": tuple(own.get("tags") or ()), "name": None})
            return replace(settings, group=results.name, tags=_shared(settings.tags, cell))
    return None


def _shared(tags: Sequence[str], cell: CellResult) -> tuple[str, ...]:
    """The tags that are not the cell's; its own come last."""
    own = {cell.arm, cell.start, f"seed{cell.seed}"}
    return tuple(tag for tag in tags if tag not in own)


def _id(results: Results) -> str:
    """The same at every report of a directory, another in another one."""
    return sha256(f"study {results.name} {results.directory.resolve()}".encode()).hexdigest()[:12]


def _files(directory: Path) -> dict[str, Path]:
    """What goes into the artifact, by its name there."""
    files = {name: directory / name for name in REPORTS}
    for folder in ("figures", "tables"):
        inside = sorted(path for path in (directory / folder).rglob("*") if path.is_file())
        files |= {path.relative_to(directory).as_posix(): path for path in inside}
    return {name: path for name, path in files.items() if path.is_file()}


def _hash(settings: WandbSettings, tables: Mapping[str, Table], files: Mapping[str, Path]) -> str:
    """Of what the run shows; reports and drawings name their date, so of them only what they are made of counts."""
    data = [path.read_text(encoding="utf-8") for name, path in files.items() if name.endswith(".csv")]
    content = json.dumps([asdict(settings), tables, sorted(files), data], default=str)
    return sha256(content.encode()).hexdigest()[:16]


def _tables(results: Results) -> dict[str, Table]:
    content = content_of(results)
    tables = {"cells": _cells(results), "costs": _costs(results)}
    tables["comparisons"] = _flat([{**line, "against": _reference(results, line)} for line in content["comparisons"]])
    if content["claims"]:
        tables["claims"] = _flat([{**line, **line["entry"]} for line in content["claims"]])
    return tables


def _reference(results: Results, line: Mapping[str, Any]) -> str | None:
    return results.reference(line["arm"]) if line["difference"] else None


def _flat(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Intervals and findings in columns of their own."""
    rows = []
    for line in lines:
        row = {key: value for key, value in line.items() if key not in ("score", "difference", "finding", "entry")}
        for key in ("score", "difference"):
            names = (key, f"{key} low", f"{key} high")
            row |= dict(zip(names, line[key] or (None, None, None), strict=False))
        finding = line["finding"] or {}
        rows.append(row | {key: finding.get(key) for key in ("verdict", "why", "needed")})
    return list(rows[0]), [list(row.values()) for row in rows]


def _cells(results: Results) -> Table:
    rows = []
    for cell in results.cells:
        spent = costs(cell) if cell.finished else {}
        head = [cell.arm, cell.start, cell.seed, cell.state, cell.digest]
        rows.append([*head, *map(cell.scores.get, results.metrics), *map(spent.get, COSTS)])
    return ["arm", "start", "seed", "state", "digest", *results.metrics, *COSTS], rows


def _costs(results: Results) -> Table:
    """Means over each arm's finished cells."""
    rows = []
    for arm in results.arms:
        spent = [costs(cell) for cell in results.of(arm) if cell.finished]
        columns = [[each[name] for each in spent] for name in COSTS]
        rows.append([arm, len(spent), *(_mean(column) for column in columns)])
    return ["arm", "cells", *COSTS], rows


def _mean(values: Sequence[float | None]) -> float | None:
    return None if not values or None in values else sum(values) / len(values)


def _gallery(results: Results) -> Iterator[tuple[str, Table]]:
    """The report's pictures with what the arms say of them, one row an answer."""
    columns = ["picture", "prompt", "reference", "arms", "output", "score"]
    for wall in gallery.walls(results):
        rows = []
        for card in wall.cards:
            for answer in card.answers:
                picture = _picture(answer.picture or card.picture)
                words = answer.shaded.striptags() if answer.shaded else " ".join(word for word, _ in answer.words)
                rows.append([picture, card.prompt, card.reference, ", ".join(answer.arms), words, answer.score])
        yield wall.evaluator, (columns, rows)


def _picture(uri: str | None) -> Image.Image | None:
    return None if uri is None else Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def _summary(results: Results, tables: Mapping[str, Table], files: Mapping[str, Path]) -> "Summary":
    from alignlab.experiment.wandbrun import Summary

    figures = {Path(name).stem: path for name, path in files.items() if name.endswith(".png")}
    numbers: dict[str, int] = {"cells planned": len(results.cells), "cells finished": len(results.finished)}
    if "claims" in tables:
        columns, rows = tables["claims"]
        verdicts = Counter(row[columns.index("verdict")] for row in rows)
        numbers |= {f"claims {verdict}": verdicts[verdict] for verdict in VERDICTS}
    return Summary(numbers, tables, figures, files)
