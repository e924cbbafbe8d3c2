"""Runs whose backbones have a visual tokenizer: stages hand it on, runs are loaded, judged again and exported."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText
from visual import tokenizer_for

import alignlab
from alignlab import InputError
from alignlab.backbones import Backbone
from alignlab.batch import Turn
from alignlab.experiment.config import resolve
from alignlab.experiment.export import export
from alignlab.experiment.preflight import preflight
from alignlab.experiment.run import evaluate_run, run

OBJECTIVES = """
import torch

from alignlab import InputError
from alignlab.functional import cosine_reconstruction_loss
from alignlab.modules import FSQ, PatchPixels, RandomSelection, VisualTokenizer
from alignlab.objectives import MLE, Loss, Objective


class Tokenize(Objective):
    requires = ("conversation",)

    def __init__(self, backbone):
        super().__init__(backbone)
        backbone.model.requires_grad_(False)
        backbone.visual_tokenizer = VisualTokenizer(
            32, 36, depth=1, num_heads=2, code_dim=4,
            selection=lambda dim: RandomSelection(dim, ratio=0.3), quantizer=lambda dim: FSQ(dim, levels=[3] * dim),
        )
        backbone.visual_tokenizer.pixel_decoder = PatchPixels(32, grid=(6, 6), patch_size=8, hidden=8)

    def loss(self, batch):
        features = self.backbone.patch_features(batch.conversation)
        tokens = self.backbone.visual_tokenizer(features)
        decoded = self.backbone.visual_tokenizer.decode(tokens.vectors, tokens.counts)
        painted = self.backbone.visual_tokenizer.pixels(decoded) - self.backbone.pixels(batch.conversation)
        loss = cosine_reconstruction_loss(decoded, features) + painted.square().mean() + tokens.losses.mean()
        return Loss(loss, len(features))


class Speak(MLE):
    def __init__(self, backbone):
        super().__init__(backbone)
        if backbone.visual_tokenizer is None:
            raise InputError("Speak needs a visual tokenizer; train one in an earlier stage")
        backbone.visual_tokenizer.requires_grad_(False)
        backbone.visual_tokenizer.split()
        backbone.add_visual_tokens()


class Hear(MLE):
    def __init__(self, backbone):
        super().__init__(backbone)
        if backbone.encoder.visual is None:
            raise InputError("Hear needs tokens for codes")
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "speaking.py").write_text(OBJECTIVES)
    return folder


@pytest.fixture
def config(tiny_path, own):
    sizes = {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8}
    return {
        "python_path": [str(own)],
        "objective": "speaking.Speak",
        "backbone": {"path": "stage:codes"},
        "data": {"class_path": "Scenes", "init_args": sizes},
        "trainer": {"max_steps": 2, "log_every_n_steps": 1, "limit_val_batches": 1},
        "optimization": {"lr": 1e-2},
        "wandb": {"mode": "disabled"},
        "evaluators": [{"class_path": "Retrieval", "init_args": {"num_examples": 8}}],
        "stages": {"codes": {"objective": "speaking.Tokenize", "backbone": {"path": str(tiny_path)}, "evaluators": []}},
    }


def test_what_an_earlier_stage_makes_is_known_before_anything_runs(config, tiny_path):
    preflight(resolve(config))
    with pytest.raises(InputError, match="Speak needs a visual tokenizer"):
        preflight(resolve(config | {"backbone": {"path": str(tiny_path)}, "stages": {}}))
    last = config | {"objective": "speaking.Hear"}
    with pytest.raises(InputError, match="Hear needs tokens for codes"):
        preflight(resolve(last))
    between = {
        **config["stages"],
        "words": {"objective": "speaking.Speak", "evaluators": [], "backbone": {"path": "stage:codes"}},
    }
    preflight(resolve(last | {"stages": between, "backbone": {"path": "stage:words"}}))


def test_lengths_are_those_with_start_and_end(config, tiny_path, examples):
    tokens = Backbone(str(tiny_path)).encoder.batch(examples[:1], ("conversation",)).conversation
    end = int(tokens.image_mask[0].nonzero()[-1]) + 1
    config["stages"]["codes"]["backbone"]["max_length"] = None
    with pytest.raises(InputError, match=f"max_length = {end + 1} would cut the image tokens .* reach to {end + 2}"):
        preflight(resolve(config | {"backbone": {"path": "stage:codes", "max_length": end + 1}}))


def test_a_run_is_loaded_judged_again_and_exported(config, tmp_path, examples):
    metrics = run(resolve(config), tmp_path / "run")
    first = alignlab.load(tmp_path / "run" / "stages" / "codes")
    assert first.visual_tokenizer is not None and first.encoder.visual is None
    backbone = alignlab.load(tmp_path / "run")
    before, after = first.visual_tokenizer.state_dict(), backbone.visual_tokenizer.state_dict()
    assert all(torch.equal(each, after[name]) for name, each in before.items()) and len(after) > len(before)
    assert backbone.encoder.visual.num_codes == 81 and "beside the parts" in metrics["parameters"]["parts"]
    assert evaluate_run(tmp_path / "run") == pytest.approx(metrics["scores"])
    prompts = backbone.encoder.prompts([(Turn("user", ("a red circle",)),)])
    drawing = backbone.draw(prompts, seed=0)

    assert export(tmp_path / "run", tmp_path / "out") is None
    told = (tmp_path / "out" / "README.md").read_text()
    assert "alignlab.load" in told and "AutoModelForImageTextToText" in told and "visual_tokenizer/" in told
    again = Backbone(str(tmp_path / "out")).eval()
    assert torch.equal(again.draw(prompts, seed=0).pixels, drawing.pixels)
    tokens = again.encoder.contents([("a red circle",), ("two blue squares",)])
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    logits = plain(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    assert torch.allclose(logits, backbone(tokens).logits, atol=1e-5)
    assert json.loads((tmp_path / "out" / "visual_tokenizer" / "config.json").read_text())["split"]


def test_of_a_tokenizer_that_is_not_read_export_says_no_more(tiny_backbone, tmp_path):
    tiny_backbone.visual_tokenizer = tokenizer_for(split=False)
    tiny_backbone.save(tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "out")
    told = (tmp_path / "out" / "README.md").read_text()
    assert "does not read pictures through it" in told and "visual_tokenizer/" in told
    assert "draw" not in told and "projector" not in told


def test_with_adapters_export_says_both(config, tmp_path):
    config["adapter"] = {"class_path": "LoRA", "init_args": {"rank": 2, "parts": ["language_model"]}}
    config["objective"] = "speaking.Hear"
    config["stages"]["codes"]["adapter"] = "Full"
    words = {"objective": "speaking.Speak", "evaluators": [], "adapter": "Full", "backbone": {"path": "stage:codes"}}
    config |= {"backbone": {"path": "stage:words"}, "stages": {**config["stages"], "words": words}, "evaluators": []}
    run(resolve(config), tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "out") is None
    backbone, again = alignlab.load(tmp_path / "run"), Backbone(str(tmp_path / "out")).eval()
    tokens = again.encoder.contents([("a red circle",), ("two blue squares",)])
    assert torch.allclose(again(tokens).logits, backbone(tokens).logits, atol=1e-5)
    state = again.visual_tokenizer.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in backbone.visual_tokenizer.state_dict().items())
    assert "visual_tokenizer/" in (tmp_path / "out" / "README.md").read_text()
