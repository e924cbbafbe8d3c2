"""Cells run as commands of their own, for other schedulers, and what a cell may use of the machine."""

import json
import subprocess
from pathlib import Path

import pytest
from acts import act, study_of
from rich.console import Console

from alignlab.cli import main
from alignlab.errors import InputError
from alignlab.study import Study, run_study
from alignlab.study.cell import run_cell
from alignlab.study.launchers.devices import Needs, Slots, needs
from alignlab.study.launchers.lines import Print, lines
from alignlab.study.launchers.local import launch
from alignlab.study.progress import beating

STUDY = """
base: base.yaml
overrides:
  backbone: {{path: {path}}}
  data: {{init_args: {{num_train: 8, num_val: 8, num_test: 8, batch_size: 4}}}}
  trainer: {{max_steps: {steps}, limit_val_batches: 0, accelerator: cpu}}
  evaluators: []
  wandb: {{mode: disabled}}
arms: {{MLE: {{objective: MLE}}, InfoNCE: {{objective: InfoNCE}}}}
"""


def written(folder: Path, path: Path, *, steps: int = 1) -> Path:
    (folder / "base.yaml").write_text("data: Scenes\n")
    (folder / "mine.yaml").write_text(STUDY.format(path=path, steps=steps))
    return folder / "mine.yaml"


@pytest.mark.slow
def test_printed_lines_run_in_a_shell_and_the_study_then_only_reports(tmp_path, tiny_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    study = written(tmp_path, tiny_path)
    assert main(["study", "run", str(study), "--launcher", "print"]) == 0
    printed = capfd.readouterr().out.splitlines()
    commands = [line for line in printed if not line.startswith("#")]
    assert len(commands) == 2 and all(line.startswith(f"cd {tmp_path} && ") for line in commands)
    assert "2 of 2 cells are not finished" in printed[0]
    for command in reversed(commands):
        subprocess.run(command, shell=True, check=True, cwd="/", timeout=300)
    assert [cell.state for cell in Study.load(study).cells] == ["finished"] * 2
    left = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/mine/cells/**/*")}
    assert not any(file.name == "progress.json" for file in left)
    subprocess.run(commands[0], shell=True, check=True, timeout=300)
    assert "is finished already; nothing was computed" in capfd.readouterr().out
    assert run_study(study, launcher=Print()) == 0
    assert "Report: runs/mine/report.html" in capfd.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/mine/cells/**/*")} == left


def test_a_cell_that_no_study_has_planned_is_refused(tmp_path):
    (tmp_path / "cells" / "MLE" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="no cell that a study has planned"):
        run_cell(tmp_path / "cells" / "MLE" / "a")
    assert main(["study", "cell", str(tmp_path)]) == 2


def test_a_line_for_several_machines_starts_every_process_of_them(tmp_path):
    study = study_of(tmp_path / "study", "finish")
    study.cells[0].config["trainer"] = {"devices": 4, "num_nodes": 2}
    (line,) = lines(list(study.cells))
    assert "-m torch.distributed.run --nnodes 2 --nproc-per-node 4 " in line
    assert line.endswith(f"-m alignlab.cli study cell {study.cells[0].directory}")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode != 0 and "MASTER: is the first machine" in done.stderr


def test_a_cell_of_several_machines_is_not_started_on_one(tmp_path):
    study = study_of(tmp_path / "study", "finish")
    study.cells[0].config["trainer"] = {"num_nodes": 2}
    with pytest.raises(InputError, match="trainer.num_nodes 2: this machine cannot start processes on others"):
        launch(study, work=act)
    assert not study.cells[0].directory.exists()


def test_stages_on_several_machines_are_refused(tmp_path):
    study = study_of(tmp_path / "study", "finish")
    config = study.cells[0].config
    config |= {"trainer": {"num_nodes": 2}, "stages": {"first": {"trainer": {}}}}
    with pytest.raises(InputError, match="train the stages on one machine"):
        Print().start(study, jobs=None, command="", console=Console())


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, Needs(1, 1, False)),
        ({"devices": "auto", "strategy": "auto"}, Needs(1, 1, False)),
        ({"devices": 1, "strategy": "ddp"}, Needs(1, 1, True)),
        ({"devices": 2, "strategy": "auto"}, Needs(2, 1, True)),
        ({"devices": "2", "num_nodes": 3}, Needs(2, 3, True)),
        ({"devices": -1}, Needs(0, 1, True)),
        ({"devices": [1, 3]}, Needs(0, 1, True)),
        ({"devices": "1,3"}, Needs(0, 1, True)),
    ],
)
def test_a_cell_needs_what_its_trainer_asks_for(trainer, expected):
    assert needs({"trainer": trainer}) == expected


def test_a_cell_needs_the_most_that_a_stage_asks_for():
    assert needs({"trainer": {"devices": 2}, "stages": {"a": {"trainer": {"devices": 4}}}}).processes == 4


@pytest.mark.parametrize(
    ("jobs", "gpus", "devices", "slots", "sees"),
    [
        (4, ["0", "1", "2", "3"], 1, 1, "0"),
        (4, ["0", "1", "2", "3"], 2, 2, "0,1"),
        (4, ["0", "1", "2", "3"], 4, 4, None),  # all
        (4, ["0", "1", "2", "3"], -1, 4, None),
        (2, ["0", "1", "2", "3"], 2, 2, None),  # a slot is no GPU: the cell runs alone and sees all
        (8, ["0", "1"], 2, 8, None),
        (2, [], 2, 2, None),
        (2, [], 4, 2, None),
        (1, ["0", "1"], 1, 1, "0"),
    ],
)
def test_a_cell_takes_the_slots_of_all_devices_it_asks_for(tmp_path, jobs, gpus, devices, slots, sees):
    cell = study_of(tmp_path, "finish").cells[0]
    cell.config["trainer"] = {"devices": devices}
    found = Slots(jobs, gpus)
    assert found.taken_by(cell) == slots
    assert found.devices(range(slots), cell) == sees


def test_what_another_process_runs_is_left_to_it(tmp_path):
    study = study_of(tmp_path / "study", "finish", "finish")
    study.save("")
    study.cells[0].directory.mkdir(parents=True)
    with beating(study.cells[0].directory):
        assert launch(study, jobs=1, work=act) == []
    assert [cell.state for cell in study.cells] == ["new", "finished"]


@pytest.mark.slow
def test_a_cell_of_two_processes_runs_in_a_study_with_its_stages(tmp_path, tiny_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study = written(tmp_path, tiny_path)
    text = study.read_text().replace("accelerator: cpu", "accelerator: cpu, devices: 2")
    stage = "stages: {first: {objective: MLE}}, backbone: {path: 'stage:first'}"
    study.write_text(text.replace("InfoNCE: {objective: InfoNCE}", f"InfoNCE: {{objective: InfoNCE, {stage}}}"))
    assert run_study(study, jobs=2) == 0, capsys.readouterr().out
    cells = Study.load(study).cells
    metrics = [json.loads((cell.directory / "metrics.json").read_text()) for cell in cells]
    assert [metric["samples"] for metric in metrics] == [8, 8], "two processes, four samples each"
    assert len(list(tmp_path.glob("runs/mine/stages/first-*/metrics.json"))) == 1
    assert not (cells[1].directory / "stages").exists()
