import pytest
import torch

from alignlab import InputError
from alignlab.objectives import MLE, InfoNCE, Mixture


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
