"""The matrix of objectives and families: what runs, and what refuses with which words."""

from dataclasses import replace
from functools import partial

import torch
from PIL import Image

from alignlab import InputError
from alignlab.backbones import Backbone, open_backbone
from alignlab.backbones.tiny import give_tokenizer
from alignlab.data import Scenes
from alignlab.modules import VectorQuantizer
from alignlab.objectives import (
    CAL,
    CLIP,
    LLM2CLIP,
    MLE,
    Emu,
    InfoNCE,
    LaVIT,
    LaVITTokenizer,
    LLM2CLIPText,
    Mixture,
    PLoRA,
    SeVa,
    SigLIP,
    UniME,
    UniMEDistillation,
)

OBJECTIVES = {
    "MLE": MLE,
    "CAL": CAL,
    "PLoRA": partial(PLoRA, rank=4, dropout=0.0),
    "SeVa": SeVa,
    "InfoNCE": InfoNCE,
    "UniME": UniME,
    "UniMEDistillation": UniMEDistillation,
    "LLM2CLIPText": LLM2CLIPText,
    "CLIP": CLIP,
    "SigLIP": SigLIP,
    "LLM2CLIP": LLM2CLIP,
    "LaVITTokenizer": partial(
        LaVITTokenizer,
        quantizer=partial(VectorQuantizer, num_codes=16),
        depth=1,
        num_heads=4,
        mlp_ratio=1.5,
        code_dim=4,
    ),
    "LaVIT": LaVIT,
    "Emu": partial(Emu, num_tokens=4),
    "Mixture": partial(Mixture, parts={"likelihood": MLE, "contrast": InfoNCE}),
}
SIZES = (48, 48), (64, 32), (30, 60)


def shown():
    """Three examples of the lab whose pictures are of three sizes."""
    split = Scenes(num_train=64).examples("train")
    return [resized(split[index], size) for index, size in enumerate(SIZES)]


def resized(example, size):
    def content(parts):
        return tuple(part.resize(size) if isinstance(part, Image.Image) else part for part in parts)

    turns = tuple(replace(turn, content=content(turn.content)) for turn in example.conversation)
    return replace(
        example,
        conversation=turns,
        query=content(example.query),
        target=content(example.target),
        negatives=tuple(map(content, example.negatives)),
    )


def outcome(name, path, examples):
    """Train a step, write and embed: None, or why that is refused."""
    torch.manual_seed(0)
    try:
        backbone = open_backbone(str(path), text_tower=str(path) if name == "LLM2CLIP" else None)
        if name == "LaVIT":
            give_tokenizer(backbone)
        objective = OBJECTIVES[name](backbone)
        backbone.encoder.check(objective.requires, who=name)
    except InputError as error:
        return str(error)
    train(objective, examples)
    use(backbone.eval(), examples)
    return None


def train(objective, examples):
    batch = objective.backbone.encoder.batch(examples, objective.requires)
    loss = objective.loss(batch).mean
    loss.backward()
    gradients = [each.grad for each in objective.parameters() if each.requires_grad and each.grad is not None]
    assert loss.isfinite() and any(gradient.any() for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients)


@torch.no_grad()
def use(backbone, examples):
    vectors = backbone.embed(backbone.encoder.contents([example.query for example in examples]))
    assert vectors.isfinite().all() and not torch.allclose(vectors[0], vectors[1])
    if isinstance(backbone, Backbone):
        prompts = backbone.encoder.prompts([example.conversation[:1] for example in examples])
        answers = backbone.generate(prompts, max_new_tokens=2)
        assert len(answers) == len(examples) and any(answers)
