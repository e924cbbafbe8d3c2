import copy

import pytest
import torch
from torch import nn

from alignlab import Backbone, InputError
from alignlab.backbones import dynamic
from alignlab.backbones.tiny import make_exact
from alignlab.batch import IGNORE, Turn
from alignlab.modules.quantizers import VectorQuantizer
from alignlab.modules.tokenizer import AllPatches, LearnedSelection, PatchPixels, RandomSelection, VisualTokenizer

CODES, PATCHES, DIM = 12, 36, 32
SMALL = {"depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "code_dim": 8}


def tokenizer_for(selection=None, *, split=True, discrete=False, dim=DIM):
    torch.manual_seed(3)
    selection = selection or (lambda dim: RandomSelection(dim, ratio=0.3))
    made = VisualTokenizer(
        dim, PATCHES, selection=selection, quantizer=lambda dim: VectorQuantizer(dim, num_codes=CODES), **SMALL
    )
    made.pixel_decoder = PatchPixels(dim, grid=(6, 6), patch_size=8, hidden=8)
    for name, weight in made.named_parameters():
        if not name.startswith("selection"):  # near to one half, where pictures differ
            nn.init.normal_(weight, std=0.3)
    if split:
        made.split()
    made.discrete = discrete
    return made


def with_tokens(backbone, selection=None, **settings):
    backbone.visual_tokenizer = tokenizer_for(selection, **settings).to(backbone.model.dtype)
    backbone.add_visual_tokens()
    return backbone.eval()


@pytest.fixture
def exact(tiny_backbone64):
    make_exact(tiny_backbone64.model)
    return tiny_backbone64


def learned(dim):
    return LearnedSelection(dim)


def turns_of(examples):
    """A picture; two pictures one after the other and one later; none."""
    first, second, third = (e.query[0] for e in examples[:3])
    return [
        ("one", (Turn("user", (first, "what is there ?")), Turn("assistant", ("a red circle",)))),
        (
            "three",
            (
                Turn("user", (first, second, "which one")),
                Turn("assistant", ("the first",)),
                Turn("user", (third, "and this")),
                Turn("assistant", ("a big blue square",)),
            ),
        ),
        ("none", (Turn("user", ("hello",)), Turn("assistant", ("a small green triangle",)))),
    ]


def encoded(backbone, examples, side="right"):
    encoder = copy.copy(backbone.encoder)
    encoder.padding_side = side
    return encoder.conversations(turns_of(examples))


def by_hand(backbone, tokens):
    """Each row alone: its kept rows projected, or its codes embedded, amid the embeddings of its words."""
    features = backbone.patch_features(tokens)
    tokenizer, embed = backbone.visual_tokenizer, backbone.model.get_input_embeddings()
    pictures = iter(features)
    states = torch.zeros(*tokens.input_ids.shape, embed.weight.shape[1], dtype=features.dtype)
    for row in range(len(tokens)):
        parts, places = [], []
        position = 0
        while position < tokens.input_ids.shape[1]:
            if tokens.image_mask[row, position]:
                picture = next(pictures)[None]
                if tokenizer.discrete:
                    codes, _ = tokenizer.codes(picture)
                    parts += [embed(codes + backbone.encoder.visual.first)]
                    places += range(position, position + len(codes))
                else:
                    inputs = tokenizer.inputs(picture)
                    parts += [backbone.model.model.multi_modal_projector(inputs.rows)]
                    places += [position + int(patch) for patch in inputs.keep[0].nonzero()]
                position += PATCHES
            else:
                if tokens.attention_mask[row, position]:
                    parts += [embed(tokens.input_ids[row, position])[None]]
                    places += [position]
                position += 1
        embedded = torch.cat(parts)[None]
        found = backbone.model.get_decoder()(inputs_embeds=embedded).last_hidden_state[0]
        states[row, places] = found
    return states


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_states_are_those_of_each_row_alone_with_its_kept_patches(exact, examples, side, discrete):
    backbone = with_tokens(exact, learned, discrete=discrete)
    tokens = encoded(backbone, examples, side)
    reading = dynamic.read(backbone, tokens)
    assert reading.keep.sum() < reading.keep.numel() and len(set(reading.keep.sum(1).tolist())) > 1
    kept = dynamic.kept(tokens, reading)
    hidden, expected = backbone.hidden(tokens), by_hand(backbone, tokens)
    torch.testing.assert_close(hidden[kept], expected[kept], rtol=1e-9, atol=1e-9)
    assert hidden[tokens.attention_mask == 0].abs().sum() == 0
    torch.testing.assert_close(backbone.hidden(tokens, features=backbone.features(tokens)), hidden)
