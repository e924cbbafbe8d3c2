"""Tiny random models of several families, with sequences of two rows by hand."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
    PaliGemmaConfig,
    PixtralVisionConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
)

from alignlab.backbones import Backbone
from alignlab.batch import IGNORE, Tokens

IMAGE, VOCABULARY, PATCHES = 1, 40, 4
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SHAPE, "num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "head_dim": 8}
VISION = {**SHAPE, "image_size": 16, "patch_size": 8}
IDS = {"image_token_id": IMAGE}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}


def llava(text, vision=None):
    strategy = "default" if vision is None else "full"  # only CLIP's first feature is none of a patch
    vision = vision or CLIPVisionConfig(**VISION)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
    )


CONFIGS = {
    "Llama": lambda: llava(LlamaConfig(**TEXT)),
    "Qwen2": lambda: llava(Qwen2Config(**TEXT)),
    "Mistral": lambda: llava(MistralConfig(**TEXT, sliding_window=64)),
    "Mistral, sliding": lambda: llava(MistralConfig(**TEXT, sliding_window=5)),
    "Gemma3": lambda: Gemma3Config(
        text_config={**TEXT, "sliding_window": 64, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
        vision_config=VISION,
        mm_tokens_per_image=PATCHES,
        boi_token_index=2,
        eoi_token_index=3,
        image_token_index=IMAGE,
    ),
    "PaliGemma": lambda: PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "projection_dim": 32, "vision_use_head": False},
        text_config={**TEXT, "model_type": "gemma"},
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    ),
    "Pixtral": lambda: llava(LlamaConfig(**TEXT), PixtralVisionConfig(**VISION, head_dim=8)),
    "Qwen2-VL": lambda: Qwen2VLConfig(
        text_config={**TEXT, **ROPE},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
        **IDS,
    ),
    "Qwen3-VL": lambda: Qwen3VLConfig(
        text_config={**TEXT, **ROPE},
        vision_config={
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 4},
            **{"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        },
        **IDS,
    ),
}


class Bare(Backbone):
    """A backbone around a model, without a processor."""

    def __init__(self, model):
        nn.Module.__init__(self)
        self.model, self.path, self.encoder = (
            model,
            "tiny",
            SimpleNamespace(pad_id=0, tokenizer=SimpleNamespace(eos_token_id=None), visual=None),
        )
        self.visual_tokenizer = None


def make(family, *, attention="sdpa"):
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIGS[family](), attn_implementation=attention)
    for parameter in model.parameters():  # random families begin with weights so small that nothing matters
        nn.init.normal_(parameter, std=0.3)
    return Bare(model)


def sequences(backbone, *, side="right", text_only=False, direct=True):
    """Three rows: a picture; two pictures, if ``direct`` each right before a label; none."""
    show, between = [IMAGE] * PATCHES, [] if direct else [([24], False)]
    rows = [
        [([5, 6], False), (show, False), ([7, 8], False), ([9, 10, 11], True), ([12], False), ([13, 14], True)],
        [([5], False), (show, False), *between, ([20], True), (show, False), *between, ([21, 22], True)],
        [([5, 30, 31], False), ([32, 33], True)],
    ]  # fmt: skip
    return tokens_of(backbone, rows[2:] if text_only else rows, side=side)


def pair(backbone, *, side="right", direct=True, answers=(([9, 10, 11], [12]), ([21], [22, 23, 24]), ([33], []))):
    """Three prompts as above, each with two answers: the sequences of both, and how long the prompts are."""
    show, between = [IMAGE] * PATCHES, [] if direct else [24]
    prompts = [[5, 6, *show, 7, 8], [5, *show, *between, 20, *show, *between], [5, 30, 31]]
    sides = [
        tokens_of(
            backbone, [[(p, False), (a, True)] for p, a in zip(prompts, each, strict=True)], side=side, extra=extra
        )
        for extra, each in enumerate(zip(*answers, strict=True), start=1)
    ]
    return *sides, torch.tensor([len(prompt) for prompt in prompts])


def tokens_of(backbone, rows, *, side="right", extra=2):
    """Rows of stretches, each with whether it is trained on."""
    ids = [[token for part, _ in row for token in part] for row in rows]
    labels = [[token if trained else IGNORE for part, trained in row for token in part] for row in rows]
    length = max(map(len, ids)) + extra

    def padded(values, fill):
        return torch.tensor([
            [fill] * (length - len(row)) + row if side == "left" else row + [fill] * (length - len(row))
            for row in values
        ])  # fmt: skip

    input_ids = padded(ids, 0)
    vision = pictures(backbone.model, input_ids == IMAGE)
    mask = padded([[1] * len(row) for row in ids], 0)
    num_images = (input_ids == IMAGE).sum(1) // PATCHES
    return Tokens(input_ids, mask, padded(labels, IGNORE), input_ids == IMAGE, vision, num_images)


def pictures(model, image_mask):
    """What the family's processor returns beside the ids."""
    count, kind = int(image_mask.sum()) // PATCHES, model.config.model_type
    generator = torch.Generator().manual_seed(1)
    if kind.startswith("qwen"):
        vision = {"mm_token_type_ids": image_mask.int()}
        if count:
            vision["image_grid_thw"] = torch.tensor([[1, 4, 4]] * count)
            vision["pixel_values"] = torch.randn(16 * count, 3 * 2 * 4 * 4, generator=generator)
        return vision
    vision = {"token_type_ids": image_mask.long()} if kind == "gemma3" else {}
    if kind == "paligemma":  # what is not answered is looked at both ways
        vision = {"token_type_ids": torch.zeros_like(image_mask, dtype=torch.long)}
    if count:
        if model.config.vision_config.model_type == "pixtral":
            vision["image_sizes"] = torch.full((count, 2), 16)
        vision["pixel_values"] = torch.randn(count, 3, 16, 16, generator=generator)
    return vision


def masked_logits(backbone, tokens, hidden):
    """Logits of one pass of the plain model with the positions' keys masked, at the positions it would have had."""
    seen: dict = {}
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
