"""The command: what is printed, and what it returns."""

from pathlib import Path

import pytest

from alignlab.errors import InputError
from alignlab.study import Study, run_study

STUDY = """
base: base.yaml
arms: {MLE: {objective: MLE}, InfoNCE: {objective: InfoNCE, optimization: {lr: 5e-4}}}
seeds: [0, 1]
"""


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    (tmp_path / "base.yaml").write_text("data: Scenes\nevaluators: [CaptionAccuracy]\n")
    (tmp_path / "mine.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "mine.yaml"


SHORT = """
base: base.yaml
overrides:
  backbone: {{path: {path}}}
  data: {{init_args: {{num_train: 8, num_val: 8, num_test: 8, batch_size: 8}}}}
  trainer: {{max_steps: 1, limit_val_batches: 0}}
  evaluators: [Retrieval]
  wandb: {{mode: disabled}}
arms: {{MLE: {{objective: MLE}}, InfoNCE: {{objective: InfoNCE}}}}
"""


def test_a_dry_run_prints_the_arms_and_what_they_take_and_writes_nothing(study, tiny_path, capsys):
    study.write_text(SHORT.format(path=tiny_path) + "seeds: [0, 1]\n")
    assert run_study(study, dry_run=True, jobs=2) == 0
    printed = capsys.readouterr().out
    assert "mine: 4 cells in runs/mine" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith(("  MLE", "  InfoNCE"))]
    assert [row[:-8] for row in rows] == [["MLE", "–", "2", "new"], ["InfoNCE", "objective:", "InfoNCE", "2", "new"]]
    assert all(row[-8:-6] == ["1", "8"] and row[-1] == "tried" for row in rows)  # one step, eight samples
    assert "all 4 cells: " in printed and "to do: 4 cells, " in printed and " with 2 at once" in printed
    assert printed.index("trying 1 of 2: MLE") < printed.index("trying 2 of 2: InfoNCE")
    assert not (study.parent / "runs").exists()


def test_a_dry_run_names_the_cells_that_are_stopped_or_failed(study, tiny_path, capsys):
    study.write_text(SHORT.format(path=tiny_path).replace(", InfoNCE: {objective: InfoNCE}", "") + "seeds: [0, 1]\n")
    cell = Study.load(study).cells[1]
    cell.directory.mkdir(parents=True)
    (study.parent / "runs/mine/study.json").write_text('{"name": "mine"}')
    (cell.directory / "config.yaml").write_text(f"# alignlab run, digest {cell.digest}\n")
    run_study(study, dry_run=True)
    printed = capsys.readouterr().out
    assert "1 new, 1 interrupted" in printed
    named = next(line for line in printed.splitlines() if "seed 1: MLE/" in line)
    assert cell.digest in named and named.split()[-1] == "interrupted"
    (cell.directory / "failure.json").write_text('{"message": "no"}')
    run_study(study, dry_run=True)
    assert "1 new, 1 failed" in capsys.readouterr().out


def test_a_finished_study_is_reported_again_and_nothing_is_computed(study, tiny_path, capsys):
    study.write_text(SHORT.format(path=tiny_path))
    assert run_study(study, jobs=2) == 0
    first = capsys.readouterr().out
    directory = study.parent / "runs/mine"
    left = {file: file.stat().st_mtime_ns for file in directory.glob("cells/**/*")}
    assert sum(file.name == "metrics.json" for file in left) == 2
    (directory / "report.html").unlink()
    (directory / "report.md").write_text("old")
    assert run_study(study, jobs=2) == 0
    second = capsys.readouterr().out
    assert second.startswith("2 of 2 cells were finished before")
    table = "mine: mean ± 95 % interval over cells"
    assert second.partition(table)[2] == first.partition(table)[2] != ""
    assert (directory / "report.html").is_file() and "## Scores" in (directory / "report.md").read_text()
    assert {file: file.stat().st_mtime_ns for file in directory.glob("cells/**/*")} == left


@pytest.mark.parametrize("dry_run", [False, True])
def test_fewer_than_one_job_is_refused_before_anything(study, dry_run):
    with pytest.raises(InputError, match="jobs: expected at least 1, got 0"):
        run_study(study, jobs=0, dry_run=dry_run)
    assert not (study.parent / "runs").exists()


def test_nothing_starts_where_a_cell_is_wrong(study):
    with pytest.raises(InputError, match="did you mean 'max_steps'"):
        run_study(study, dry_run=True, overrides=["trainer.max_step=3"])
    assert not (study.parent / "runs").exists()


OWN = """
from alignlab.objectives import MLE


class Own(MLE):
    pass
"""


def test_an_objective_of_ones_own_runs_in_a_study(study, tiny_path):
    """A cell's process finds the same digest as the one that planned it, though it has imported nothing yet."""
    (study.parent / "own_objective.py").write_text(OWN)
    study.write_text(SHORT.format(path=tiny_path).replace("objective: InfoNCE", "objective: own_objective.Own"))
    assert run_study(study) == 0
    assert len(list((study.parent / "runs/mine/cells").glob("InfoNCE/*/metrics.json"))) == 1
