"""blind: the same sequences for a pass that cannot look at some of their positions."""

from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.batch import IGNORE, Tokens


def masked(tokens: Tokens, hidden: Tensor, positions: Tensor, vision: dict[str, Any]) -> Tokens:
    """Sequences of the same length, in which nobody looks at the hidden positions (B, T) bool.

    Args:
        positions: The position ids of the whole sequences, (B, T), or (3, B, T) where they are of three axes.
        vision: What the model needs to know of the pictures.
    """
    mask = tokens.attention_mask.masked_fill(hidden, 0)
    return replace(tokens, attention_mask=mask, vision={**vision, "position_ids": positions})


def shortened(tokens: Tokens, hidden: Tensor, positions: Tensor, pad_id: int, features: Any) -> Tokens | None:
    """Sequences without the hidden positions (B, T) bool; the others keep their position ids.

    A hidden position that predicts a label stays, but nobody looks at it: its own state is asked for. The labels are
    predicted in the order in which those of the whole sequences are.

    Args:
        positions: As in ``masked``.
        pad_id: Of the tokenizer.
        features: Of the pictures, of which those of positions that stay are taken.

    Returns:
        None where it cannot be known which features are those of which position.
    """
    mask = tokens.attention_mask.masked_fill(hidden, 0).bool()
    predicting = F.pad(tokens.labels[:, 1:] != IGNORE, (0, 1))
    staying = mask | predicting
    # The positions that stay come first, in their order; behind them shorter rows are padded.
    order = staying.long().argsort(dim=1, descending=True, stable=True)[:, : int(staying.sum(1).max())]
    there = staying.gather(1, order)
    image_mask = tokens.image_mask.gather(1, order) & there
    vision: dict[str, Any] = {key: _columns(value, order) for key, value in tokens.along().items()}
    if image_mask.any():
        chosen = _chosen(features, staying[tokens.image_mask])
        if chosen is None:
            return None
        vision["mm_encoder_outputs"] = {"image": chosen}
    along = order.expand(*positions.shape[:-1], -1)
    return Tokens(
        input_ids=tokens.input_ids.gather(1, order).masked_fill(~there, pad_id),
        attention_mask=mask.gather(1, order).to(tokens.attention_mask.dtype),
        labels=tokens.labels.gather(1, order).masked_fill(~there, IGNORE),
        image_mask=image_mask,
        vision=vision | {"position_ids": positions.gather(-1, along)},
        num_images=tokens.num_images,
    )


def horizon(decoder: nn.Module) -> int | None:
    """The longest sequence in which every position sees all before it, whatever stands between; None: any.

    Where it sees less, it counts places, so leaving some out would change what it sees. Layers of a kind that is not
    known, recurrent ones among them, and decoders that take no position ids (ALiBi, say) give 0.
    """
    config = decoder.config
    if "position_ids" not in signature(decoder.forward).parameters or getattr(config, "alibi", False):
        return 0
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    unknown = kinds - {"full_attention", "sliding_attention"} or hasattr(config, "attention_types")
    if unknown or getattr(config, "attention_chunk_size", None):
        return 0
    return None if kinds == {"full_attention"} else window


def _columns(value: Tensor, order: Tensor) -> Tensor:
    return value[torch.arange(len(order), device=order.device)[:, None], order]


def _chosen(features: Any, wanted: Tensor) -> Any:
    """The features at some of the image positions, ``wanted`` (N,) bool, in the model's own form; None if unknown."""
    pooled = getattr(features, "pooler_output", None)
    parts = [pooled] if isinstance(pooled, Tensor) else pooled
    if not isinstance(parts, list | tuple) or getattr(features, "deepstack_features", None) is not None:
        return None
    rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    if len(rows) != len(wanted):
        return None
    kept = rows[wanted]
    return type(features)(pooler_output=kept[None] if isinstance(pooled, Tensor) else type(pooled)([kept]))
