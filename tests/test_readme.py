"""The README does as it says: its code is the shipped code, its commands are valid, its table is the catalogue."""

import re
import shlex
from pathlib import Path

import pytest

from alignlab.certificate.command import certify_named
from alignlab.cli import _parse
from alignlab.cli.options import overrides_from, split_overrides
from alignlab.experiment.config import describe_objectives, resolve_file
from alignlab.experiment.pairs import overridden
from alignlab.study import Study
from alignlab.study.launchers.slurm import settings_from

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands():
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("alignlab ")]


def test_the_objective_it_prints_is_the_one_that_is_shipped():
    assert blocks("python")[0] == (ROOT / "experiments" / "focal" / "focal_mle.py").read_text()


@pytest.mark.parametrize("command", commands())
def test_its_commands_are_valid(command, monkeypatch, tmp_path, tiny_path):
    monkeypatch.chdir(ROOT)
    command = command.replace("path/to/llava", str(tiny_path))
    arguments, rest = _parse(shlex.split(command)[1:])
    if command.startswith("alignlab certify"):
        names = [arguments.objective] if arguments.objective else [entry.name for entry in describe_objectives()]
        assert {name for name in names if f"`{name}`" in README} == set(names)
    elif "study run" in command:
        jobs, others = split_overrides(rest, "slurm")
        assert Study.load(arguments.study, directory=tmp_path, overrides=others).cells and settings_from(jobs)
    elif "study" in command:
        assert not rest
    elif command.startswith("alignlab export"):
        assert (str(arguments.source), str(arguments.output)) == ("runs/plora", "exported")
    elif command.startswith("alignlab pairs"):
        own, others = split_overrides(rest, "pairs")
        assert overridden(own).corruption.step == 800 and resolve_file(arguments.config, others)["objective"]
    else:
        assert resolve_file(arguments.config, overrides_from(rest))["objective"]


def test_its_study_is_valid(monkeypatch, tmp_path):
    (tmp_path / "studies").mkdir()
    for name in ("base.yaml", "focal"):
        (tmp_path / name).symlink_to(ROOT / "experiments" / name)
    (tmp_path / "studies" / "mine.yaml").write_text(blocks("yaml")[0])
    assert len(Study.load(tmp_path / "studies" / "mine.yaml", directory=tmp_path / "out").cells) == 6


def test_its_python_runs_on_a_finished_run(tmp_path, tiny_path):
    from alignlab.experiment.config import resolve
    from alignlab.experiment.run import run

    config = {"objective": "MLE", "backbone": {"path": str(tiny_path)}, "trainer": {"max_steps": 1}, "evaluators": []}
    data = {"class_path": "Scenes", "init_args": {"num_train": 8, "num_val": 8, "batch_size": 8}}
    run(resolve({**config, "data": data, "wandb": {"mode": "disabled"}}), tmp_path / "run")
    code = blocks("python")[1].replace("runs/quickstart/cells/...", str(tmp_path / "run"))
    names = {}
    exec(code, names)
    assert names["embeddings"].shape == (2, 32)


def test_its_table_is_the_catalogue():
    table = README.split("## Objectives")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.M))
    assert rows == {entry.name: entry.summary.rstrip(".") for entry in describe_objectives()}


def test_its_pictures_and_files_exist():
    for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_its_table_of_certificates_is_what_is_found():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line[:2] == "| "]
    rows = {line[0].strip("`"): line for line in lines if len(line) == 5 and line[0].startswith("`")}
    excused = {}
    for entry in describe_objectives():
        for finding in certify_named(entry.name, ()).findings:
            assert finding.verdict != "fails", (entry.name, finding)
            excused.setdefault(finding.property, set())
            if finding.verdict == "n/a":
                excused[finding.property].add(entry.name)
    assert excused.keys() == rows.keys()
    everyone = {entry.name for entry in describe_objectives()}
    for name, objectives in excused.items():
        named = set(re.findall(r"`(\w+)`", rows[name][4]))
        assert objectives == (everyone - named if rows[name][4].startswith("all but") else named), name
