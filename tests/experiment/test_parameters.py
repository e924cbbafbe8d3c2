"""What trains, counted and shown."""

import io

import pytest
import torch
from peft import LoraConfig
from rich.console import Console

from alignlab.adapters import Full
from alignlab.backbones import open_backbone
from alignlab.experiment.parameters import parameters_of
from alignlab.experiment.show import parameters_table
from alignlab.objectives import CLIP, MLE, Mixture


def size(module, trained=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def test_parts_add_up_to_the_whole(tiny_backbone):
    Full(parts=["projector"]).apply(tiny_backbone)
    found = parameters_of(MLE(tiny_backbone))
    expected = {name: {"total": size(part), "trained": 0} for name, part in tiny_backbone.parts.items()}
    expected["projector"]["trained"] = expected["projector"]["total"]
    assert found["parts"] == expected
    assert found["total"] == size(tiny_backbone) and found["trained"] == size(tiny_backbone, trained=True) > 0


def test_adapters_stand_beside_their_part(tiny_backbone):
    before = {name: size(part) for name, part in tiny_backbone.parts.items()}
    tiny_backbone.model.requires_grad_(False)
    # One layer in each tower, rank 2: A (2, 32) and B (32, 2), in the decoder B (64, 2), four heads of 16.
    tiny_backbone.model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    found = parameters_of(MLE(tiny_backbone))
    sizes = {"adapters in vision_tower": 128, "adapters in language_model": 192}
    added = {name: {"total": number, "trained": number} for name, number in sizes.items()}
    assert found["parts"] == {name: {"total": number, "trained": 0} for name, number in before.items()} | added
    assert found["trained"] == 320


def test_what_an_objective_has_itself_is_counted_once_also_in_a_mixture(tiny_backbone):
    class Scaled(MLE):
        def __init__(self, backbone):
            super().__init__(backbone)
            self.scale = torch.nn.Parameter(torch.ones(3))

    found = parameters_of(Mixture(tiny_backbone, parts={"one": Scaled, "other": MLE}))
    assert found["parts"]["objective"] == {"total": 3, "trained": 3}
    assert found["total"] == size(tiny_backbone) + 3


def test_a_dual_encoder_s_scale_is_of_no_part(tiny_path):
    dual = open_backbone(str(tiny_path), text_tower=str(tiny_path))
    objective = CLIP(dual)
    found = parameters_of(objective)
    assert found["total"] == size(objective) and found["trained"] == size(objective, trained=True)
    assert sum(count["total"] for name, count in found["parts"].items() if name not in dual.parts) == 1


@pytest.mark.parametrize("trained", [25, 0])
def test_the_table_shows_each_part_s_share_of_what_trains(trained):
    parts = {
        "projector": {"total": 1000, "trained": 3 * trained},
        "language_model": {"total": 4000, "trained": trained},
    }
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(parameters_table({"total": 5000, "trained": 4 * trained, "parts": parts}))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()]
    assert ["projector", "1,000", str(3 * trained), "75.0 %" if trained else ""] in rows
    assert ["language_model", "4,000", str(trained), "25.0 %" if trained else ""] in rows
    assert ["all", "5,000", str(4 * trained), "100.0 %" if trained else "0.0 %"] in rows
