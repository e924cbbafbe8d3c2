"""`alignlab evaluate`: any model is judged by a config's data and evaluators, as a run's is."""

import json

import pytest
from transformers import CLIPConfig

import alignlab
from alignlab import Backbone, InputError
from alignlab.backbones import DualEncoder
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.cli import main
from alignlab.experiment.config import resolve_file
from alignlab.experiment.export import export
from alignlab.experiment.judging import judge
from alignlab.experiment.run import run

CONFIG = """
objective: MLE
backbone: {path: PATH}
data: {class_path: Scenes, init_args: {num_train: 16, num_val: 8, num_test: 8, batch_size: 8}}
trainer: {max_steps: 2, limit_val_batches: 1}
optimization: {lr: 1e-2}
evaluators:
  - {class_path: CaptionAccuracy, init_args: {num_examples: 4, max_new_tokens: 4, num_pictures: 1}}
  - {class_path: Retrieval, init_args: {num_examples: 8}}
wandb: {mode: disabled}
"""


@pytest.fixture
def config(write, tiny_path):
    return write(CONFIG.replace("PATH", str(tiny_path)))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_run_exports_scores_what_the_run_scores_to_the_last_digit(config, tmp_path):
    metrics = run(resolve_file(config), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    exported = judge(str(tmp_path / "out"), config, output=tmp_path / "exported")
    of_run = judge(str(tmp_path / "run"), config, output=tmp_path / "of_run")
    assert exported.scores == of_run.scores == metrics["scores"]
    for name in ("caption", "retrieval"):
        written = [lines(tmp_path / folder / "items" / f"{name}.jsonl") for folder in ("run", "exported")]
        assert written[0] == written[1]
    assert json.loads((tmp_path / "exported" / "scores.json").read_text())["scores"] == metrics["scores"]
    assert json.loads((tmp_path / "exported" / "versions.json").read_text())["packages"]["transformers"]


def test_a_finished_evaluation_is_found_again_and_another_is_refused_its_place(config, tmp_path, tiny_path, capsys):
    command = ["evaluate", str(tiny_path), "--config", str(config), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    before = (tmp_path / "out" / "scores.json").stat().st_mtime_ns
    # What trains does not matter, and the config that is kept is the same evaluation.
    config.write_text(config.read_text().replace("1e-2", "1e-3").replace("MLE", "InfoNCE"))
    assert main(command) == 0
    assert main([*command[:3], str(tmp_path / "out" / "evaluation.yaml"), *command[4:]]) == 0
    assert (tmp_path / "out" / "scores.json").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("nothing was computed") == 2
    assert main(["evaluate", "scenes-vlm", *command[2:]]) == 2
    assert "holds an evaluation of another model or config" in capsys.readouterr().err
    assert main([*command, "--data.num_test", "6"]) == 2
    assert "holds an evaluation of another model or config" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert main([*command[:-1], str(tmp_path / "mine")]) == 2
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_evaluation_is_computed_by_the_same_command(config, tmp_path, tiny_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(str(tiny_path), config, output=tmp_path / "out", on_progress=stop)
    assert not (tmp_path / "out" / "scores.json").exists()
    assert not judge(str(tiny_path), config, output=tmp_path / "out").was_there


def test_by_default_each_model_and_each_config_has_a_place_of_its_own(config, tmp_path, tiny_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = judge(str(tiny_path), config, ["evaluators=[{class_path: Retrieval, init_args: {num_examples: 4}}]"])
    other = judge(str(tiny_path), config, ["evaluators=[{class_path: Retrieval, init_args: {num_examples: 5}}]"])
    assert one.folder != other.folder and one.folder.parent == other.folder.parent
    assert one.folder.is_relative_to("runs/evaluate") and one.folder.name.startswith(f"{tiny_path.name}-")


def test_dual_encoders_are_judged_by_what_they_can_do(config, tmp_path, capsys):
    write_tiny_dual(tmp_path / "clip", CLIPConfig)
    command = ["evaluate", str(tmp_path / "clip"), "--config", str(config), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "CaptionAccuracy needs a backbone that generates text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--evaluators", "[{class_path: Retrieval, init_args: {num_examples: 8}}]"]) == 0
    assert "retrieval/image_to_text_r1" in json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]


def test_what_cannot_be_judged_is_refused_in_words(config, tmp_path, tiny_path, capsys):
    (tmp_path / "empty").mkdir()
    for source, more, message in (
        (tmp_path / "empty", (), "neither a run directory (config.yaml, metrics.json) nor a model's (config.json)"),
        (tmp_path / "nowhere", (), "there is no directory"),
        (tiny_path, ("--evaluators", "[]"), "names no evaluators"),
        (tiny_path, ("--objective.low", "1"), "objective.low has no effect on a model that is trained"),
        (tiny_path, ("--trainer.max_steps", "1"), "trainer.max_steps has no effect"),
        (tiny_path, ("--data.num_tests", "1"), "did you mean 'num_test'"),
    ):
        command = ["evaluate", str(source), "--config", str(config), "--output", str(tmp_path / "out")]
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["evaluate", str(tiny_path)]) == 2
    assert "say by --config FILE what it is judged by" in capsys.readouterr().err
    assert main(["evaluate", str(tiny_path), "--output", str(tmp_path / "out")]) == 2
    assert "--output goes with --config" in capsys.readouterr().err


def test_adapters_that_lie_beside_a_model_are_not_silently_left_out(config, tmp_path, tiny_path):
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    Backbone(str(tiny_path)).save(tmp_path / "out")
    with pytest.raises(InputError, match="adapters that are not merged, .*; judge the run directory"):
        judge(str(tmp_path / "out"), config)
    with pytest.raises(InputError, match="adapters that are not merged; its README"):
        alignlab.load(tmp_path / "out")


def test_load_reads_models_that_are_no_runs(tmp_path, tiny_path):
    assert isinstance(alignlab.load("scenes-vlm"), Backbone)
    assert not alignlab.load(tiny_path).training
    write_tiny_dual(tmp_path / "clip", CLIPConfig)
    assert isinstance(alignlab.load(tmp_path / "clip"), DualEncoder)
    with pytest.raises(InputError, match="nowhere is no run"):
        alignlab.load(tmp_path / "nowhere")
