"""Stages that build pairs: shared by all that train on them, and no more than decides the pairs."""

import json

import pytest
from datasets import load_dataset

from alignlab import InputError
from alignlab.experiment.config import digest, resolve
from alignlab.experiment.run import evaluate_run, run
from alignlab.study import run_study
from alignlab.study.plan import Study

SCENES = {"class_path": "Scenes", "init_args": {"num_train": 12, "num_val": 4, "num_test": 4, "batch_size": 4}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def config():
    pairs = {"corruption": "DiffusionNoise", "num_examples": 12, "max_new_tokens": 24, "keep_cut": True}
    return {
        "objective": "MLE",
        "backbone": {"path": "scenes-vlm"},
        "data": {"class_path": "Preferences", "init_args": {"path": "stage:own", "batch_size": 2}},
        "trainer": {"max_steps": 2, "limit_val_batches": 0},
        "evaluators": [{"class_path": "Retrieval", "init_args": {"num_examples": 4, "data": SCENES}}],
        "wandb": {"mode": "disabled"},
        "stages": {"own": {"data": SCENES, "pairs": pairs}},
    }


def changed(config, **stage):
    return {**config, "stages": {"own": {**config["stages"]["own"], **stage}}}


def test_a_run_trains_on_the_pairs_of_its_stage(config, tmp_path, capsys):
    metrics = run(resolve(config), tmp_path / "run")
    stage = tmp_path / "run" / "stages" / "own"
    audit = json.loads((stage / "metrics.json").read_text())["pairs"]["splits"]["train"]
    rows = load_dataset("parquet", data_files=str(stage / "pairs" / "train.parquet"), split="train")
    assert audit["asked"] == 12 and audit["kept"] == len(rows) > 2 and "what was built" in capsys.readouterr().out
    assert metrics["steps"] == 2 and metrics["samples"] == 4
    assert not (stage / "backbone").exists() and not (stage / "checkpoints").exists()
    assert evaluate_run(tmp_path / "run") == pytest.approx(metrics["scores"])


def test_a_stage_of_pairs_has_no_more_than_decides_them(config):
    def stage(**changes):
        return digest(resolve({**config, **changes})["stages"]["own"])

    same = {
        "seed": 3,
        "objective": "CAL",
        "adapter": "Full",
        "optimization": {"lr": 1e-4},
        "evaluators": [],
        "checkpoint_every": 7,
        "wandb": {"mode": "offline", "name": "other"},
        "trainer": {"max_steps": 9, "limit_val_batches": 0},
        "data": {"class_path": "Preferences", "init_args": {"path": "stage:own", "batch_size": 3}},
    }
    first = stage()
    assert [stage(**{key: value}) for key, value in same.items()] == [first] * len(same)
    other = {"backbone": {"path": "scenes-vlm-1"}, "stages": changed(config, pairs={"num_examples": 11})["stages"]}
    assert first not in [stage(**{key: value}) for key, value in other.items()]
    resolved = resolve(config)
    assert resolve(resolved) == resolved and resolved["stages"]["own"]["objective"] is None


def test_the_lines_of_older_runs_know_themselves(config):
    resolved = resolve({**config, "data": SCENES, "stages": {}})
    assert digest(resolved) == digest(
        {key: value for key, value in resolved.items() if key not in ("pairs", "command")}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"init_args": {"path": "stage:owm"}}}, "path: there is no earlier stage 'owm'; .*'own'"),
        ({"backbone": {"path": "stage:own"}}, "backbone.path: the stage 'own' builds pairs, and writes no backbone"),
        ({"pairs": {}}, "pairs: is a key of a stage"),
        ({"objective": "InfoNCE"}, "InfoNCE requires query, target, but data Preferences"),
        ({"data": {"init_args": {"batch_size": 13}}}, "Preferences has 12 .* fewer than one batch of 13"),
    ],
)  # fmt: skip
def test_what_can_be_known_before_there_are_pairs_is_checked(config, tmp_path, change, message):
    from alignlab.experiment.reading import merge

    with pytest.raises(InputError, match=message):
        run(resolve(merge(config, change)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"objective": "MLE"}, "stages.own.objective: has no effect in a stage that builds pairs"),
        ({"trainer": {"max_steps": 3}}, "stages.own.trainer.max_steps: has no effect"),
        ({"pairs": {"corruption": "Noise"}}, "stages.own.pairs.corruption"),
        ({"pairs": {"num_example": 3}}, "stages.own.pairs.num_example: .* did you mean 'num_examples'"),
        ({"pairs": None, "objective": "MLE"}, "data.init_args.path: the stage 'own' builds no pairs"),
        ({"data": "Preferences"}, "stages.own.data"),
    ],
)
def test_a_stage_of_pairs_is_checked_as_any(config, stage, message):
    with pytest.raises(InputError, match=message):
        resolve(changed(config, **stage))


def test_no_pairs_are_made_of_pairs_that_are_all_the_same(config, tmp_path):
    pairs = {"corruption": {"class_path": "DiffusionNoise", "init_args": {"step": 0}}, "max_new_tokens": 1}
    with pytest.raises(InputError, match="no pair is left to train on of 12 examples"):
        run(resolve(changed(config, pairs={**pairs, "min_tokens": 3})), tmp_path / "run")


STUDY = """
overrides:
  data: {{class_path: Preferences, init_args: {{path: "stage:own", batch_size: 2}}}}
  trainer: {{max_steps: 1, limit_val_batches: 0}}
  evaluators: [{{class_path: Retrieval, init_args: {{num_examples: 4, data: {scenes}}}}}]
  wandb: {{mode: disabled}}
  stages:
    own: {{data: {scenes}, pairs: {{num_examples: 12, max_new_tokens: 24}}}}
base: base.yaml
arms:
  MLE: {{objective: MLE}}
  faster: {{objective: MLE, optimization: {{lr: 1.0e-2}}}}
  copied: {{command: "python copy_model.py {{backbone}} {{output}} {{data}}"}}
starts: [scenes-vlm-1]
seeds: [0, 1]
"""

COPY = """
import pathlib, shutil, sys

assert (pathlib.Path(sys.argv[3]) / "train.parquet").is_file()
shutil.copytree(sys.argv[1], sys.argv[2], dirs_exist_ok=True)
"""


def test_the_arms_and_seeds_of_a_study_share_one_stage_of_pairs(tmp_path, monkeypatch, capsys):
    (tmp_path / "base.yaml").write_text("objective: MLE\n")
    (tmp_path / "copy_model.py").write_text(COPY)
    (tmp_path / "own.yaml").write_text(STUDY.format(scenes=json.dumps(SCENES)))
    monkeypatch.chdir(tmp_path)
    study = Study.load(tmp_path / "own.yaml")
    stages = {digest(cell.config["stages"]["own"]) for cell in study.cells}
    assert len(stages) == 1
    assert {cell.config["stages"]["own"]["backbone"]["path"] for cell in study.cells} == {"scenes-vlm-1"}
    (differs,) = {json.dumps(cell.differs) for cell in study.cells if cell.arm == "copied"}
    assert json.loads(differs) == {
        "objective": None, "optimization": None, "command": "python copy_model.py {backbone} {output} {data}"
    }  # fmt: skip
    assert run_study(tmp_path / "own.yaml", jobs=2) == 0, capsys.readouterr().out
    directory = tmp_path / "runs" / "own"
    (built,) = directory.glob("stages/own-*/pairs/provenance.json")
    assert len(list(directory.glob("cells/*/*/metrics.json"))) == 6
    logs = [
        (file.parent.parent.name, "what was built" in file.read_text()) for file in directory.glob("cells/*/*/log.txt")
    ]
    assert sum(builds for _, builds in logs) == 1
    report = (directory / "report.md").read_text()
    assert "Not known whether steps and samples of copied and MLE match" in report and "None" not in report
    (cell,) = directory.glob("cells/faster/*seed0*")
    assert "retrieval/image_to_text_r1" in evaluate_run(cell)
    changed_seed = {file: file.stat().st_mtime_ns for file in directory.glob("cells/*/*/metrics.json")}
    assert run_study(tmp_path / "own.yaml", jobs=2) == 0
    assert {file: file.stat().st_mtime_ns for file in directory.glob("cells/*/*/metrics.json")} == changed_seed
