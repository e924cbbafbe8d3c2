"""Experiments on dual encoders: which class reads a directory, stages as text towers, what is refused beforehand."""

import pytest
import torch

import alignlab
from alignlab import Backbone, InputError
from alignlab.backbones import PARTS, DualEncoder, open_backbone
from alignlab.experiment.config import ConfigError, digest, resolve
from alignlab.experiment.inspect import inspect
from alignlab.experiment.preflight import preflight
from alignlab.experiment.run import evaluate_run, run
from alignlab.experiment.stages import outlined
from alignlab.objectives import CLIP, SigLIP


@pytest.fixture
def config(tiny_path):
    """Two towers of the tiny model, trained with CLIP."""
    return {
        "objective": "CLIP",
        "backbone": {"path": str(tiny_path), "text_tower": str(tiny_path)},
        "data": {"class_path": "Scenes", "init_args": {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8}},
        "trainer": {"max_steps": 2, "log_every_n_steps": 1, "limit_val_batches": 1},
        "evaluators": [
            {"class_path": "Retrieval", "init_args": {"num_examples": 8}},
            {"class_path": "Composition", "init_args": {"num_examples": 4, "by": "similarity"}},
        ],
        "wandb": {"mode": "disabled"},
    }


def test_a_run_saves_what_load_reads_as_the_same_class(config, tmp_path, examples):
    metrics = run(resolve(config), tmp_path / "run")
    assert {"retrieval/image_to_text_r1", "composition/accuracy"} <= set(metrics["scores"])
    backbone = alignlab.load(tmp_path / "run")
    assert isinstance(backbone, DualEncoder) and not backbone.training
    assert (
        backbone.logit_scale is not None and backbone.embed(backbone.encoder.contents([examples[0].target])).ndim == 2
    )
    assert evaluate_run(tmp_path / "run") == pytest.approx(metrics["scores"])


def test_a_stage_s_language_model_is_the_next_one_s_text_tower(config, tiny_path, tmp_path):
    tuned = {"backbone": {"text_tower": None}, "objective": "MLE", "evaluators": []}
    config |= {"objective": "LLM2CLIP", "stages": {"captions": tuned}}
    config |= {"backbone": {"path": str(tiny_path), "text_tower": "stage:captions"}}
    config |= {"adapter": {"class_path": "Full", "init_args": {"parts": ["vision_tower", "projector"]}}}
    tuned["adapter"] = None
    resolved = resolve(config)
    assert resolved["stages"]["captions"]["backbone"]["text_tower"] is None
    run(resolved, tmp_path / "run")
    first, last = alignlab.load(tmp_path / "run" / "stages" / "captions"), alignlab.load(tmp_path / "run")
    assert isinstance(first, Backbone) and isinstance(last, DualEncoder)
    start = Backbone(str(tiny_path)).parts["language_model"][0].state_dict()
    taken = last.parts["language_model"][0].state_dict()
    for name, value in first.parts["language_model"][0].state_dict().items():
        assert torch.equal(taken[name], value)
    assert any(not torch.equal(taken[name], value) for name, value in start.items())


def test_a_dual_encoder_of_a_stage_goes_on_as_one(config, tmp_path):
    config |= {"stages": {"first": {"evaluators": []}}, "backbone": {"path": "stage:first"}}
    config["stages"]["first"]["backbone"] = {"path": "scenes-parts", "text_tower": "scenes-parts"}
    run(resolve(config), tmp_path / "run")
    first, last = alignlab.load(tmp_path / "run" / "stages" / "first"), alignlab.load(tmp_path / "run")
    assert isinstance(last, DualEncoder) and first.state_dict().keys() == last.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "MLE"}, "MLE needs the sequences conversation, but a dual encoder reads query, target, .*; "
                               "conversation needs a backbone that generates text"),
        ({"evaluators": ["CaptionAccuracy"]}, "CaptionAccuracy needs a backbone that generates text, but .* is a dual"),
        ({"evaluators": ["Composition"]}, "Composition needs a backbone that generates text"),
        ({"objective": "LLM2CLIP", "backbone": {"path": "scenes-parts"}}, "LLM2CLIP needs a dual encoder whose texts"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_read(changes, message, config):
    with pytest.raises(InputError, match=message):
        preflight(resolve(config | changes))


def test_a_text_tower_is_looked_for_when_the_config_is_read(config):
    config["backbone"]["text_tower"] = "scenes-part"
    with pytest.raises(ConfigError, match="backbone.text_tower: there is no directory 'scenes-part'.*did you mean"):
        resolve(config)
    config["backbone"]["text_tower"] = "stage:first"
    with pytest.raises(ConfigError, match="backbone.text_tower: there is no earlier stage 'first'"):
        resolve(config)


def test_without_a_text_tower_a_config_is_the_one_it_was(config, tiny_path):
    resolved = resolve(config | {"backbone": {"path": str(tiny_path)}})
    older = {**resolved, "backbone": {k: v for k, v in resolved["backbone"].items() if k != "text_tower"}}
    assert digest(resolved) == digest(older) != digest(resolve(config))


def test_inspect_shows_what_the_two_towers_read(config, tmp_path):
    page = inspect(resolve(config), tmp_path / "page.html", num_examples=2)
    assert "query" in page.read_text() and "target" in page.read_text()


@pytest.mark.parametrize(("settings", "message"), [
    ({"path": "scenes-parts", "text_tower": "stage:dual"}, "stage:dual is a dual encoder; what reads the texts"),
    ({"path": "stage:dual", "text_tower": "scenes-parts"}, "stage:dual has a text tower of its own"),
])  # fmt: skip
def test_what_a_stage_cannot_give_is_known_before_it_trains(settings, message):
    stages = {"dual": {"backbone": {"path": "scenes-parts", "text_tower": "scenes-parts"}}}
    with pytest.raises(InputError, match=message):
        outlined({**settings, "take": None}, stages)


def test_a_scale_above_the_clamp_is_known_without_weights(tiny_path):
    with torch.device("meta"):
        backbone = Backbone(str(tiny_path), fresh=PARTS)
    with pytest.raises(InputError, match="CLIP needs scale <= max_scale"):
        CLIP(backbone, scale=200.0)


def test_scale_and_bias_keep_their_precision_in_smaller_files(tiny_path, tmp_path):
    backbone = open_backbone(str(tiny_path), text_tower=str(tiny_path))
    objective = SigLIP(backbone, init_bias=-2.6503)
    backbone.save(tmp_path / "small", dtype="bfloat16")
    again = open_backbone(str(tmp_path / "small"))
    assert torch.equal(again.logit_bias, objective.bias) and again.logit_bias.dtype == torch.float32
