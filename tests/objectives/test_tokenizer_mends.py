"""What LaVIT's objectives refuse, freeze and remember between their stages."""

from functools import partial

import pytest
import torch

from alignlab import InputError
from alignlab.backbones import open_backbone
from alignlab.backbones.tiny import give_tokenizer
from alignlab.modules import AllPatches, LearnedSelection, VectorQuantizer
from alignlab.objectives import MLE, LaVIT, LaVITTokenizer, Mixture

SMALL = {"depth": 1, "num_heads": 4, "mlp_ratio": 1.5, "code_dim": 4}
CODES = partial(VectorQuantizer, num_codes=8)


def test_lavit_leaves_the_vision_tower_as_it_was(tiny_path):
    backbone = open_backbone(str(tiny_path))
    give_tokenizer(backbone)
    objective = LaVIT(backbone).train()
    tower = backbone.parts["vision_tower"]
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for module in tower[0].modules()) and backbone.model.get_decoder().training
    assert objective.training


@pytest.mark.parametrize("settings", [{"discrete_input": True}, {"read_images_supervised": True}])
def test_codes_that_differ_each_time_are_no_labels_of_pictures_that_are_read(tiny_path, settings):
    backbone = open_backbone(str(tiny_path))
    give_tokenizer(backbone)
    backbone.visual_tokenizer.selection.decision = "sample"
    with pytest.raises(InputError, match="the tokenizer's selection samples; train it with decision"):
        LaVIT(backbone, **settings)


def test_a_tokenizer_is_no_part_of_a_mixture(tiny_path):
    parts = {"likelihood": MLE, "tokenizer": partial(LaVITTokenizer, **SMALL)}
    with pytest.raises(InputError, match="part tokenizer is a LaVITTokenizer, which trains alone: it freezes all"):
        Mixture(open_backbone(str(tiny_path)), parts=parts)


def test_the_keep_ratio_comes_down_in_the_first_phase_alone(tiny_path):
    backbone = open_backbone(str(tiny_path))
    first = LaVITTokenizer(backbone, keep_warmup=4, keep_ratio=0.5, **SMALL).train()
    ratios = []
    for _ in range(6):
        ratios.append(first._ratio())
        first.after_step()
    assert ratios == [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert first.eval()._ratio() == 0.5
    second = LaVITTokenizer(
        backbone, quantizer=CODES, keep_warmup=4, keep_ratio=0.5, freeze_selector=False, **SMALL
    ).train()
    assert second._ratio() == 0.5 and second.tokenizer.selection.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"selection": AllPatches}, r"selection is LearnedSelection\(.*\), not AllPatches\(\)"),
        ({"selection": partial(LearnedSelection, tau=0.5)}, r"not LearnedSelection\(.*tau=0.5"),
        ({"keep_warmup": -1}, "no number below 0, got .*keep_warmup = -1"),
        ({"calibrated": True, "selection": partial(LearnedSelection, decision="topk")}, "sets the threshold"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_path, settings, message):
    backbone = open_backbone(str(tiny_path))
    if "calibrated" not in settings:
        LaVITTokenizer(backbone, **SMALL)
    with pytest.raises(InputError, match=message):
        LaVITTokenizer(backbone, quantizer=CODES, **SMALL, **settings)


@pytest.mark.parametrize("spread", [1.0, 40.0])
def test_a_calibrated_selection_keeps_the_share_however_sure_it_is(spread):
    torch.manual_seed(0)
    selection = LearnedSelection(32).eval()
    with torch.no_grad():
        selection.linears[-1].weight *= spread
        selection.linears[-1].bias[0] = spread
    features = torch.randn(50, 36, 32)
    selection.calibrate(selection.log_probs(features), 1 / 3)
    kept = selection(features).mask.mean(1)
    assert float(kept.mean()) == pytest.approx(1 / 3, abs=0.01) and float(kept.std()) > 0.01
    assert float(selection(torch.randn(50, 36, 32)).mask.mean()) == pytest.approx(1 / 3, abs=0.1)
