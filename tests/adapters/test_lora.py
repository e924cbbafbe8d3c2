import copy

import pytest
import torch
from adapting import disturb
from transformers import CLIPConfig, SiglipConfig

from alignlab import InputError
from alignlab.adapters import DoRA, Full, LoRA, PLoRA, QLoRA, adapter_parameters, adapters_off
from alignlab.adapters.placing import pattern
from alignlab.backbones import Backbone
from alignlab.backbones.dual import DualEncoder
from alignlab.backbones.tiny import write_tiny_dual


@pytest.fixture
def tokens(tiny_backbone, examples):
    return tiny_backbone.encoder.batch(examples[:3], ("conversation",)).conversation


@pytest.fixture(scope="module")
def duals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("duals")
    torch.manual_seed(0)
    for name, kind in (("clip", CLIPConfig), ("siglip", SiglipConfig)):
        write_tiny_dual(folder / name, kind)
    return folder


def adapted_names(backbone):
    return {name.removesuffix(".base_layer") for name, _ in backbone.model.named_modules() if "base_layer" in name}


@pytest.mark.parametrize("adapter", [LoRA(rank=4, train=["projector"]), DoRA(rank=4, train=["projector"])])
def test_before_the_first_step_nothing_changes_and_the_branches_and_named_parts_train(tiny_backbone, tokens, adapter):
    tiny_backbone.eval()
    before = tiny_backbone(tokens).logits
    adapter.apply(tiny_backbone)
    assert torch.allclose(tiny_backbone.eval()(tokens).logits, before, atol=1e-6)
    added = {id(parameter) for parameter in adapter_parameters(tiny_backbone.model)}
    assert added
    for parameter, part in tiny_backbone.part_of():
        assert parameter.requires_grad == (id(parameter) in added or part == "projector")


def test_every_linear_map_of_the_decoder_but_the_head_gets_a_branch_of_the_rank(tiny_backbone):
    LoRA(rank=3).apply(tiny_backbone)
    ends = {name.rpartition(".")[2] for name in adapted_names(tiny_backbone)}
    assert ends == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(name.startswith("model.language_model.") for name in adapted_names(tiny_backbone))
    assert type(tiny_backbone.head) is torch.nn.Linear
    # A: 3 x in, B: out x 3, for four maps 32 -> 64 or back, two 32 -> 48, and one back.
    assert sum(p.numel() for p in adapter_parameters(tiny_backbone.model)) == 3 * (4 * (32 + 64) + 3 * (32 + 48))


def test_named_modules_of_named_parts_alone_get_branches(tiny_backbone):
    LoRA(rank=2, parts=["vision_tower", "language_model"], modules=["q_proj", "gate_proj"]).apply(tiny_backbone)
    assert {tuple(name.split("."))[1::100] + (name.rpartition(".")[2],) for name in adapted_names(tiny_backbone)} == {
        ("vision_tower", "q_proj"),
        ("language_model", "q_proj"),
        ("language_model", "gate_proj"),
    }


def test_the_branch_is_scaling_times_b_a(tiny_backbone):
    LoRA(rank=4, scaling=3.0, dropout=0.0, modules=["q_proj"]).apply(tiny_backbone)
    disturb(tiny_backbone)
    layer = tiny_backbone.model.get_decoder().layers[0].self_attn.q_proj
    x = torch.randn(5, 32)
    a, b = layer.lora_A["lora"].weight, layer.lora_B["lora"].weight
    wanted = x @ layer.base_layer.weight.T + 3 * x @ a.T @ b.T
    assert torch.allclose(layer(x), wanted, atol=1e-5)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), PLoRA(ranks={"visual": 2})], ids=["LoRA", "PLoRA"])
def test_beside_weights_of_half_precision_branches_are_whole(tiny_path, tmp_path, tokens, adapter):
    backbone = Backbone(str(tiny_path), dtype="bfloat16")
    adapter.apply(backbone)
    assert {parameter.dtype for parameter in adapter_parameters(backbone.model)} == {torch.float32}
    for parameter in adapter_parameters(backbone.model):
        parameter.data += 1e-4  # which is nothing beside a weight of 1 in bfloat16
    output = backbone(tokens)
    assert output.hidden.dtype == torch.bfloat16
    output.logits.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in adapter_parameters(backbone.model))
    backbone.eval().save(tmp_path / "saved")
    again = Backbone(str(tmp_path / "saved"), dtype="bfloat16").eval()
    pairs = zip(adapter_parameters(again.model), adapter_parameters(backbone.model), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert torch.equal(again(tokens).logits, backbone(tokens).logits)


def test_the_seed_decides_what_is_drawn(tiny_path):
    drawn = []
    for seed in (1, 1, 2):
        backbone = Backbone(str(tiny_path))
        torch.manual_seed(seed)
        LoRA(rank=4).apply(backbone)
        drawn.append(torch.cat([p.detach().flatten() for p in adapter_parameters(backbone.model)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_backbone_with_adapters_does_all_that_one_without_does(tiny_backbone, tokens, examples):
    LoRA(rank=4, parts=["vision_tower", "projector", "language_model"]).apply(tiny_backbone)
    disturb(tiny_backbone)
    backbone = tiny_backbone.eval()
    twin = copy.deepcopy(backbone)
    output = backbone(tokens)
    assert torch.equal(twin(tokens).logits, output.logits)
    shared = backbone(tokens, features=backbone.features(tokens)).logits
    assert torch.allclose(shared, output.logits, atol=1e-5)
    ids = tokens.input_ids
    assert torch.allclose(backbone.label_logits(output.hidden, ids), output.logits.gather(-1, ids[..., None])[..., 0])
    assert backbone.embed(tokens).shape == (3, 32)
    assert backbone.hidden(backbone.without_images(tokens, whole=True)).shape == output.hidden.shape
    prompts = backbone.encoder.prompts([e.conversation[:-1] for e in examples[:2]])
    assert len(backbone.generate(prompts, max_new_tokens=3)) == 2
    with adapters_off(backbone.model):
        assert not torch.allclose(backbone(tokens).logits, output.logits, atol=1e-2)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_dual_encoder_trains_by_branches_in_each_tower(duals, kind, examples):
    backbone = DualEncoder(str(duals / kind)).eval()
    batch = backbone.encoder.batch(examples[:3], ("query", "target"))
    before = backbone.embed(batch.query)
    LoRA(rank=2, parts=["vision_tower", "language_model"], train=["projector"]).apply(backbone)
    assert torch.allclose(backbone.eval().embed(batch.query), before, atol=1e-6)
    backbone.embed(batch.query).sum().backward()
    backbone.embed(batch.target).sum().backward()
    # B has gradients; A has none before B has moved.
    missing = [name for name, p in backbone.named_parameters() if "lora_B" in name and not p.grad.any()]
    assert not missing
    assert all(p.requires_grad == ("lora" in n) for n, p in backbone.named_parameters() if "encoder" in n)
    with pytest.raises(InputError, match="QLoRA.*dual encoder"):
        QLoRA().apply(backbone)


def test_a_second_set_stands_beside_the_first_which_stays_frozen_and_at_work(tiny_backbone, tokens):
    LoRA(rank=4).apply(tiny_backbone)
    disturb(tiny_backbone)
    first = [parameter for parameter in adapter_parameters(tiny_backbone.model)]
    before = tiny_backbone.eval()(tokens).logits
    LoRA(rank=2, modules=["q_proj"]).apply(tiny_backbone)
    assert torch.equal(tiny_backbone.eval()(tokens).logits, before)
    assert not any(parameter.requires_grad for parameter in first)
    assert sum(parameter.requires_grad for parameter in tiny_backbone.parameters()) == 2
    with pytest.raises(InputError, match="DoRA cannot be put beside"):
        DoRA(rank=2).apply(tiny_backbone)


def test_full_training_of_a_part_leaves_the_adapters_of_another_frozen(tiny_backbone):
    LoRA(rank=4).apply(tiny_backbone)
    Full(parts=["projector"]).apply(tiny_backbone)
    assert not any(parameter.requires_grad for parameter in adapter_parameters(tiny_backbone.model))


@pytest.mark.parametrize(
    "later", [Full(parts=["language_model"]), LoRA(rank=2, parts=["vision_tower"], train=["language_model"])]
)
def test_a_part_that_trains_whole_later_leaves_its_adapters_frozen(tiny_backbone, later):
    LoRA(rank=4).apply(tiny_backbone)
    first = {id(parameter) for parameter in adapter_parameters(tiny_backbone.model)}
    later.apply(tiny_backbone)
    for parameter in tiny_backbone.parts["language_model"].parameters():
        assert parameter.requires_grad == (id(parameter) not in first)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parts": ["head"]}, "LoRA needs parts out of .*got head"),
        ({"parts": []}, "got none"),
        ({"train": ["language_model"]}, "language_model cannot be frozen beneath an adapter and train whole"),
        ({"rank": 0}, "rank of at least 1, got 0"),
        ({"scaling": 0.0}, "scaling above 0"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        LoRA(**settings)


def test_a_name_that_no_map_has_is_refused_with_those_there_are(tiny_backbone):
    with pytest.raises(InputError, match="named query, but in the language_model they are named down_proj, gate_proj"):
        LoRA(modules=["query"]).apply(tiny_backbone)


def test_a_pattern_matches_its_names_alone():
    everything = ["text.0.q", "text.0.k", "text.1.q", "vision.0.q", "text.0", "q"]
    assert pattern(["text.0.q", "text.1.q"], everything) == r"text\.(?:.*\.)?(?:q)"
    assert pattern(["text.0.q"], everything) == r"text\.0\.(?:.*\.)?(?:q)"
    assert pattern(["text.0.k", "text.1.q"], everything) == r"text\.0\.k|text\.1\.q"  # q and k would match text.0.q
