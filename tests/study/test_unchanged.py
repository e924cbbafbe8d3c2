"""A finished study that nobody has touched is told again at once; anything else takes the whole way."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from records import write_cell
from rich.console import Console

from alignlab.experiment import unchanged
from alignlab.experiment.unchanged import RECORD, Asked, said_again
from alignlab.study import Study, run_study
from alignlab.study.plan import Cell

HEAVY = {"torch", "transformers", "lightning", "matplotlib", "jsonargparse", "datasets", "numpy", "wandb"}

OWN = "from alignlab.objectives import MLE\n\n\nclass Own(MLE):\n    pass\n"

STUDY = """
base: base.yaml
arms: {MLE: {objective: MLE}, own: {objective: own_of_unchanged.Own}}
seeds: [0, 1]
metrics: [caption/exact]
"""

CODE = """
import sys
from alignlab.cli import main

assert main(sys.argv[1:]) == 0
print("HEAVY", *sorted({name.partition(".")[0] for name in sys.modules} & set(%r)))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_path) -> Path:
    """A study whose cells are finished, reported on once by the whole way."""
    folder = tmp_path_factory.mktemp("unchanged")
    (folder / "below.yaml").write_text(
        f"data: Scenes\nbackbone: {{path: {tiny_path}}}\nevaluators: [CaptionAccuracy]\n"
    )
    (folder / "base.yaml").write_text("base: below.yaml\n")
    (folder / "own_of_unchanged.py").write_text(OWN)
    (folder / "mine.yaml").write_text(STUDY)
    study = Study.load(folder / "mine.yaml", directory=folder / "out")
    study.save("")
    for number, cell in enumerate(study.cells):
        write_cell(cell.directory, number / 4, config_hash=cell.digest)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.chdir(folder)
        assert run_study(folder / "mine.yaml", output=folder / "out") == 0
    (folder / "said.txt").write_text(said.getvalue())
    return folder


@pytest.fixture
def asked(finished, monkeypatch) -> Asked:
    monkeypatch.chdir(finished)
    return Asked(finished / "mine.yaml", finished / "out", [])


def again(asked: Asked, width: int = 160) -> str | None:
    """What is said without planning, if anything."""
    console = Console(width=width, record=True, quiet=False, file=open(os.devnull, "w"))
    return console.export_text() if said_again(asked, console) else None


def test_the_second_time_the_same_is_said_nothing_heavy_is_imported_and_nothing_written(asked, finished):
    words = ["study", "run", str(asked.path), "--output", str(asked.directory), "--jobs", "2"]
    before = {file: file.stat().st_mtime_ns for file in asked.directory.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", CODE % sorted(HEAVY), *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY"
    assert {file: file.stat().st_mtime_ns for file in asked.directory.rglob("*")} == before
    said = (finished / "said.txt").read_text()
    first, second = (text.partition("mine: mean ± 95 %")[2] for text in (said, done.stdout))
    assert first and second == f"{first}HEAVY\n"


def test_a_file_with_the_same_bytes_is_unchanged_whenever_it_was_written(asked, finished):
    assert "4 of 4 cells were finished before" in again(asked)
    for name in ("mine.yaml", "below.yaml", "own_of_unchanged.py"):
        (finished / name).write_bytes((finished / name).read_bytes())
    assert again(asked) is not None


@pytest.mark.parametrize("name", ["mine.yaml", "base.yaml", "below.yaml", "own_of_unchanged.py"])
def test_any_file_that_planning_read_counts(asked, finished, name):
    file, content = finished / name, (finished / name).read_text()
    file.write_text(content + "\n# but for a comment\n")
    assert again(asked) is None
    file.unlink()
    assert again(asked) is None
    file.write_text(content)
    assert again(asked) is not None


def test_a_python_file_that_came_beside_the_others_counts(asked, finished):
    (finished / "alignlab_helper.py").touch()
    assert again(asked) is None
    (finished / "alignlab_helper.py").unlink()
    assert again(asked) is not None


def test_other_overrides_another_working_directory_and_another_alignlab_count(asked, finished, tmp_path, monkeypatch):
    assert again(Asked(asked.path, asked.directory, ["optimization.lr=1e-4"])) is None
    monkeypatch.setattr(unchanged, "PACKAGE", tmp_path)
    assert again(asked) is None
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert again(asked) is None
    monkeypatch.chdir(finished)
    assert again(asked) is not None


@pytest.mark.parametrize("gone", ["cells/*/*/metrics.json", "cells/*/*/curve.jsonl", "report.html", "study.json"])
def test_a_file_that_is_missing_among_the_results_counts(asked, gone):
    file = next(asked.directory.glob(gone))
    file.rename(file.with_name(".away"))
    assert again(asked) is None
    file.with_name(".away").rename(file)
    assert again(asked) is not None


def test_metrics_of_another_config_do_not_count_as_finished(asked):
    file = next(asked.directory.glob("cells/*/*/metrics.json"))
    content, times = file.read_text(), file.stat()
    file.write_text(content.replace(json.loads(content)["config_hash"], "00000000"))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long and as old as before
    assert again(asked) is None
    file.write_text(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert again(asked) is not None


def test_tables_of_a_wide_terminal_are_not_said_in_a_narrow_one(asked):
    assert again(asked, width=100) is None and again(asked, width=200) is not None


def test_a_broken_record_takes_the_whole_way(asked):
    record = asked.directory / RECORD
    content = record.read_text()
    record.write_text(content[: len(content) // 2])
    assert again(asked) is None
    record.write_text(content)


class Editing:
    """A launcher of a study that the user edits while it runs."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def prepare(self) -> None:
        pass

    def start(self, study: Study, *, jobs: int | None, command: str, console: Console) -> list[Cell]:
        self.file.write_text(self.file.read_text() + "# and edited\n")
        return []


def test_a_study_that_was_edited_while_it_ran_has_changed(asked, finished):
    content = asked.path.read_text()
    run_study(asked.path, output=asked.directory, launcher=Editing(asked.path))
    assert again(asked) is None
    asked.path.write_text(content)
    assert again(asked) is not None


def test_an_edited_study_has_no_more_to_compute_than_what_was_edited(finished):
    text = STUDY.replace("{objective: MLE}", "{objective: MLE, optimization: {lr: 5e-4}}").replace(
        "[0, 1]", "[0, 1, 2]"
    )
    (finished / "edited").mkdir()
    (finished / "edited" / "mine.yaml").write_text(text.replace("base.yaml", "../base.yaml"))
    (finished / "edited" / "own_of_unchanged.py").write_text(OWN)
    study = Study.load(finished / "edited" / "mine.yaml", directory=finished / "out")
    assert [(cell.arm, cell.seed, cell.state) for cell in study.cells] == [
        *(("MLE", seed, "new") for seed in (0, 1, 2)),
        ("own", 0, "finished"), ("own", 1, "finished"), ("own", 2, "new"),
    ]  # fmt: skip
