"""The pass without pictures: what it leaves out changes nothing, in several families."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import CONFIGS, IMAGE, PATCHES, make, masked_logits, pictures, sequences
from transformers import (
    GPTNeoConfig,
    GPTNeoModel,
    LlamaModel,
    MptConfig,
    MptModel,
    Qwen3NextConfig,
)

from alignlab.backbones.blind import horizon
from alignlab.batch import IGNORE, Tokens
from alignlab.errors import InputError
from alignlab.functional import supervised

SHORT = sorted(set(CONFIGS) - {"Mistral, sliding"})


def at_labels(logits, labels):
    kept = supervised(labels)
    return logits[:, :-1][kept].gather(-1, labels[:, 1:][kept][:, None])[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_leaving_out_equals_masking(family, direct, side, attention):
    backbone = make(family, attention=attention).eval()
    tokens = sequences(backbone, side=side, direct=direct)
    expected = at_labels(masked_logits(backbone, tokens, tokens.image_mask), tokens.labels)
    seeing = at_labels(backbone(tokens).logits, tokens.labels)
    # The pictures matter to every label but those of the last row.
    assert (expected - seeing)[:-2].abs().min() > 1e-3 and torch.equal(expected[-2:], seeing[-2:])
    for whole in (False, True):
        blind = backbone.without_images(tokens, features=backbone.features(tokens), whole=whole)
        kept = supervised(blind.labels)
        logits = backbone.label_logits(backbone.label_states(blind), blind.labels[:, 1:][kept])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(blind.labels[:, 1:][kept], tokens.labels[:, 1:][supervised(tokens.labels)])


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_pictures_are_left_out_where_that_is_exact(family):
    backbone = make(family).eval()
    for direct in (False, True):
        tokens = sequences(backbone, direct=direct)
        blind = backbone.without_images(tokens, features=backbone.features(tokens))
        # Whose features are those of a place is not known of a family whose tower speaks to several layers.
        dense = family == "Mistral, sliding" or (family == "Qwen3-VL" and direct)
        assert blind.input_ids.shape[1] == (tokens.input_ids.shape[1] if dense else 10)
        assert bool(blind.image_mask.any()) == (dense or direct)


@torch.no_grad()
def test_decoders_that_count_places_are_masked():
    reaches = {name: horizon(make(name).model.get_decoder()) for name in ("Llama", "Mistral, sliding", "Qwen2-VL")}
    assert reaches == {"Llama": None, "Mistral, sliding": 5, "Qwen2-VL": None}
    assert horizon(MptModel(MptConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=9))) == 0  # by ALiBi
    assert horizon(GPTNeoModel(GPTNeoConfig(vocab_size=8, num_layers=2, hidden_size=8, num_heads=2,
                                            attention_types=[[["global", "local"], 1]]))) == 0  # fmt: skip
    text = Qwen3NextConfig(vocab_size=9, num_hidden_layers=2, hidden_size=8, num_experts=2)
    assert "linear_attention" in text.layer_types
    assert horizon(SimpleNamespace(config=text, forward=LlamaModel.forward)) == 0


@torch.no_grad()
def test_leaving_out_would_be_wrong_where_places_are_counted():
    backbone = make("Mistral, sliding").eval()
    tokens = sequences(backbone)
    exact = backbone.without_images(tokens, features=backbone.features(tokens))
    backbone.model.get_decoder().config.sliding_window = None  # what decides, not what the layers do
    short = backbone.without_images(tokens, features=backbone.features(tokens))
    backbone.model.get_decoder().config.sliding_window = 5
    assert short.input_ids.shape[1] < exact.input_ids.shape[1]
    states = [backbone.hidden(blind)[:, :-1][supervised(blind.labels)] for blind in (short, exact)]
    assert (states[0] - states[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("family", SHORT)
@pytest.mark.parametrize("side", ["right", "left"])
def test_only_some_of_the_patches_can_be_hidden(family, side):
    backbone = make(family).eval()
    tokens = sequences(backbone, side=side)
    generator = torch.Generator().manual_seed(0)
    hidden = tokens.image_mask & (torch.rand(tokens.image_mask.shape, generator=generator) < 0.5)
    expected = at_labels(masked_logits(backbone, tokens, hidden), tokens.labels)
    blind = backbone.without_images(tokens, features=backbone.features(tokens), hidden=hidden)
    kept = supervised(blind.labels)
    logits = backbone.label_logits(backbone.label_states(blind), blind.labels[:, 1:][kept])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_texts_alone_and_rows_without_labels(family):
    backbone = make(family).eval()
    texts = sequences(backbone, text_only=True)
    assert backbone.features(texts) is None
    blind, there = backbone.without_images(texts), texts.attention_mask.bool()
    torch.testing.assert_close(backbone.hidden(blind)[blind.attention_mask.bool()], backbone.hidden(texts)[there])
    tokens = sequences(backbone)
    tokens = replace(tokens, labels=torch.full_like(tokens.labels, IGNORE))
    blind = backbone.without_images(tokens, features=backbone.features(tokens))
    assert not supervised(blind.labels).any() and backbone.hidden(blind).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_label_that_nothing_but_a_picture_precedes_has_a_finite_logit(attention):
    backbone = make("Llama", attention=attention).eval()
    ids = torch.tensor([[IMAGE] * PATCHES + [9, 10], [5, 6, 7, 9, 10, 0]])
    labels = torch.where((ids == 9) | (ids == 10), ids, IGNORE)
    vision = pictures(backbone.model, ids == IMAGE)
    tokens = Tokens(ids, (ids != 0).long(), labels, ids == IMAGE, vision, torch.tensor([1, 0]))
    for whole in (False, True):
        blind = backbone.without_images(tokens, features=backbone.features(tokens), whole=whole)
        assert backbone.hidden(blind).isfinite().all()


def test_the_logits_of_labels_are_those_of_the_head():
    backbone = make("Llama")
    states, ids = torch.randn(5, 32), torch.randint(40, (5,))
    head = backbone.model.lm_head
    torch.testing.assert_close(backbone.label_logits(states, ids), head(states).gather(1, ids[:, None])[:, 0])
    biased = torch.nn.Linear(32, 40)
    backbone.model.set_output_embeddings(biased)
    torch.testing.assert_close(backbone.label_logits(states, ids), biased(states).gather(1, ids[:, None])[:, 0])
    # One that is more than a matrix, as that of an adapter, is asked.
    backbone.model.set_output_embeddings(torch.nn.Sequential(biased, torch.nn.Tanh()))
    torch.testing.assert_close(backbone.label_logits(states, ids), biased(states).tanh().gather(1, ids[:, None])[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_logits_are_those_of_the_family(family):
    backbone = make(family).eval()
    tokens = sequences(backbone)
    official = backbone.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **tokens.vision).logits
    torch.testing.assert_close(backbone(tokens, features=backbone.features(tokens)).logits, official)


@torch.no_grad()
def test_pictures_of_several_sizes_share_their_features():
    backbone = make("Pixtral").eval()
    ids = torch.tensor([[5, *[IMAGE] * 4, 7, 9], [5, *[IMAGE] * 2, 7, 9, 0, 0]])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels[1, :, :, 8:] = 0  # its picture is half as wide
    vision = {"pixel_values": pixels, "image_sizes": torch.tensor([[16, 16], [16, 8]])}
    labels = torch.where(ids == 9, ids, IGNORE)
    tokens = Tokens(ids, (ids != 0).long(), labels, ids == IMAGE, vision, torch.tensor([1, 1]))
    features = backbone.features(tokens)
    torch.testing.assert_close(backbone(tokens, features=features).logits, backbone(tokens).logits)
    blind = backbone.without_images(tokens, features=features)
    logits = backbone.label_logits(backbone.label_states(blind), torch.tensor([9, 9]))
    torch.testing.assert_close(logits, at_labels(masked_logits(backbone, tokens, tokens.image_mask), labels))


def test_logits_that_are_more_than_the_heads_are_refused():
    backbone = make("Llama")
    head, modes = backbone.model.lm_head, [module.training for module in backbone.modules()]
    backbone.model.forward = lambda **named: SimpleNamespace(
        logits=head(backbone.model.base_model(**named).last_hidden_state) / 4
    )
    with pytest.raises(InputError, match="LlavaForConditionalGeneration of tiny gives other logits than its head"):
        backbone(sequences(backbone))
    assert [module.training for module in backbone.modules()] == modes
