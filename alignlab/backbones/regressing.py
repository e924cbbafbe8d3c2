"""regressing: sequences whose answer is a picture's features, to be trained on, and pictures drawn so after prompts."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.adapters.visual import told
from alignlab.backbones.drawing import Drawing
from alignlab.backbones.patches import projector_of
from alignlab.batch import IGNORE, Tokens
from alignlab.errors import InputError
from alignlab.modules.parted import evaluating

if TYPE_CHECKING:
    from alignlab.backbones.backbone import Backbone


def feature_sequences(backbone: "Backbone", prompts: Tokens, *, drop: Tensor) -> Tokens:
    """Prompts without pictures with the placeholders of one each behind them, padded on the left; without labels.

    Args:
        prompts: B prompts, whose last token marks the start of a picture.
        drop: (B,) bool, rows of which only that token stays.

    Raises:
        InputError: A prompt has pictures.
    """
    if prompts.num_images.any():
        raise InputError("a picture is written behind texts, but these prompts have pictures themselves")
    there = prompts.attention_mask.bool()
    order = there.long().argsort(dim=1, stable=True)  # what is padded on the right comes to stand at the picture
    ids, there = prompts.input_ids.gather(1, order), there.gather(1, order)
    there[:, :-1] &= ~drop[:, None]
    behind = (0, backbone.visual_tokenizer.num_patches)
    ids = F.pad(ids.masked_fill(~there, backbone.encoder.pad_id), behind, value=backbone.encoder.image_token_id)
    return Tokens(
        input_ids=ids,
        attention_mask=F.pad(there, behind, value=True).to(prompts.attention_mask.dtype),
        labels=torch.full_like(ids, IGNORE),
        image_mask=F.pad(torch.zeros_like(there), behind, value=True),
        vision={},
        num_images=torch.ones_like(prompts.num_images),
    )


def follows(tokens: Tokens) -> Tensor:
    """The real tokens that others stand before, so that a state predicts them, (B, T) bool."""
    real = tokens.attention_mask.bool()
    return real & F.pad(real[:, :-1], (1, 0))


def visual_tokens(tokens: Tokens, keep: Tensor) -> Tensor:
    """The placeholders that are visual tokens, (B, T) bool, of those that stay of each picture, (P, N) bool."""
    return tokens.image_mask.masked_scatter(tokens.image_mask, keep.flatten())


def caption_tokens(written: Tokens) -> Tensor:
    """The tokens of captions that can be supervised, (B, T) bool: all but the first, and the mark of the start."""
    shown = F.pad(written.image_mask[:, 1:], (0, 1), value=True)
    return follows(written) & ~written.image_mask & ~shown


@torch.no_grad()
def draw(backbone: "Backbone", prompts: Tokens) -> Drawing:
    """Draw a picture after each of P prompts padded on the left, one feature after the other; see ``Backbone.draw``."""
    tokenizer, projector = backbone.visual_tokenizer, projector_of(backbone)
    if tokenizer.pixel_decoder is None:
        raise InputError("draw needs a visual tokenizer that paints: it has no pixel decoder, such as PatchPixels")
    dtype, predicted = next(projector.parameters()).dtype, []
    tokens = backbone.read_prompts(prompts)
    visual = F.pad(tokens.image_mask, (0, tokenizer.num_tokens), value=True)
    with evaluating(backbone), told(backbone.model, visual):
        mask, given = tokens.attention_mask, {"input_ids": tokens.input_ids, **tokens.vision}
        places, cache = (mask.cumsum(1) - 1).clamp(min=0), None
        while True:
            output = backbone.model.base_model(
                **given, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
            )
            state = output.last_hidden_state[:, -1]
            predicted.append(tokenizer.predict(state.to(tokenizer.predict.weight.dtype)))
            if len(predicted) == tokenizer.num_tokens:
                break
            given = {"inputs_embeds": projector(predicted[-1][:, None].to(dtype))}
            mask, places, cache = F.pad(mask, (0, 1), value=1), places[:, -1:] + 1, output.past_key_values
        vectors = torch.stack(predicted, 1)  # (P, n, C)
        counts = torch.full((len(prompts),), tokenizer.num_tokens, device=vectors.device)
        return Drawing(None, counts, tokenizer.pixels(tokenizer.decode(vectors.flatten(0, 1), counts)))
