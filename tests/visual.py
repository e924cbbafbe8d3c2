"""Backbones with small visual tokenizers, and conversations with pictures."""

import copy
from dataclasses import replace

import torch
from torch import nn

from alignlab.batch import IGNORE, Turn
from alignlab.data import Scenes
from alignlab.modules import LearnedSelection, PatchPixels, RandomSelection, VectorQuantizer, VisualTokenizer

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
    chosen = backbone.eval().visual_tokenizer.selection
    if isinstance(chosen, LearnedSelection):  # half of the patches, more of some pictures than of others
        shown = [(Turn("user", (example.images[0], "")),) for example in Scenes().examples("val")[:8]]
        with torch.no_grad():
            chosen.calibrate(chosen.log_probs(backbone.patch_features(backbone.encoder.prompts(shown))), 0.5)
    return backbone


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


def prompts_of(backbone, examples):
    turns = [conversation[:1] for _, conversation in turns_of(examples)]
    return backbone.encoder.prompts(turns)


def lengthened(tokens, *ids):
    more = torch.stack([*ids]).view(1, -1)
    return replace(
        tokens,
        input_ids=torch.cat([tokens.input_ids, more], 1),
        attention_mask=torch.cat([tokens.attention_mask, torch.ones_like(more)], 1),
        labels=torch.cat([tokens.labels, torch.full_like(more, IGNORE)], 1),
        image_mask=torch.cat([tokens.image_mask, torch.zeros_like(more, dtype=torch.bool)], 1),
    )
