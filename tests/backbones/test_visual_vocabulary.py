"""Tokens for codes, backbones that keep their tokenizer, and families that cannot have one."""

import copy
import json
import shutil
import time

import pytest
import torch
from families import make
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    LlavaConfig,
    SiglipVisionConfig,
)
from visual import CODES, PATCHES, encoded, learned, prompts_of, tokenizer_for, with_tokens

from alignlab import Backbone, InputError
from alignlab.adapters import LoRA, PLoRA
from alignlab.backbones import PARTS, dynamic
from alignlab.backbones.vocabulary import VisualVocabulary, add_visual_tokens
from alignlab.modules import FSQ, VectorQuantizer


def test_ids_follow_the_text_tokenizers(tiny_backbone):
    assert tiny_backbone.encoder.visual is None
    size = len(tiny_backbone.encoder.tokenizer)
    tiny_backbone.visual_tokenizer = tokenizer_for()
    visual = tiny_backbone.add_visual_tokens()
    assert visual == VisualVocabulary(size, size + 1, size + 2, CODES) == tiny_backbone.encoder.visual
    named = tiny_backbone.encoder.tokenizer.convert_ids_to_tokens([visual.start, visual.end, visual.first + 7])
    assert named == ["<visual_start>", "<visual_end>", "<visual_7>"]
    codes = torch.arange(CODES)
    assert torch.equal(visual.codes(visual.ids(codes)), codes) and visual.among(visual.ids(codes)).all()
    assert visual.among(torch.tensor([visual.start, visual.end, 5, visual.first + CODES])).sum() == 0
    ids = torch.tensor([[5, visual.start, visual.first, visual.end]])
    assert tiny_backbone.encoder.decode(ids) == tiny_backbone.encoder.decode(ids[:, :1])


def test_the_model_has_rows_for_them_and_its_words_are_the_same(tiny_backbone, examples):
    tokens = encoded(tiny_backbone, examples)
    before, size = tiny_backbone(tokens).logits, len(tiny_backbone.encoder.tokenizer)
    with_tokens(tiny_backbone, split=False)
    logits = tiny_backbone(tokens).logits
    assert logits.shape[-1] == size + 2 + CODES == tiny_backbone.model.config.get_text_config().vocab_size
    torch.testing.assert_close(logits[..., :size], before)


def test_a_second_time_nothing_happens(tiny_backbone):
    with_tokens(tiny_backbone)
    before, state = copy.deepcopy(tiny_backbone.state_dict()), torch.get_rng_state()
    visual = tiny_backbone.encoder.visual
    assert tiny_backbone.add_visual_tokens() == visual and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(each, before[name]) for name, each in tiny_backbone.state_dict().items())
    tiny_backbone.visual_tokenizer.quantize_by(lambda dim: FSQ(dim, levels=[3, 3]))
    with pytest.raises(InputError, match="tokens for 12 visual codes, and the visual tokenizer has 9"):
        tiny_backbone.add_visual_tokens()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [199, 230])  # as many as words, and some to spare, fewer than are needed
def test_new_rows_are_drawn_like_the_old_ones(tmp_path, tiny_path, tied, rows):
    """Means and deviations over 1000 rows of each column: within 5 of their standard errors."""
    config = AutoConfig.from_pretrained(tiny_path)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    config.text_config.vocab_size = rows
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(torch.linspace(0.1, 3, 32)).add_(1)
    model.save_pretrained(tmp_path / "a")
    AutoProcessor.from_pretrained(tiny_path).save_pretrained(tmp_path / "a")
    backbone = Backbone(str(tmp_path / "a"))
    old = [each.weight[:199].clone() for each in (backbone.model.get_input_embeddings(), backbone.head)]
    add_visual_tokens(backbone, 1000)
    maps = (backbone.model.get_input_embeddings(), backbone.head)
    assert (maps[0].weight is maps[1].weight) == tied
    for before, each in zip(old, maps, strict=True):
        new = each.weight[199:]
        assert torch.equal(each.weight[:199], before) and len(new) == 1002
        assert ((new.mean(0) - before.mean(0)).abs() < 5 * before.std(0) / 1002**0.5).all()
        assert ((new.std(0) / before.std(0) - 1).abs() < 5 / (2 * 1002) ** 0.5).all()
    torch.manual_seed(7)
    again = Backbone(str(tmp_path / "a"))
    add_visual_tokens(again, 1000)
    torch.manual_seed(7)
    third = Backbone(str(tmp_path / "a"))
    add_visual_tokens(third, 1000)
    assert torch.equal(again.head.weight, third.head.weight) and not torch.equal(again.head.weight, maps[1].weight)


def test_frozen_rows_stay_frozen(tiny_backbone):
    tiny_backbone.parts["language_model"].requires_grad_(False)
    with_tokens(tiny_backbone)
    assert not any(weight.requires_grad for weight in tiny_backbone.parts["language_model"].parameters())


def test_sixteen_thousand_codes_take_seconds(tiny_backbone, tmp_path):
    tokenizer = tokenizer_for()
    tokenizer.quantizer = VectorQuantizer(tokenizer.code_dim, num_codes=16384)
    tiny_backbone.visual_tokenizer = tokenizer
    began = time.process_time()
    tiny_backbone.add_visual_tokens()
    tiny_backbone.save(tmp_path / "a")
    again = Backbone(str(tmp_path / "a"))
    assert again.encoder.visual == tiny_backbone.encoder.visual and again.encoder.visual.num_codes == 16384
    assert time.process_time() - began < 10


def test_on_the_meta_device_shapes_are_the_same(tiny_path):
    with torch.device("meta"):
        backbone = Backbone(str(tiny_path), fresh=PARTS)
        backbone.visual_tokenizer = tokenizer_for()
        backbone.add_visual_tokens()
    assert backbone.head.weight.is_meta and backbone.head.weight.shape == (199 + 2 + CODES, 32)


@pytest.mark.parametrize("discrete", [False, True])
def test_everything_is_saved_and_read_again(tiny_backbone, examples, tmp_path, discrete):
    backbone = with_tokens(tiny_backbone, learned, discrete=discrete)
    backbone.save(tmp_path / "a")
    again = Backbone(str(tmp_path / "a")).eval()
    assert again.encoder.visual == backbone.encoder.visual
    state = backbone.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(each, state[name]) for name, each in again.state_dict().items())
    tokens, prompts = encoded(again, examples), prompts_of(again, examples)
    assert torch.equal(tokens.input_ids, encoded(backbone, examples).input_ids)
    assert torch.equal(again.hidden(tokens), backbone.hidden(tokens))
    assert torch.equal(again.draw(prompts, seed=1).pixels, backbone.draw(prompts, seed=1).pixels)
    assert all(weight.requires_grad for weight in again.visual_tokenizer.parameters())
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "a")
    assert torch.equal(plain.lm_head.weight, backbone.head.weight)
    assert AutoTokenizer.from_pretrained(tmp_path / "a").convert_tokens_to_ids("<visual_0>") == 201
    state = torch.get_rng_state()
    Backbone(str(tmp_path / "a"))
    assert torch.equal(state, torch.get_rng_state())


def test_the_tokenizer_is_at_least_in_float32(tiny_backbone, tmp_path):
    with_tokens(tiny_backbone).save(tmp_path / "a", dtype="bfloat16")
    for dtype, own in (("bfloat16", torch.float32), ("float64", torch.float64)):
        again = Backbone(str(tmp_path / "a"), dtype=dtype)
        assert {each.dtype for each in again.visual_tokenizer.parameters()} == {own}
        assert again.head.weight.dtype == getattr(torch, dtype)


def test_half_precision_reads_and_draws(tiny_backbone, examples, tmp_path):
    with_tokens(tiny_backbone, learned).save(tmp_path / "a")
    backbone = Backbone(str(tmp_path / "a"), dtype="bfloat16").eval()
    tokens = encoded(backbone, examples)
    assert backbone.hidden(tokens).dtype == torch.bfloat16 and backbone.hidden(tokens).isfinite().all()
    assert backbone.draw(prompts_of(backbone, examples), seed=0).pixels.isfinite().all()


@pytest.mark.parametrize("before", [True, False])  # whether the tokens were there when the model was saved before
def test_adapters_beside_a_tokenizer_are_saved_with_it(tiny_backbone, examples, tmp_path, before):
    backbone = with_tokens(tiny_backbone, learned)
    if before:
        backbone.save(tmp_path / "a")
        backbone = Backbone(str(tmp_path / "a")).eval()
    LoRA(rank=2, parts=["language_model"], train=["projector"]).apply(backbone)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight)
    backbone.eval().save(tmp_path / "b")
    again, tokens = Backbone(str(tmp_path / "b")).eval(), encoded(backbone, examples)
    assert again.encoder.visual == backbone.encoder.visual
    torch.testing.assert_close(again.hidden(tokens), backbone.hidden(tokens), rtol=0, atol=0)


def test_branches_of_visual_tokens_see_the_rows_that_are_kept(exact, examples):
    backbone = with_tokens(exact, learned)
    PLoRA(ranks={"visual": 2}).apply(backbone)
    with torch.no_grad():
        for name, weight in backbone.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight)
    tokens, seen = encoded(backbone, examples), []
    short, _ = dynamic.shortened(tokens, dynamic.read(backbone, tokens), backbone.encoder.pad_id)
    hook = backbone.model.get_decoder().register_forward_pre_hook(
        lambda *_: seen.append(backbone.model._plora_tokens.now.mask)
    )
    backbone.hidden(tokens)
    hook.remove()
    assert torch.equal(seen[0], short.image_mask) and 0 < short.image_mask.sum() < tokens.image_mask.sum()
    assert len(backbone.generate(prompts_of(backbone, examples), max_new_tokens=2)) == 3
    assert len(backbone.draw(prompts_of(backbone, examples), max_new_tokens=3).counts) == 3


@pytest.fixture
def exact(tiny_path):
    return Backbone(str(tiny_path), dtype="float64")


def test_adapters_do_not_grow(tiny_backbone):
    LoRA(rank=2, parts=["language_model"]).apply(tiny_backbone)
    tiny_backbone.visual_tokenizer = tokenizer_for()
    with pytest.raises(InputError, match="adapters, which fit no larger vocabulary"):
        tiny_backbone.add_visual_tokens()


def test_codes_are_needed_for_tokens(tiny_backbone):
    with pytest.raises(InputError, match="needs a visual tokenizer with codes"):
        tiny_backbone.add_visual_tokens()


def test_a_copy_reads_and_keeps_apart(tiny_backbone, examples):
    backbone = with_tokens(tiny_backbone, learned)
    tokens = encoded(backbone, examples)
    other, hidden = copy.deepcopy(backbone), backbone.hidden(tokens)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.zero_()
    assert torch.equal(other.hidden(tokens), hidden)


def test_a_picture_that_would_be_cut_is_refused_with_its_end(tiny_path, examples):
    backbone = with_tokens(Backbone(str(tiny_path)))
    turns = encoded(backbone, examples).input_ids[0].tolist()
    backbone.encoder.max_length = end = turns.index(backbone.encoder.visual.end)  # all patches, but not the end
    with pytest.raises(InputError, match=f"reach to {end + 1}"):
        encoded(backbone, examples[:3])


@pytest.mark.parametrize("family", ["Gemma3", "PaliGemma", "Qwen2-VL", "Qwen3-VL"])
def test_other_families_are_refused_by_name(family):
    backbone = make(family)
    with pytest.raises(InputError, match=f"{type(backbone.model).__name__}, cannot read some of a picture's patches"):
        backbone.visual_tokenizer = tokenizer_for()


def with_siglip(folder, tiny_path):
    """A LLaVA whose vision tower is SigLIP's, which has no feature but those of patches."""
    lab = AutoConfig.from_pretrained(tiny_path)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**shape, image_size=48, patch_size=8, vision_use_head=False),
        text_config=lab.text_config,
        image_token_index=lab.image_token_index,
        vision_feature_layer=[-2, -1],
        vision_feature_select_strategy="full",
    )
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(tiny_path)
    processor.num_additional_image_tokens, processor.vision_feature_select_strategy = 0, "full"
    processor.save_pretrained(folder)
    return Backbone(str(folder))


def test_another_tower_and_features_of_two_layers(tiny_path, tmp_path, examples):
    backbone = with_siglip(tmp_path / "siglip", tiny_path)
    tokens = encoded(backbone, examples)
    assert backbone.patch_features(tokens).shape == (4, PATCHES, 64)
    with_tokens(backbone, learned, dim=64)
    tokens = encoded(backbone, examples)
    assert backbone.hidden(tokens).isfinite().all()
    assert len(backbone.generate(prompts_of(backbone, examples), max_new_tokens=2)) == 3


def test_a_projector_that_mixes_patches_is_refused(tiny_backbone):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, features):
            return self.linear(features) + features.cumsum(1)

    tiny_backbone.model.model.multi_modal_projector = Mixing()
    with pytest.raises(InputError, match="does not map patch by patch"):
        tiny_backbone.visual_tokenizer = tokenizer_for()


def test_states_are_named_alike_whatever_came_first(tiny_backbone, tmp_path):
    keys = set(tiny_backbone.state_dict())
    with_tokens(tiny_backbone)
    assert {key for key in tiny_backbone.state_dict() if not key.startswith("visual_tokenizer.")} == keys
    tiny_backbone.save(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "visual_tokenizer" / "config.json").read_text())
    assert config["split"] and set(Backbone(str(tmp_path / "a")).state_dict()) == set(tiny_backbone.state_dict())


def test_words_for_codes_without_their_tokenizer_are_refused(tiny_backbone, tmp_path):
    with_tokens(tiny_backbone).save(tmp_path / "saved")
    assert Backbone(str(tmp_path / "saved")).encoder.visual is not None
    shutil.rmtree(tmp_path / "saved" / "visual_tokenizer")
    with pytest.raises(InputError, match=f"words for {CODES} visual codes, but .* is missing; put visual_tokenizer/"):
        Backbone(str(tmp_path / "saved"))
    with torch.device("meta"), pytest.raises(InputError, match="is missing"):
        Backbone(str(tmp_path / "saved"), fresh=PARTS)
