"""LaVIT in stages: a tokenizer without codes, one with them, and a language model that reads and writes them."""

import json
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file

import alignlab
from alignlab import InputError
from alignlab.backbones import Backbone
from alignlab.batch import Turn
from alignlab.cli import main
from alignlab.experiment.config import dump, resolve
from alignlab.experiment.export import export
from alignlab.experiment.preflight import preflight
from alignlab.experiment.run import evaluate_run, run

# After three steps a selector finds no patch more probably kept than not.
TOP = {"class_path": "LearnedSelection", "init_args": {"decision": "topk"}}
SIZES = {"depth": 1, "num_heads": 4, "mlp_ratio": 1.5, "code_dim": 4, "selection": TOP}
CODES = {"class_path": "VectorQuantizer", "init_args": {"num_codes": 12, "revive_after": 2}}


def tokenizer_stage(path, quantizer):
    return {
        "objective": {"class_path": "LaVITTokenizer", "init_args": {**SIZES, "quantizer": quantizer}},
        "backbone": {"path": path},
        "adapter": None,
        "evaluators": [],
    }


@pytest.fixture
def config(tiny_path):
    sizes = {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8}
    judged = [
        {"class_path": "CaptionAccuracy", "init_args": {"num_examples": 4, "max_new_tokens": 3, "num_pictures": 1}},
        {"class_path": "ImageGeneration", "init_args": {"num_examples": 4, "num_pictures": 1}},
    ]
    return {
        "objective": {"class_path": "LaVIT", "init_args": {"drop_text": 0.3}},
        "backbone": {"path": "stage:codes"},
        "adapter": {"class_path": "Full", "init_args": {"parts": ["projector", "language_model"]}},
        "data": {"class_path": "Scenes", "init_args": sizes},
        "trainer": {"max_steps": 3, "log_every_n_steps": 1, "limit_val_batches": 1},
        "optimization": {"lr": 1e-2},
        "evaluators": judged,
        "wandb": {"mode": "disabled"},
        "checkpoint_every": 2,
        "stages": {"rows": tokenizer_stage(str(tiny_path), None), "codes": tokenizer_stage("stage:rows", CODES)},
    }


def curve(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def state(folder):
    return load_file(folder / "backbone" / "visual_tokenizer" / "model.safetensors")


def test_three_stages_give_a_model_that_reads_writes_and_is_exported(config, tmp_path):
    preflight(resolve(config))
    metrics = run(resolve(config), tmp_path / "run")
    assert {"caption/exact", "drawing/tokens"} <= set(metrics["scores"])
    stages = [state(tmp_path / "run" / "stages" / name) for name in ("rows", "codes")]
    last = state(tmp_path / "run")
    assert not any("quantizer" in name for name in stages[0]) and stages[1]["quantizer.started"]
    assert stages[1]["quantizer.updates"] == 3
    same = {name for name, each in stages[0].items() if torch.equal(each, stages[1][name])}
    assert {name for name in stages[0] if name.startswith("selection.")} == same  # which froze, and all else trained
    assert all(torch.equal(each, last[name]) for name, each in stages[1].items())
    merger = {name for name in stages[1] if name.startswith("merger.")}
    assert merger and not any(torch.equal(last[f"input_{name}"], last[name]) for name in merger)
    names = {"reconstruction_loss", "keep_loss", "quantizer_loss", "pixel_loss", "kept", "perplexity", "dead", "usage"}
    assert {f"train/{name}" for name in names} <= set(curve(tmp_path / "run" / "stages" / "codes")[-1])
    names = {"text_loss", "image_loss", "text_accuracy", "image_accuracy", "visual_tokens"}
    assert {f"train/{name}" for name in names} <= set(curve(tmp_path / "run")[-1])

    assert evaluate_run(tmp_path / "run") == pytest.approx(metrics["scores"])
    backbone = alignlab.load(tmp_path / "run")
    assert backbone.encoder.visual.num_codes == 12
    picture = alignlab.data.Scenes(num_train=4).examples("train")[0].query[0]
    shown = backbone.encoder.prompts([(Turn("user", (picture, "what is there ?")),)])
    said = backbone.encoder.prompts([(Turn("user", ("a red circle",)),)])
    assert isinstance(backbone.generate(shown, max_new_tokens=3)[0], str)
    drawing = backbone.draw(said, seed=0)
    assert drawing.pixels.shape == (1, 3, 48, 48)
    assert export(tmp_path / "run", tmp_path / "out") is None
    again = Backbone(str(tmp_path / "out")).eval()
    assert torch.equal(again.draw(said, seed=0).pixels, drawing.pixels)
    assert again.generate(shown, max_new_tokens=3) == backbone.generate(shown, max_new_tokens=3)


def test_pictures_read_as_codes_are_so_again_when_loaded(config, tmp_path):
    config["objective"]["init_args"] = {"discrete_input": True, "read_images_supervised": True}
    metrics = run(resolve(config), tmp_path)
    backbone = alignlab.load(tmp_path)
    assert backbone.visual_tokenizer.discrete and backbone.visual_tokenizer.input_merger is None
    assert evaluate_run(tmp_path) == pytest.approx(metrics["scores"])


def test_interrupted_stages_resume_to_the_same_weights_codebook_and_curve(config, tmp_path):
    config |= {"stages": {"rows": config["stages"]["rows"]}, **tokenizer_stage("stage:rows", CODES)}
    config["trainer"]["max_steps"] = 7
    config = resolve(config)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    run(config, tmp_path / "whole")
    for _ in config["stages"], config:  # each stage at its fifth step
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "parts", on_progress=stop)
    run(config, tmp_path / "parts")
    for folder in ("stages/rows", "."):
        whole, parts = (tmp_path / name / folder for name in ("whole", "parts"))
        assert curve(whole) == curve(parts)
        expected, found = state(whole), state(parts)
        assert expected.keys() == found.keys() and all(
            torch.equal(each, found[name]) for name, each in expected.items()
        )
    assert found["quantizer.updates"] == 7 and found["quantizer.codebook"].any()


@pytest.mark.parametrize("kind", ["no stage", "a stage without codes"])
def test_without_codes_nothing_runs_and_nothing_is_lost(config, tiny_path, tmp_path, capsys, kind):
    if kind == "no stage":
        config |= {"stages": {}, "backbone": {"path": str(tiny_path)}}
        message = "has no visual tokenizer; train one by LaVITTokenizer"
    else:
        config |= {"stages": {"rows": config["stages"]["rows"]}, "backbone": {"path": "stage:rows"}}
        message = "has a visual tokenizer without a quantizer; train one by LaVITTokenizer"
    (tmp_path / "lavit.yaml").write_text(dump(resolve(config)))
    (tmp_path / "run").mkdir()
    for folder in ("run", "new"):
        assert main(["fit", "--config", str(tmp_path / "lavit.yaml"), "--output", str(tmp_path / folder)]) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "run").iterdir()) and not (tmp_path / "new").exists()


def test_what_does_not_fit_is_refused_before_anything_runs(config):
    changes = {
        "has adapters, which fit no larger vocabulary": {
            "adapter": {"class_path": "LoRA", "init_args": {"rank": 2, "parts": ["language_model"]}}
        },
        "weights of at least 0": {"objective": {"class_path": "LaVIT", "init_args": {"text_weight": -1.0}}},
    }
    for message, change in changes.items():
        with pytest.raises(InputError, match=message):
            preflight(resolve({**config, **change}))
    other = deepcopy(config)
    other["stages"]["codes"]["objective"]["init_args"]["depth"] = 2
    with pytest.raises(InputError, match="continues a tokenizer whose depth is 1, not 2"):
        preflight(resolve(other))
