"""Every shipped YAML loads; every experiment takes two steps."""

from pathlib import Path

import pytest

from alignlab.experiment.config import dump, read, resolve, resolve_file
from alignlab.experiment.run import run
from alignlab.study import Study

ROOT = Path(__file__).parents[1] / "experiments"
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
EXPERIMENTS = sorted(path for path in ROOT.rglob("*.yaml") if path not in STUDIES and path.name != "base.yaml")
SHORT = [
    "trainer.max_steps=2", "trainer.limit_val_batches=1", "wandb.mode=disabled", "data.batch_size=8", "data.num_val=8",
    "evaluators=[]",
]  # fmt: skip


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_experiment_takes_two_steps(path, tmp_path, tiny_path):
    overrides = [*SHORT, f"backbone.path={tiny_path}"]
    if read(path).get("backbone", {}).get("path", "").startswith("stage:"):
        overrides = list(SHORT)
        for name, stage in read(path)["stages"].items():
            overrides += [f"stages.{name}.trainer.max_steps=2", f"stages.{name}.data.num_train=200"]
            if "path" not in stage.get("backbone", {}):
                overrides.append(f"stages.{name}.backbone.path={tiny_path}")
    if path.parent.name == "pretrain":
        config = read(path, overrides)
        for stage in config.get("stages", {}).values():
            stage["backbone"]["path"] = str(tiny_path)
            stage["trainer"]["max_steps"], stage["evaluators"] = 2, []
            stage["data"].setdefault("init_args", {}).update(num_train=100, batch_size=8, num_workers=0)
        config["trainer"] |= {"precision": "32-true", "max_steps": 0 if config.get("stages") else 2}
        metrics = run(resolve(config), tmp_path / "run")
        assert metrics["steps"] == (0 if config.get("stages") else 2)
    else:
        if "Preferences" in str(read(path)["data"]):  # made by a stage, of the lab's data
            overrides.remove("data.num_val=8")
            overrides += ["stages.pairs.pairs={num_examples: 32, max_new_tokens: 8, keep_cut: true}"]
        if path.parent.name == "cached":  # which reads all of them first
            overrides.append("data.num_train=64")
        metrics = run(resolve_file(path, overrides), tmp_path / "run")
        assert metrics["steps"] == 2


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_printed_config_runs_to_the_same_config(path, tmp_path, tiny_path, monkeypatch):
    monkeypatch.chdir(ROOT.parent)
    config = resolve_file(path, [] if path.parent.name != "pretrain" else [f"backbone.path={tiny_path}"])
    (tmp_path / "printed.yaml").write_text(dump(config))
    assert resolve_file(tmp_path / "printed.yaml") == config


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_valid(path, tmp_path):
    assert Study.load(path, directory=tmp_path / "study").cells


def test_every_file_says_how_it_is_run():
    for path in (*EXPERIMENTS, *STUDIES):
        assert "alignlab " in path.read_text().split("\n\n")[0].split("base:")[0], path
