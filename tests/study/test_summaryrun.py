"""A study has a run of its own in W&B, offline and complete, which a second report updates."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from records import write_study
from rich.console import Console
from wandb.proto.wandb_internal_pb2 import Record

from alignlab.study.claims import Claim, register
from alignlab.study.report import report
from alignlab.study.results import Results
from alignlab.study.summaryrun import summarize

CONFIG = """\
wandb: {mode: %s, project: lab, entity: null, group: mine, name: MLE-a-seed0, tags: [ours, MLE, a, seed0]}
stages: {first: {wandb: {mode: disabled}}}
"""
BLOCK = 32768


def stored(path: Path) -> Iterator[Record]:
    """What an offline run holds for `wandb sync`: LevelDB's log format behind a header of 7 bytes."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


@pytest.fixture
def directory(tmp_path) -> Path:
    """A study with claims, figures and a picture."""
    claims = register([Claim("own", "MLE", "m", "higher", 0.01)], [], {}, {})
    values = {"MLE": {"m": (0.1, 0.2, 0.3)}, "own": {"m": (0.2, 0.31, 0.42)}}
    folder = write_study(tmp_path / "mine", values, claims=claims, trials=[]).directory
    for arm in values:
        place = folder / "cells" / arm / f"{arm}0"
        Image.new("RGB", (8, 8), "red").save(place / "pictures" / "p.png")
        item = {
            "id": "p",
            "score": 1.0,
            "prompt": "describe",
            "output": f"a square, says {arm}",
            "picture": "pictures/p.png",
        }
        (place / "items" / "caption.jsonl").write_text(json.dumps(item | {"reference": "a red square"}) + "\n")
    (folder / "figures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "figures" / "effects.png")
    (folder / "figures" / "effects.csv").write_text("arm,m\nMLE,0.2\n")
    return folder


def written(directory: Path, mode: str) -> Path:
    (directory / "cells" / "MLE" / "MLE0" / "config.yaml").write_text(CONFIG % mode)
    return report(directory, console=Console(quiet=True))


def runs(directory: Path) -> list[Path]:
    return sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))


def tables(directory: Path) -> dict[str, Any]:
    found = {}
    for file in directory.glob("wandb/offline-run-*/files/media/table/**/*.table.json"):
        found[file.name.partition("_")[0]] = json.loads(file.read_text())
    return found


def test_the_summary_run_holds_the_study_and_is_updated_once_something_changes(directory):
    written(directory, "offline")
    (first,) = runs(directory)
    records = list(stored(first))
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("lab", "mine", "study", "mine")
    assert list(run.tags) == ["ours"]  # those of the cell alone are not the study's
    settings = {item.key for item in run.config.update}
    assert "arms" in settings and not settings & {"cells", "trials"}  # hundreds of configs, which the artifact has
    (artifact,) = (record.artifact for record in records if record.artifact.type == "report")
    inside = {entry.path for entry in artifact.manifest.contents}
    assert inside >= {"report.html", "report.md", "study.json", "figures/effects-m.png", "tables/scores.tex"}
    assert all(Path(entry.local_path).is_file() for entry in artifact.manifest.contents)
    keys = {"/".join(item.nested_key) or item.key for record in records for item in record.history.item}
    assert any(key.startswith("figures/effects") for key in keys)
    numbers = {item.key: item.value_json for record in records for item in record.summary.update}
    assert numbers["cells planned"] == numbers["cells finished"] == "6" and numbers["claims supported"] == "1"
    check_tables(tables(directory))
    (pictures,) = (record.artifact for record in records if record.artifact.name.find("gallerycaption") > 0)
    assert any(entry.path.endswith(".png") for entry in pictures.manifest.contents)

    written(directory, "offline")  # the page is new, the study is not
    assert runs(directory) == [first]
    metrics = directory / "cells" / "own" / "own0" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"m": 0.2', '"m": 0.25'))
    written(directory, "offline")
    (second,) = runs(directory)
    assert second.parent != first.parent and second.name == first.name  # W&B's id is in the name
    cells = tables(directory)["cells"]
    assert 0.25 in [row[cells["columns"].index("m")] for row in cells["data"]]
    (artifact,) = (record.artifact for record in stored(second) if record.artifact.type == "report")
    assert all(Path(entry.local_path).is_file() for entry in artifact.manifest.contents)


def check_tables(tables: dict[str, Any]) -> None:
    assert tables.keys() == {"cells", "costs", "comparisons", "claims", "caption"}
    assert len(tables["cells"]["data"]) == 6
    line = dict(zip(tables["claims"]["columns"], tables["claims"]["data"][0], strict=True))
    assert (line["arm"], line["verdict"], line["seen"]) == ("own", "supported", 0)
    # differences 0.1, 0.11, 0.12: half width 4.3027 * 0.01 / sqrt(3) = 0.02484
    assert line["difference"] == pytest.approx(0.11) and line["difference low"] == pytest.approx(0.08516, abs=1e-5)
    gallery = [dict(zip(tables["caption"]["columns"], row, strict=True)) for row in tables["caption"]["data"]]
    assert {row["output"] for row in gallery} == {"a square, says MLE", "a square, says own"}
    assert [row["picture"] for row in gallery] == ["Image", "Image"]


def test_where_cells_have_no_runs_the_study_has_none(directory):
    assert summarize(Results.read(directory)) is False
    written(directory, "disabled")
    assert not (directory / "wandb").exists()


def test_a_report_is_written_where_wandb_fails(directory, monkeypatch, tmp_path):
    for name, value in {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_BASE_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match="Weights & Biases failed .* does not have this report"):
        page = written(directory, "online")
    assert page.is_file() and not (directory / "wandb" / "summary.json").exists()
