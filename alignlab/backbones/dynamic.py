"""dynamic: sequences in which only the kept patches of each picture stay, as merged rows or as codes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.backbones.patches import encoded, projector_of
from alignlab.batch import IGNORE, Tokens
from alignlab.errors import InputError

if TYPE_CHECKING:
    from alignlab.backbones.backbone import Backbone


@dataclass(frozen=True)
class Reading:
    """What a language model reads of P pictures.

    Args:
        patches: (P, N, C), the vision tower's features.
        keep: (P, N) bool, the placeholders that stay; in the order of the pictures M in all.
        features: Projected rows, (M, D) in all, in the model's own form of pictures' features; None: it reads codes.
        ids: (M,) long, the tokens of codes; None: it reads rows.
    """

    patches: Tensor
    keep: Tensor
    features: Any | None = None
    ids: Tensor | None = None


def reads_kept(backbone: "Backbone") -> bool:
    """Whether pictures are read through the visual tokenizer."""
    return backbone.visual_tokenizer is not None and backbone.visual_tokenizer.is_read


def check_hides(backbone: "Backbone", who: str) -> None:
    """Raise InputError where pictures are read through the visual tokenizer, so that none can be hidden."""
    if reads_kept(backbone):
        raise InputError(
            f"{who}: the backbone of {backbone.path} reads pictures through its visual tokenizer, which drops some of "
            "their patches, so there are none to hide; use one that reads them whole"
        )


def read(backbone: "Backbone", tokens: Tokens) -> Reading:
    """Read the pictures: through the visual tokenizer, then the projector, or as codes.

    Where codes are read, the first placeholders of a picture stay, as many as it has codes, and become the codes' own
    tokens. An adapter that tells visual tokens by the placeholders, as PLoRA does, takes codes for text.

    Raises:
        InputError: Codes are to be read that have no tokens.
    """
    tokenizer, (features, official) = backbone.visual_tokenizer, encoded(backbone, tokens)
    if tokenizer.discrete:
        codes, counts = tokenizer.codes(features)
        keep = torch.arange(features.shape[1], device=counts.device) < counts[:, None]
        return Reading(features, keep, ids=vocabulary_of(backbone).ids(codes))
    inputs, projector = tokenizer.inputs(features), projector_of(backbone)
    rows = projector(inputs.rows.to(next(projector.parameters()).dtype)[None])  # (1, M, D)
    return Reading(features, inputs.keep, features=_formed(rows, official))


def chosen(reading: Reading, pictures: Tensor) -> Reading:
    """What is read of these pictures, (K,) long, in their order, as rows."""
    counts, rows = reading.keep.sum(1).tolist(), reading.features.pooler_output[0]
    parts = rows.split(counts)
    rows = torch.cat([parts[picture] for picture in pictures.tolist()])
    return Reading(reading.patches[pictures], reading.keep[pictures], _formed(rows[None], reading.features))


def vocabulary_of(backbone: "Backbone") -> Any:
    """The ids of visual tokens; InputError where there are none."""
    if backbone.encoder.visual is None:
        raise InputError(f"backbone: {backbone.path} has no tokens for visual codes; call add_visual_tokens first")
    return backbone.encoder.visual


def kept(tokens: Tokens, reading: Reading) -> Tensor:
    """The positions that stay, (B, T) bool: real ones, but for placeholders of dropped patches."""
    return tokens.attention_mask.bool().masked_scatter(tokens.image_mask, reading.keep.flatten())


def shortened(
    tokens: Tokens, reading: Reading, pad_id: int, *, side: Literal["left", "right"] | None = None
) -> tuple[Tokens, Tensor]:
    """Sequences of the positions that stay, one after the other, padded anew.

    Args:
        tokens: B sequences of T tokens.
        reading: Of their pictures.
        pad_id: Of the tokenizer.
        side: Where padding goes; None: where it was.

    Returns:
        Sequences of S tokens, and (B, T) long: where in them each position stands that stays, elsewhere the last one
        before it.
    """
    staying = kept(tokens, reading)
    if side is None:
        side = "right" if bool(tokens.attention_mask[:, 0].all()) else "left"
    left, width = side == "left", int(staying.sum(1).max())
    order = staying.long().argsort(dim=1, descending=not left, stable=True)
    order = order[:, -width:] if left else order[:, :width]
    there = staying.gather(1, order)
    input_ids = tokens.input_ids
    image_mask, vision = tokens.image_mask.gather(1, order) & there, {}
    if reading.ids is not None:
        input_ids = input_ids.masked_scatter(tokens.image_mask & staying, reading.ids)
        image_mask = torch.zeros_like(image_mask)
    else:
        vision["mm_encoder_outputs"] = {"image": reading.features}
    short = Tokens(
        input_ids=input_ids.gather(1, order).masked_fill(~there, pad_id),
        attention_mask=there.to(tokens.attention_mask.dtype),
        labels=tokens.labels.gather(1, order).masked_fill(~there, IGNORE),
        image_mask=image_mask,
        vision=vision,
        num_images=tokens.num_images,
    )
    padding = (~there).sum(1, keepdim=True) if left else 0
    return short, (staying.cumsum(1) - 1).clamp(min=0) + padding


def whole(states: Tensor, tokens: Tokens, reading: Reading, places: Tensor) -> Tensor:
    """States (B, S, D) of the shortened sequences at the positions of the whole ones, (B, T, D).

    Zero at dropped patches and padding. Of dropped patches in a row, the last has the state before them, which is what
    predicts the token that follows.

    Args:
        places: As ``shortened`` gives them.
    """
    staying = kept(tokens, reading)
    real = tokens.attention_mask.bool()
    follows = F.pad(staying[:, 1:] | ~real[:, 1:], (0, 1), value=True)  # what stands next is no dropped patch
    wanted = real & (staying | follows)
    found = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
    return found.masked_fill(~wanted[..., None], 0)


def _formed(rows: Tensor, official: Any) -> Any:
    """Rows (1, M, D) in the form of the model's own features of pictures."""
    listed = not isinstance(official.pooler_output, Tensor)
    return type(official)(pooler_output=[rows[0]] if listed else rows)
