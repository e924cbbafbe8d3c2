"""tokenizing: how the training of a visual tokenizer begins: with which tokenizer, and what is known of pictures."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.backbones.patches import check_patchwise
from alignlab.errors import InputError
from alignlab.modules import Quantizer, Selection, VisualTokenizer

if TYPE_CHECKING:
    from alignlab.objectives.lavittokenizer import LaVITTokenizer


def make_tokenizer(
    backbone: Backbone, selection: Callable[[int], Selection], form: Mapping[str, Any]
) -> VisualTokenizer:
    """Give a backbone a new tokenizer without a quantizer, of this form.

    Raises:
        InputError: The backbone's pictures can have none.
    """
    num_patches, dim = check_patchwise(backbone)
    backbone.visual_tokenizer = VisualTokenizer(dim, num_patches, selection=selection, quantizer=None, **form)
    return backbone.visual_tokenizer


def continue_tokenizer(
    backbone: Backbone, selection: Callable[[int], Selection], form: Mapping[str, Any]
) -> VisualTokenizer:
    """The tokenizer that a backbone has.

    Raises:
        InputError: It is of another kind or form, or has another selection.
    """
    tokenizer = backbone.visual_tokenizer
    if not isinstance(tokenizer, VisualTokenizer):
        raise InputError(
            f"LaVITTokenizer continues a VisualTokenizer, but {backbone.path} has a {type(tokenizer).__name__}; "
            "begin with a backbone that has none"
        )
    if other := [name for name, value in form.items() if tokenizer.settings[name] != value]:
        raise InputError(
            f"LaVITTokenizer continues a tokenizer whose {other[0]} is {tokenizer.settings[other[0]]}, not "
            f"{form[other[0]]}; a tokenizer keeps its form through both phases"
        )
    asked, there = selection(tokenizer.dim), tokenizer.selection
    if (type(asked), asked.settings) != (type(there), there.settings):
        raise InputError(
            f"LaVITTokenizer continues a tokenizer whose selection is {_told(there)}, not {_told(asked)}; name the "
            "same one, or begin with a backbone that has none"
        )
    return tokenizer


def _told(selection: Selection) -> str:
    return f"{type(selection).__name__}({', '.join(f'{name}={value}' for name, value in selection.settings.items())})"


def check_same(quantizer: Quantizer, asked: Quantizer | None) -> None:
    """Raise InputError unless the quantizer that is asked for is like the one that there is."""
    if asked is None or (type(asked), asked.settings) != (type(quantizer), quantizer.settings):
        raise InputError(
            f"LaVITTokenizer continues a tokenizer whose quantizer is {quantizer}, not {asked}; name the same one, or "
            "begin with a tokenizer that has none"
        )


def some_rows(objective: "LaVITTokenizer", trainer: Trainer, look: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """So many rows at least of what ``look`` finds in features of training pictures; in each process its share."""
    data, encoder = trainer.datamodule, objective.backbone.encoder
    examples, size = data.readable("train"), data.batch_size
    found = []
    for start in range(trainer.global_rank * size, len(examples), trainer.world_size * size):
        part = [examples[index] for index in range(start, min(start + size, len(examples)))]
        chat = encoder.batch(part, objective.requires).to(objective.backbone.device).conversation
        found.append(look(objective.features(chat)).flatten(0, -2))
        if sum(map(len, found)) * trainer.world_size >= count:
            break
    if not found:  # there are fewer batches than processes
        tokenizer = objective.tokenizer
        nothing = tokenizer.decoder.queries.new_zeros(0, tokenizer.num_patches, tokenizer.dim)
        found.append(look(nothing).flatten(0, -2))
    return torch.cat(found)
