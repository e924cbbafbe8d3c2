from functools import partial

import pytest
import torch

from alignlab import InputError
from alignlab.backbones import open_backbone
from alignlab.objectives import LLM2CLIP, MLE, InfoNCE, Mixture, SigLIP


def test_is_the_weighted_sum_of_its_parts(tiny_backbone, examples):
    mixture = Mixture(tiny_backbone, parts={"likelihood": MLE, "contrast": InfoNCE}, weights={"contrast": 0.25})
    batch = tiny_backbone.encoder.batch(examples[:4], mixture.requires)
    loss = mixture.loss(batch)
    expected = MLE(tiny_backbone).loss(batch).mean + 0.25 * InfoNCE(tiny_backbone).loss(batch).mean
    torch.testing.assert_close(loss.mean, expected)
    assert {"likelihood/loss", "contrast/scale"} <= set(loss.report)


def test_one_part_of_weight_one_is_that_part(tiny_backbone, examples):
    mixture = Mixture(tiny_backbone, parts={"only": MLE})
    assert mixture.requires == ("conversation",)
    batch = tiny_backbone.encoder.batch(examples[:4], mixture.requires)
    assert torch.equal(mixture.loss(batch).mean, MLE(tiny_backbone).loss(batch).mean)


def test_the_backbone_is_saved_and_trained_once(tiny_backbone):
    mixture = Mixture(tiny_backbone, parts={"likelihood": MLE, "contrast": InfoNCE})
    assert mixture.parts["likelihood"].backbone is mixture.backbone
    extra = {id(p) for p in mixture.parameters()} - {id(p) for p in tiny_backbone.parameters()}
    assert extra == {id(mixture.parts["contrast"].log_scale)}


def test_weights_of_unknown_parts_and_no_parts_are_refused(tiny_backbone):
    with pytest.raises(InputError, match="weights name other"):
        Mixture(tiny_backbone, parts={"likelihood": MLE}, weights={"other": 1.0})
    with pytest.raises(InputError, match="at least one part"):
        Mixture(tiny_backbone, parts={})


class Hooked(MLE):
    def on_train_epoch_end(self):
        """What a mixture would never call."""


class Counting(MLE):
    steps = 0

    def after_step(self):
        self.steps += 1


class Alone(InfoNCE):
    per_process = "negatives of its own"


def test_a_part_keeps_its_clamp_and_what_it_does_after_a_step(tiny_backbone):
    mixture = Mixture(
        tiny_backbone, parts={"contrast": partial(InfoNCE, scale=50.0, max_scale=50.0), "count": Counting}
    )
    with torch.no_grad():
        mixture.parts["contrast"].log_scale += 1
    mixture.after_step()
    assert mixture.parts["contrast"].log_scale.exp().item() == pytest.approx(50.0)
    assert mixture.parts["count"].steps == 1


def test_a_part_that_keeps_the_language_model_in_evaluation_mode_does_so_beside_others(tiny_path):
    backbone = open_backbone(str(tiny_path), text_tower=str(tiny_path))
    mixture = Mixture(backbone, parts={"frozen": LLM2CLIP, "pairs": SigLIP}).eval().train()
    assert mixture.training and mixture.parts["pairs"].training
    assert not backbone.parts["language_model"][0].training and backbone.parts["vision_tower"][0].training


def test_a_hook_that_would_not_be_called_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="part hooked has the hook on_train_epoch_end"):
        Mixture(tiny_backbone, parts={"hooked": Hooked})


def test_what_a_part_says_of_processes_the_mixture_says(tiny_backbone):
    assert Mixture(tiny_backbone, parts={"a": MLE, "b": Alone}).per_process == "negatives of its own"
    assert Mixture(tiny_backbone, parts={"a": MLE}).per_process == ""
