"""How far a study is can be seen from outside while it runs, waits, or lies there interrupted."""

import json
import os
import subprocess
import sys
import time

import pytest
from acts import study_of

from alignlab.cli import main
from alignlab.errors import InputError
from alignlab.study.progress import PROGRESS, STALE_SECONDS, beating, position
from alignlab.study.status import Status


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Four cells: one is finished, one has failed, one was left by a process that is gone, one is new."""
    monkeypatch.chdir(tmp_path)
    study = study_of(tmp_path / "study", "a", "b", "c", "d")
    study.save("")
    for cell in study.cells[:3]:
        cell.directory.mkdir(parents=True)
    metrics = {"config_hash": study.cells[0].digest, "seconds": {"fit": 30.0, "evaluate": 10.0}}
    (study.cells[0].directory / "metrics.json").write_text(json.dumps(metrics))
    (study.cells[1].directory / "failure.json").write_text('{"message": "the loss is nan"}')
    gone = subprocess.Popen(["true"])
    gone.wait()
    with beating(study.cells[2].directory):
        text = (study.cells[2].directory / PROGRESS).read_text()
    (study.cells[2].directory / PROGRESS).write_text(text.replace(str(os.getpid()), str(gone.pid)))
    return study


def test_every_cell_is_counted_as_what_it_is(study):
    status = Status.read(study.directory)
    assert [cell.now for cell in status.cells] == ["finished", "failed", "interrupted", "new"]
    assert status.cells[1].reason == "the loss is nan"
    assert status.remaining == 3 * 40


def test_a_study_whose_tuned_arms_are_to_come_is_not_done(study, capsys):
    path = study.directory / "study.json"
    manifest = json.loads(path.read_text())
    one = {"tuning": {"pending": ["arm0"]}, "trials": manifest["cells"][:1], "cells": manifest["cells"][:1]}
    path.write_text(json.dumps(manifest | one))
    assert main(["study", "status", str(study.directory)]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 cells are finished" in printed and "tuned arms are not among them" in printed
    assert "`alignlab study run` with the study's YAML goes on" in printed


def test_a_cell_that_runs_shows_its_step(study, capsys):
    with beating(study.cells[3].directory) as moved:
        moved("fit", 30, 120)
        assert _holds(lambda: position(study.cells[3].directory).step == 30)
        assert Status.read(study.directory).remaining == pytest.approx(2 * 40 + 0.75 * 40)
        assert main(["study", "status", str(study.directory)]) == 1  # one has failed
        moved("evaluate", 120, 0)
        assert _holds(lambda: position(study.cells[3].directory).stage == "evaluate")
    printed = capsys.readouterr().out
    assert "running: arm3 · start · seed 3: fit 30/120 (25 %)" in printed
    assert "failed: arm1 · start · seed 1: the loss is nan" in printed
    assert "1 of 4 cells are finished, which took 40 s of computing" in printed
    assert position(study.cells[3].directory) is None


def test_a_machine_that_went_silent_runs_nothing(study):
    directory = study.cells[3].directory
    with beating(directory):
        text = (directory / PROGRESS).read_text()
    elsewhere = {**json.loads(text), "host": "another machine", "pid": 1}
    (directory / PROGRESS).write_text(json.dumps(elsewhere))
    assert position(directory).host == "another machine"
    past = time.time() - STALE_SECONDS - 1
    os.utime(directory / PROGRESS, (past, past))
    assert position(directory) is None


def test_a_job_that_is_gone_without_results_has_failed_and_one_that_is_there_runs(study):
    there = subprocess.Popen(["sleep", "100"])
    jobs = {2: ("1", there.pid), 3: ("2", _gone())}
    launch = {study.cells[n].directory.relative_to(study.directory).as_posix(): pid for n, (_, pid) in jobs.items()}
    content = {place: {"id": str(pid), "cluster": "local", "log": "slurm/log.err"} for place, pid in launch.items()}
    (study.directory / "launch.json").write_text(json.dumps({"launcher": "slurm", "parallel": 2, "jobs": content}))
    try:
        status = Status.read(study.directory)
    finally:
        there.kill()
        there.wait()
    assert [cell.now for cell in status.cells] == ["finished", "failed", "running", "failed"]
    assert "ended without results; see slurm/log.err" in status.cells[3].reason


def test_where_slurm_does_not_answer_status_says_so(study, monkeypatch, capsys):
    place = study.cells[3].directory.relative_to(study.directory).as_posix()
    (study.directory / "launch.json").write_text(
        json.dumps({"launcher": "slurm", "jobs": {place: {"id": "7_0", "cluster": "slurm"}}})
    )
    monkeypatch.setenv("PATH", "/nowhere")
    main(["study", "status", str(study.directory)])
    assert "which jobs wait or run is not known: there is no squeue here" in capsys.readouterr().out


def test_a_folder_without_a_study_has_no_status(tmp_path):
    with pytest.raises(InputError, match="no study is kept there"):
        Status.read(tmp_path)


def test_status_reads_only_and_loads_no_heavy_library(study):
    before = {file: file.stat().st_mtime_ns for file in study.directory.rglob("*")}
    heavy = "{'torch', 'numpy', 'matplotlib', 'jsonargparse', 'yaml'}"
    code = f"import sys; from alignlab.cli import main; main(sys.argv[1:]); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, "study", "status", str(study.directory)], check=True)
    assert {file: file.stat().st_mtime_ns for file in study.directory.rglob("*")} == before


def _gone() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def _holds(condition) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()
