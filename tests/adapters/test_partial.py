import copy

import pytest
import torch
from adapting import disturb, trained

from alignlab import InputError
from alignlab.adapters import LoRA, PLoRA, adapter_parameters, adapters_off
from alignlab.backbones import Backbone, DualEncoder, open_backbone
from alignlab.batch import Turn


@pytest.fixture
def tokens(tiny_backbone, examples):
    return tiny_backbone.encoder.batch(examples[:3], ("conversation",)).conversation


@pytest.fixture
def words(tiny_backbone):
    return tiny_backbone.encoder.contents([("a red square",), ("two blue circles here",)])


def test_texts_are_read_as_before_bit_for_bit_and_pictures_are_not(tiny_path, tiny_backbone, tokens, words):
    backbone = trained(tiny_path, PLoRA(ranks={"visual": 4}))
    before = tiny_backbone.eval()
    assert torch.equal(backbone.hidden(words), before.hidden(words))
    assert not torch.allclose(backbone.hidden(tokens), before.hidden(tokens), atol=1e-2)


def test_visual_and_text_of_the_same_branch_are_all(tiny_path, tokens):
    both = trained(tiny_path, PLoRA(ranks={"visual": 4, "text": 4}))
    for layer in both.model.modules():
        if hasattr(layer, "lora_A"):
            layer.lora_A["text"].weight.data = layer.lora_A["visual"].weight.data
            layer.lora_B["text"].weight.data = layer.lora_B["visual"].weight.data
    one = trained(tiny_path, PLoRA(ranks={"all": 4}))
    pairs = {name: each for name, each in both.model.named_parameters() if ".visual." in name}
    for name, each in one.model.named_parameters():
        if ".all." in name:
            each.data = pairs[name.replace(".all.", ".visual.")].data
    assert torch.allclose(one(tokens).logits, both(tokens).logits, atol=1e-5)


def test_the_branches_of_each_scope_and_the_named_parts_train(tiny_backbone):
    PLoRA(ranks={"visual": 12, "all": 4}, train=["projector"]).apply(tiny_backbone)
    assert {name: config.r for name, config in tiny_backbone.model.peft_config.items()} == {"visual": 12, "all": 4}
    added = {id(parameter) for parameter in adapter_parameters(tiny_backbone.model)}
    for parameter, part in tiny_backbone.part_of():
        assert parameter.requires_grad == (id(parameter) in added or part == "projector")
    widths = 4 * (32 + 64) + 3 * (32 + 48)  # as for LoRA
    assert sum(p.numel() for p in adapter_parameters(tiny_backbone.model)) == (12 + 4) * widths


def test_a_rank_of_zero_is_none(tiny_backbone):
    PLoRA(ranks={"visual": 0, "text": 4}).apply(tiny_backbone)
    assert list(tiny_backbone.model.peft_config) == ["text"]


def test_a_backbone_with_partial_branches_does_all_that_one_without_does(tiny_path, tiny_backbone, tokens, examples):
    backbone = trained(tiny_path, PLoRA(ranks={"visual": 4, "all": 2}))
    output = backbone(tokens)
    assert torch.equal(copy.deepcopy(backbone)(tokens).logits, output.logits)
    assert torch.allclose(backbone(tokens, features=backbone.features(tokens)).logits, output.logits, atol=1e-5)
    chosen = output.logits.gather(-1, tokens.input_ids[..., None])[..., 0]
    assert torch.allclose(backbone.label_logits(output.hidden, tokens.input_ids), chosen, atol=1e-5)
    rows = backbone.without_images(tokens)
    assert backbone.hidden(rows).isfinite().all()
    prompts = backbone.encoder.prompts([e.conversation[:-1] for e in examples[:2]])
    answers = backbone.generate_ids(prompts, max_new_tokens=3)
    # Greedy answers, token by token without a cache.
    ids, vision = prompts.input_ids, prompts.vision
    for step in range(3):
        mask = torch.cat([prompts.attention_mask, torch.ones_like(ids[:, prompts.input_ids.shape[1] :])], 1)
        logits = backbone.model(input_ids=ids, attention_mask=mask, use_cache=False, **vision).logits[:, -1]
        logits[:, backbone.encoder.image_token_id] = -torch.inf  # which the adapter has not generated
        if step == 0 or (answers[:, step:] != backbone.encoder.pad_id).all():
            assert torch.equal(logits.argmax(-1), answers[:, step])
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    with adapters_off(backbone.model):
        assert torch.allclose(backbone(tokens).logits, tiny_backbone.eval()(tokens).logits, atol=1e-6)


def test_two_answers_to_a_prompt_are_scored_in_one_sequence_as_in_two(tiny_path, examples):
    from alignlab.backbones.answers import apart

    backbone = trained(tiny_path, PLoRA(ranks={"visual": 4, "text": 2}))
    pairs = [
        (example.id, (*example.conversation[:-1], Turn("assistant", ("no such thing",)))) for example in examples[:3]
    ]
    chosen = backbone.encoder.conversations([(e.id, e.conversation) for e in examples[:3]])
    rejected = backbone.encoder.conversations(pairs)
    lengths = (chosen.labels == -100).sum(1) - (1 - chosen.attention_mask).sum(1)
    together = backbone.answers(chosen, rejected, lengths)
    assert len(together.sequences) == 1
    separate = apart(chosen, rejected, lengths)
    assert torch.allclose(backbone.answer_logps(together), backbone.answer_logps(separate), atol=1e-4)


@pytest.mark.parametrize("ranks", [{"visual": 3}, {"visual": 3, "all": 2}, {"text": 2}])
def test_what_is_read_computes_bit_for_bit_what_was_saved(tiny_path, tmp_path, tokens, ranks):
    saved = trained(tiny_path, PLoRA(ranks=ranks, train=["projector"]))
    saved.save(tmp_path / "a")
    read = open_backbone(str(tmp_path / "a")).eval()
    assert list(read.model.peft_config) == list(ranks)
    assert torch.equal(read(tokens).logits, saved(tokens).logits)
    assert not any(parameter.requires_grad for parameter in read.parts["language_model"].parameters())


def test_a_second_set_stands_beside_the_frozen_first_and_lora_does_not(tiny_path, tmp_path, tokens):
    trained(tiny_path, PLoRA(ranks={"visual": 3})).save(tmp_path / "a")
    with pytest.raises(InputError, match="LoRA cannot be put beside .* of another type.* PLoRA with ranks of {all"):
        LoRA(rank=2).apply(Backbone(str(tmp_path / "a")))
    second = Backbone(str(tmp_path / "a")).eval()
    before = second(tokens).logits
    PLoRA(ranks={"all": 2, "visual": 1}).apply(second)
    assert list(second.model.peft_config) == ["visual", "all", "visual-2"]
    assert torch.equal(second.eval()(tokens).logits, before)
    assert {n.split(".")[-2] for n, p in second.named_parameters() if p.requires_grad} == {"all", "visual-2"}
    disturb(second).save(tmp_path / "b")
    assert torch.equal(Backbone(str(tmp_path / "b")).eval()(tokens).logits, second(tokens).logits)


def test_parts_without_branches_are_taken_and_a_decoder_with_some_is_refused(tiny_path, tmp_path):
    saved = trained(tiny_path, PLoRA(ranks={"visual": 3}, train=["projector"]))
    saved.save(tmp_path / "a")
    taken = Backbone(str(tiny_path), take={"projector": str(tmp_path / "a")})
    for name, each in saved.parts["projector"].state_dict().items():
        assert torch.equal(taken.parts["projector"].state_dict()[name], each)
    with pytest.raises(InputError, match=r"take: the language_model .* cannot be merged: .*one kind alone \(visual\)"):
        Backbone(str(tiny_path), take={"language_model": str(tmp_path / "a")})


@pytest.mark.parametrize("ranks", [{"visual": 3}, {"visual": 3, "text": 2}, {"all": 2}])
def test_a_text_tower_reads_texts_as_the_model_does(tiny_path, tmp_path, ranks, words):
    saved = trained(tiny_path, PLoRA(ranks=ranks))
    saved.save(tmp_path / "a")
    dual = DualEncoder(str(tiny_path), text_tower=str(tmp_path / "a")).eval()
    assert torch.allclose(dual.read(words), saved.embed(words), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ranks": {}}, "a rank for one or more of visual, text, all, got none"),
        ({"ranks": {"image": 4}}, "got image"),
        ({"ranks": {"visual": 0}}, "a rank for one or more of visual, text, all, got none"),
        ({"ranks": {"visual": -1}}, "rank of at least 1, got -1"),
        ({"train": ["language_model"]}, "language_model cannot be frozen beneath an adapter and train whole"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        PLoRA(**settings)


def test_a_dual_encoder_is_refused(tiny_path):
    with pytest.raises(InputError, match="PLoRA needs a language model that reads pictures among words"):
        PLoRA().apply(DualEncoder(str(tiny_path), text_tower=str(tiny_path)))
