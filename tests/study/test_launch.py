"""Cells run in processes of their own; whatever becomes of one, the others and their files stay whole."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from acts import act, study_of
from rich.console import Console

from alignlab.errors import InputError
from alignlab.study.display import Bars, Lines
from alignlab.study.launchers.devices import cpus
from alignlab.study.launchers.local import launch, preload


@pytest.fixture(scope="module", autouse=True)
def light_children():
    """Children that have imported torch alone: these cells train nothing."""
    preload(("torch", "alignlab.experiment.config"))


def test_every_cell_runs_and_leaves_its_log(tmp_path, capfd):
    study = study_of(tmp_path / "study", "finish", "finish", "finish")
    assert launch(study, jobs=2, command="alignlab study run it.yaml", work=act) == []
    assert [cell.state for cell in study.cells] == ["finished"] * 3
    log = (study.cells[0].directory / "log.txt").read_text()
    assert "on standard output" in log and "on standard error" in log
    assert "on standard" not in "".join(capfd.readouterr())
    manifest = json.loads((tmp_path / "study" / "study.json").read_text())
    assert manifest["command"] == "alignlab study run it.yaml"
    assert [cell["digest"] for cell in manifest["cells"]] == [cell.digest for cell in study.cells]


def test_threads_are_divided_among_the_jobs(tmp_path):
    study = study_of(tmp_path / "study", "finish", "finish")
    launch(study, jobs=2, work=act)
    metrics = json.loads((study.cells[0].directory / "metrics.json").read_text())
    assert metrics["scores"]["threads"] == max(1, cpus() // 2)


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0", "1"]), ("2,3", ["2", "3"]), ("GPU-8f2a, GPU-77b0", ["GPU-8f2a", "GPU-77b0"])]
)
def test_every_job_gets_one_of_the_gpus_that_the_study_may_use(tmp_path, monkeypatch, visible, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    study = study_of(tmp_path / "study", "finish", "finish")
    launch(study, work=act)
    metrics = [json.loads((cell.directory / "metrics.json").read_text()) for cell in study.cells]
    assert [metric["gpu"] for metric in metrics] == expected


def test_a_failure_is_recorded_and_stops_no_other_cell(tmp_path):
    study = study_of(tmp_path / "study", "raise", "vanish", "leave", "finish")
    failed = launch(study, jobs=2, work=act)
    assert sorted(cell.arm for cell in failed) == ["arm0", "arm1", "arm2"]
    assert [cell.state for cell in study.cells] == ["failed", "failed", "failed", "finished"]
    failures = [json.loads((cell.directory / "failure.json").read_text()) for cell in study.cells[:3]]
    assert failures[0]["message"] == "ValueError: the loss is nan"
    assert "in act" in failures[0]["traceback"]
    assert "killed by SIGKILL" in failures[1]["message"]
    assert "exit code 0 and without results" in failures[2]["message"]
    assert "ValueError: the loss is nan" in (study.cells[0].directory / "log.txt").read_text()


def test_again_runs_only_what_has_not_finished(tmp_path):
    study = study_of(tmp_path / "study", "finish", "raise once")
    assert [cell.arm for cell in launch(study, jobs=2, work=act)] == ["arm1"]
    assert launch(study, jobs=2, work=act) == []
    assert [(cell.directory / "attempts").read_text() for cell in study.cells] == ["I", "II"]
    assert not (study.cells[1].directory / "failure.json").exists()


def test_cells_of_one_directory_run_once(tmp_path):
    study = study_of(tmp_path / "study", "finish")
    twice = study.__class__(**{**vars(study), "cells": study.cells * 2})
    launch(twice, jobs=2, work=act)
    assert (study.cells[0].directory / "attempts").read_text() == "I"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [("thesis.tex", "my work", "no run directory"), ("config.yaml", "seed: 7", "a run of another config")],
)
def test_a_directory_that_holds_something_else_is_left_alone(tmp_path, file, text, message):
    study = study_of(tmp_path / "study", "finish")
    study.save("")
    directory = study.cells[0].directory
    directory.mkdir(parents=True)
    (directory / file).write_text(text)
    with pytest.raises(InputError, match=message):
        launch(study, jobs=1, work=act)
    assert [path.name for path in directory.iterdir()] == [file] and (directory / file).read_text() == text


def test_a_study_runs_once_at_a_time(tmp_path):
    (tmp_path / "study").mkdir()
    with open(tmp_path / "study" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 1234")
        file.flush()
        with pytest.raises(InputError, match="is being run by process 1234"):
            launch(study_of(tmp_path / "study", "finish"), work=act)


def test_jobs_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="jobs: expected at least 1, got 0"):
        launch(study_of(tmp_path / "study", "finish"), jobs=0, work=act)


def test_a_log_gets_a_line_for_every_cell(tmp_path):
    console = Console(width=160, record=True, quiet=False, file=open(os.devnull, "w"))
    launch(study_of(tmp_path / "study", "finish", "raise"), jobs=1, display=Lines(console), work=act)
    lines = console.export_text().splitlines()
    assert [line[:5] for line in lines] == ["[1/2]", "[2/2]"]
    assert "arm0 · start · seed 0: finished in" in lines[0]
    assert "arm1 · start · seed 1: failed: ValueError: the loss is nan" in lines[1]


def test_a_terminal_gets_bars(tmp_path):
    console = Console(width=120, record=True, force_terminal=True, file=open(os.devnull, "w"))
    launch(study_of(tmp_path / "study", "finish", "raise"), jobs=2, display=Bars(console), work=act)
    text = console.export_text()
    assert "cells" in text and "arm0 · start · seed 0" in text
    assert "arm1 · start · seed 1: failed: ValueError: the loss is nan" in text


def test_a_stage_without_steps_is_no_progress(tmp_path):
    bars = Bars(Console(force_terminal=True, file=open(os.devnull, "w")))
    cell = study_of(tmp_path / "study", "finish").cells[0]
    with bars.showing(total=2, done=0):
        bars.started(cell)
        for stage, step, steps in (("fit", 5, 10), ("fit", 10, 10), ("evaluate", 10, 0)):
            bars.moved(cell, stage, step, steps)
        assert bars.progress.tasks[bars.cells].completed == 1
        assert bars.progress.tasks[1].fields == {"count": "10/10", "stage": "evaluate"}


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_end_of_the_parent_ends_all_children(tmp_path, sent, code):
    script = Path(__file__).parent / "sleeping.py"
    with open(tmp_path / "output", "w") as output:
        parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=output, stderr=output)
    try:
        assert _holds(lambda: len(_pids(tmp_path)) == 4, seconds=60), (tmp_path / "output").read_text()
        parent.send_signal(sent)
        assert parent.wait(30) == code, (tmp_path / "output").read_text()
        assert _holds(lambda: not any(map(_alive, _pids(tmp_path))), seconds=10)
    finally:
        parent.kill()
    study = study_of(tmp_path / "study", "finish", "sleep once", "sleep once", "finish")
    assert [cell.state for cell in study.cells] == ["finished", "interrupted", "interrupted", "new"]
    assert (tmp_path / "times main ran").read_text() == "I"
    assert launch(study, jobs=2, work=act) == []
    attempts = [(cell.directory / "attempts").read_text() for cell in study.cells]
    assert attempts == ["I", "II", "II", "I"], "what was finished is not computed again"


def _pids(directory: Path) -> list[int]:
    """The children and what they started."""
    return [int(pid) for file in directory.glob("study/cells/*/pids") for pid in file.read_text().split()]


def _alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if sys.platform == "linux" else True
    return False


def _holds(condition, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_what_a_launch_leaves_is_not_tried_and_the_rest_is(tmp_path):
    study = study_of(tmp_path / "study", "finish", "raise", "finish")
    left = study.cells[1].directory
    assert launch(study, jobs=2, work=act, leave={left}) == []
    assert [cell.state for cell in study.cells] == ["finished", "new", "finished"]
