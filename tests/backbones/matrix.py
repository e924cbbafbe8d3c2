"""The matrix of objectives and families: what runs, and what refuses with which words."""

from dataclasses import replace
from functools import partial

import torch
from PIL import Image
from shipped import MAKERS

from alignlab import InputError
from alignlab.backbones import Backbone, open_backbone
from alignlab.backbones.tiny import give_tokenizer
from alignlab.data import Scenes
from alignlab.objectives import (
    Emu,
)

OBJECTIVES = {**MAKERS, "Emu": partial(Emu, num_tokens=4)}
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


def outcome(name, path, text_tower, examples):
    """Train a step, write and embed: None, or why that is refused.

    Args:
        text_tower: Beside the vision tower of ``path``, for the objective that needs one.
    """
    torch.manual_seed(0)
    try:
        backbone = open_backbone(str(path), text_tower=str(text_tower) if name == "LLM2CLIP" else None)
        if name == "LaVIT" and isinstance(backbone, Backbone):
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


@torch.no_grad()
def savings(path, examples):
    """Whether pictures' features are shared, pictures left out and prompts read once; None of a dual encoder."""
    backbone = open_backbone(str(path)).eval()
    if not isinstance(backbone, Backbone):
        return None
    batch = backbone.encoder.batch(examples, ("conversation", "rejected"))
    features = backbone.features(batch.conversation)
    blind = backbone.without_images(batch.conversation, features=features)
    answers = backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
    return features is not None, not blind.image_mask.any(), len(answers.sequences) == 1


SAVINGS = {
    "pictures encoded once": "Its model takes no features in place of pictures, so each pass encodes them",
    "pictures left out": "Its decoder counts places, so pictures are masked in passes without them",
    "prompts read once": "Its decoder looks both ways within prompts or pictures, so each answer has its own pass",
}
"""What saves work where it is exact, and why it is not done elsewhere."""


def _saved(kept, why, notes):
    if not kept and why not in notes:
        notes.append(why)
    return kept if kept == "-" else "yes" if kept else f"({notes.index(why) + 1})"


def table(outcomes, saved):
    """The matrix in Markdown: objectives with the same column together, with a note for what is refused.

    Args:
        outcomes: Family -> objective -> ``outcome``, with no path or name of a class in it.
        saved: Family -> ``savings``.
    """
    columns = {}
    for name in OBJECTIVES:
        columns.setdefault(tuple(each[name] for each in outcomes.values()), []).append(name)
    notes = list(dict.fromkeys(each for column in columns for each in column if each is not None))
    head = ["", *(", ".join(names) for names in columns.values()), *SAVINGS]
    lines = [head, ["---"] * len(head)]
    for row, family in enumerate(outcomes):
        cells = ["yes" if column[row] is None else f"({notes.index(column[row]) + 1})" for column in columns]
        kept = zip(SAVINGS.values(), saved[family] or ["-"] * len(SAVINGS), strict=True)
        lines.append([family, *cells, *(_saved(each, why, notes) for why, each in kept)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text + "\n\n" + "\n".join(f"{place}. {note}" for place, note in enumerate(notes, start=1)) + "\n"
