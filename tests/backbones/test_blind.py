"""The pass without pictures: what it leaves out changes nothing, in several families."""

from dataclasses import replace

import pytest
import torch
from families import CONFIGS, IMAGE, PATCHES, make, pictures, sequences

from alignlab.batch import IGNORE, Tokens
from alignlab.functional import supervised

SHORT = sorted(set(CONFIGS) - {"Mistral, sliding"})


def reference(backbone, tokens, hidden):
    """Logits of one pass of the plain model with the positions' keys masked, at the positions it would have had."""
    seen = {}
    decoder = backbone.model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, named: seen.update(named), with_kwargs=True)
    backbone.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **tokens.vision)
    hook.remove()
    mask, positions = tokens.attention_mask.masked_fill(hidden, 0), seen["position_ids"]
    if positions is None:
        positions = torch.arange(mask.shape[1])[None]
    return backbone.model(
        input_ids=tokens.input_ids, attention_mask=mask, position_ids=positions, **tokens.vision
    ).logits


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
    expected = at_labels(reference(backbone, tokens, tokens.image_mask), tokens.labels)
    seeing = at_labels(backbone(tokens).logits, tokens.labels)
    # The pictures matter to every label but those of the last row.
    assert (expected - seeing)[:-2].abs().min() > 1e-3 and torch.equal(expected[-2:], seeing[-2:])
    for whole in (False, True):
        blind = backbone.without_images(tokens, features=backbone.features(tokens), whole=whole)
        kept = supervised(blind.labels)
        logits = backbone.label_logits(backbone.hidden(blind)[:, :-1][kept], blind.labels[:, 1:][kept])
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
def test_leaving_out_would_be_wrong_where_places_are_counted():
    backbone = make("Mistral, sliding").eval()
    tokens = sequences(backbone)
    exact = backbone.without_images(tokens, features=backbone.features(tokens))
    backbone.model.config.text_config.sliding_window = None  # what decides, not what the layers do
    short = backbone.without_images(tokens, features=backbone.features(tokens))
    backbone.model.config.text_config.sliding_window = 5
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
    expected = at_labels(reference(backbone, tokens, hidden), tokens.labels)
    blind = backbone.without_images(tokens, features=backbone.features(tokens), hidden=hidden)
    kept = supervised(blind.labels)
    logits = backbone.label_logits(backbone.hidden(blind)[:, :-1][kept], blind.labels[:, 1:][kept])
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
