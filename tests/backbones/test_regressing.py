"""Pictures drawn as features: the sequences to be trained on, and a loop without a cache beside the one with it."""

import pytest
import torch
from adapting import disturb
from torch import nn
from visual import learned, prompts_of, tokenizer_for, with_tokens

from alignlab import InputError
from alignlab.adapters import PLoRA
from alignlab.backbones import Backbone, dynamic
from alignlab.backbones.patches import projector_of
from alignlab.backbones.tiny import make_exact
from alignlab.batch import IGNORE, Turn
from alignlab.modules import ContinuousTokenizer, PatchPixels

DIM, PATCHES = 32, 36
ACROSS = {4: 2, 9: 3, 36: 6}


def attach(backbone, num_tokens=PATCHES):
    torch.manual_seed(3)
    made = ContinuousTokenizer(DIM, PATCHES, 32, num_tokens=num_tokens)
    across = ACROSS[num_tokens]
    made.pixel_decoder = PatchPixels(DIM, grid=(across, across), patch_size=48 // across, hidden=8)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.3)
    backbone.visual_tokenizer = made.to(backbone.model.dtype)
    return backbone.eval()


@pytest.fixture
def exact(tiny_backbone64):
    make_exact(tiny_backbone64.model)
    return tiny_backbone64


def asked(backbone):
    """Prompts of different lengths."""
    turns = [(Turn("user", (text,)),) for text in ("draw", "a red circle above a small blue square", "hello")]
    return backbone.encoder.prompts(turns)


@pytest.mark.parametrize("side", ["left", "right"])
def test_placeholders_stand_behind_the_prompts(tiny_backbone, side):
    backbone = attach(tiny_backbone, 9)
    backbone.encoder.padding_side = side
    prompts = backbone.encoder.contents([("draw",), ("a red circle above a small blue square",), ("hello",)])
    assert (prompts.attention_mask[0, 0] == 0) == (side == "left")
    tokens = backbone.feature_sequences(prompts, drop=torch.tensor([False, False, True]))
    shown = [backbone.encoder.image_token_id] * PATCHES
    for row in range(3):
        said = prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist()
        real = tokens.attention_mask[row].bool()
        assert tokens.input_ids[row][real].tolist() == (said if row < 2 else said[-1:]) + shown
        assert real.int().diff().min() >= 0  # padding on the left alone
        assert (tokens.input_ids[row][~real] == backbone.encoder.pad_id).all()
        assert tokens.image_mask[row].tolist() == [False] * (len(real) - PATCHES) + [True] * PATCHES
    assert (tokens.labels == IGNORE).all() and tokens.num_images.tolist() == [1, 1, 1]


def test_prompts_with_pictures_are_refused(tiny_backbone, examples):
    backbone = attach(tiny_backbone)
    with pytest.raises(InputError, match="these prompts have pictures themselves"):
        backbone.feature_sequences(prompts_of(backbone, examples), drop=torch.zeros(3, dtype=torch.bool))


def by_hand(backbone, prompts, num_tokens, *, telling=False):
    """The features drawn after each prompt alone, all states computed anew for each.

    Args:
        telling: Say of what is drawn that it is visual, of prompts without pictures.
    """
    projector, embed = projector_of(backbone), backbone.model.get_input_embeddings()
    drawn = []
    for row in range(len(prompts)):
        tokens = prompts.select(torch.tensor([row]))
        rows = embed(tokens.input_ids)
        if tokens.image_mask.any():
            pictures = backbone.patch_features(tokens)
            across, side = ACROSS[num_tokens], 6 // ACROSS[num_tokens]
            squares = pictures.view(len(pictures), across, side, across, side, DIM).mean((2, 4))
            seen = iter(projector(squares.view(len(pictures), num_tokens, DIM)).unbind(0))
            parts, place = [], 0
            while place < rows.shape[1]:
                is_shown = bool(tokens.image_mask[0, place])
                parts.append(next(seen) if is_shown else rows[0, place : place + 1])
                place += PATCHES if is_shown else 1
            rows = torch.cat(parts)[None]
        found = []
        words = rows.shape[1]
        for _ in range(num_tokens):
            said = {"visual_token_mask": torch.arange(rows.shape[1])[None] >= words} if telling else {}
            state = backbone.model.base_model(inputs_embeds=rows, use_cache=False, **said).last_hidden_state[0, -1]
            found.append(backbone.visual_tokenizer.predict(state))
            rows = torch.cat([rows, projector(found[-1][None, None])], 1)
        drawn.append(torch.stack(found))
    return torch.stack(drawn)


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("num_tokens", [36, 9, 4])
@torch.no_grad()
def test_a_picture_is_that_of_a_loop_without_cache(exact, examples, num_tokens, pictures):
    backbone = attach(exact, num_tokens)
    prompts = prompts_of(backbone, examples) if pictures else asked(backbone)
    drawing = backbone.draw(prompts)
    assert drawing.codes is None and drawing.counts.tolist() == [num_tokens] * 3
    expected = backbone.visual_tokenizer.pixel_decoder(by_hand(backbone, prompts, num_tokens))
    assert (expected[0] - expected[1]).abs().max() > 1e-4  # pictures follow their prompts
    torch.testing.assert_close(drawing.pixels, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_what_is_drawn_is_visual_to_adapters(exact):
    backbone = attach(exact, 9)
    PLoRA(ranks={"visual": 4}).apply(backbone)
    prompts = asked(backbone)
    before = backbone.draw(prompts).pixels
    disturb(backbone)
    drawing = backbone.draw(prompts)
    expected = backbone.visual_tokenizer.pixel_decoder(by_hand(backbone, prompts, 9, telling=True))
    torch.testing.assert_close(drawing.pixels, expected, rtol=1e-9, atol=1e-9)
    assert (drawing.pixels - before).abs().max() > 1e-4


def test_a_read_of_all_patches_gives_the_states_of_the_model(exact, examples):
    backbone = attach(exact)
    tokens = backbone.encoder.batch(examples[:3], ("conversation",)).conversation
    reading = dynamic.read(backbone, tokens)
    real = tokens.attention_mask.bool()
    torch.testing.assert_close(backbone.hidden(tokens, features=reading)[real], backbone.hidden(tokens)[real])
    assert not dynamic.reads_kept(backbone)


@pytest.mark.parametrize("merged", [False, True])
def test_chosen_pictures_are_read_in_their_order(tiny_backbone64, examples, merged):
    backbone = with_tokens(tiny_backbone64, learned) if merged else attach(tiny_backbone64, 9)
    tokens = backbone.encoder.batch(examples[:3], ("conversation",)).conversation
    reading, order = dynamic.read(backbone, tokens), torch.tensor([2, 0])
    counts = reading.keep.sum(1)
    assert (counts[2] != counts[1]) == merged
    found, expected = dynamic.chosen(reading, order), tokens.select(order)
    torch.testing.assert_close(backbone.hidden(expected, features=found), backbone.hidden(expected))


def test_what_is_saved_draws_the_same(tiny_backbone, tmp_path):
    backbone = attach(tiny_backbone, 9)
    backbone.save(tmp_path / "saved")
    again = Backbone(str(tmp_path / "saved")).eval()
    assert torch.equal(again.draw(asked(again)).pixels, backbone.draw(asked(backbone)).pixels)


def test_what_cannot_be_drawn_or_does_not_fit_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="states of width 32, and the tokenizer predicts features from states of wid"):
        tiny_backbone.visual_tokenizer = ContinuousTokenizer(DIM, PATCHES, 48)
    with pytest.raises(InputError, match="gives 36 patches of width 32"):
        tiny_backbone.visual_tokenizer = ContinuousTokenizer(DIM, 9, 32)
    attach(tiny_backbone).visual_tokenizer.pixel_decoder = None
    with pytest.raises(InputError, match="pixel decoder"):
        tiny_backbone.draw(asked(tiny_backbone))
    tiny_backbone.visual_tokenizer = tokenizer_for()  # codes in place of features
    with pytest.raises(InputError, match="add_visual_tokens"):
        tiny_backbone.draw(asked(tiny_backbone))
