"""drawing: sequences whose answer is a picture, to be trained on, and pictures drawn after prompts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from alignlab.backbones.dynamic import vocabulary_of
from alignlab.backbones.vocabulary import VisualVocabulary
from alignlab.batch import IGNORE, Tokens
from alignlab.errors import InputError
from alignlab.modules.parted import evaluating

if TYPE_CHECKING:
    from alignlab.backbones.backbone import Backbone


@dataclass(frozen=True)
class Drawing:
    """P drawn pictures.

    Args:
        codes: (M,) long, picture by picture; None: it is drawn as features, of which none is a code.
        counts: (P,) long, tokens of each picture, from 1 to N, with sum M.
        pixels: (P, 3, H, W) in [0, 1].
    """

    codes: Tensor | None
    counts: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class Sampling:
    """How codes are sampled.

    Args:
        guidance: w in log p_u + w (log p_c - log p_u), where p_c is given the prompt and p_u the start alone; 1: p_c.
        top_k: The likeliest codes among which is drawn; 0: all.
        temperature: What log-probabilities are divided by; 0: the likeliest code is taken.
        shortest: Least number of codes.
        longest: Largest number of codes.
    """

    guidance: float
    top_k: int
    temperature: float
    shortest: int
    longest: int

    def check(self, num_patches: int) -> None:
        """Raise InputError for what cannot be sampled so."""
        if not 1 <= self.shortest <= self.longest <= num_patches:
            raise InputError(
                f"draw needs 1 <= min_new_tokens <= max_new_tokens <= {num_patches}, the patches of a picture, got "
                f"{self.shortest} and {self.longest}"
            )
        if self.guidance < 0 or self.top_k < 0 or self.temperature < 0:
            raise InputError(
                "draw needs guidance, top_k and temperature of 0 or more, got "
                f"{self.guidance}, {self.top_k} and {self.temperature}"
            )


class Never(LogitsProcessor):
    """Leaves visual tokens no probability, or all tokens but codes and end.

    Args:
        visual: Their ids.
        drawing: Whether a picture is written, not a text.
    """

    def __init__(self, visual: VisualVocabulary, *, drawing: bool = False) -> None:
        self.visual, self.drawing = visual, drawing

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids = torch.arange(scores.shape[-1], device=scores.device)
        never = self.visual.among(ids) | (ids == self.visual.end)
        never = ~never if self.drawing else never | (ids == self.visual.start)
        return scores.masked_fill(never, -torch.inf)


def picture_sequences(backbone: "Backbone", prompts: Tokens, codes: Tensor, counts: Tensor, *, drop: Tensor) -> Tokens:
    """Prompts with a picture each as their answer: prompt, start, codes, end; labels on codes and end.

    Args:
        prompts: B prompts.
        codes: (M,) long, picture by picture.
        counts: (B,) long, with sum M.
        drop: (B,) bool, rows that begin at start, without their prompt, for guidance.

    Raises:
        InputError: There are no tokens for codes, or not as many pictures as prompts, or a prompt to be dropped has a
            picture.
    """
    visual = vocabulary_of(backbone)
    if len(counts) != len(prompts) or int(counts.sum()) != len(codes):
        raise InputError(
            f"picture_sequences needs one picture a prompt, got {len(prompts)} prompts, {len(counts)} counts of "
            f"{int(counts.sum())} codes together, and {len(codes)} codes"
        )
    if bool((prompts.num_images[drop] > 0).any()):
        raise InputError("picture_sequences cannot drop a prompt that has pictures; drop those of words alone")
    said = prompts.attention_mask.bool() & ~drop[:, None]
    before = said.sum(1, keepdim=True)  # (B, 1), where start stands
    length = before + counts[:, None] + 2
    width = int(length.max())
    place = torch.arange(width, device=length.device).expand(len(length), -1)
    if backbone.encoder.padding_side == "left":
        place = place - (width - length)
    real = (place >= 0) & (place < length)
    answer = real & (place > before)
    last = place == length - 1
    ids = torch.full_like(place, backbone.encoder.pad_id)
    ids = ids.masked_scatter(real & (place < before), prompts.input_ids[said])
    ids = ids.masked_fill(place == before, visual.start).masked_fill(last, visual.end)
    ids = ids.masked_scatter(answer & ~last, visual.ids(codes))
    shown = torch.zeros_like(real).masked_scatter(real & (place < before), prompts.image_mask[said])
    along = prompts.along()
    return Tokens(
        input_ids=ids,
        attention_mask=real.to(prompts.attention_mask.dtype),
        labels=ids.masked_fill(~answer, IGNORE),
        image_mask=shown,
        vision={key: value for key, value in prompts.vision.items() if key not in along},
        num_images=prompts.num_images,
    )


@torch.no_grad()
def draw(backbone: "Backbone", prompts: Tokens, sampling: Sampling, *, seed: int | None) -> Drawing:
    """Draw a picture after each of B prompts padded on the left; see ``Backbone.draw``."""
    visual, tokenizer = vocabulary_of(backbone), backbone.visual_tokenizer
    if tokenizer.pixel_decoder is None:
        raise InputError("draw needs a visual tokenizer that paints: it has no pixel decoder, such as PatchPixels")
    sampling.check(tokenizer.num_patches)
    tokens, devices = _begun(backbone.read_prompts(prompts), visual.start), []
    if backbone.device.type == "cuda":
        devices = [backbone.device]
    with evaluating(backbone), _plainly(backbone.model), torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        ids = backbone.model.generate(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_k=sampling.top_k,
            top_p=1.0,
            min_new_tokens=sampling.shortest,
            max_new_tokens=sampling.longest,
            guidance_scale=sampling.guidance,
            negative_prompt_ids=tokens.input_ids[:, -1:],  # start alone
            eos_token_id=visual.end,
            pad_token_id=backbone.encoder.pad_id,
            logits_processor=LogitsProcessorList([Never(visual, drawing=True)]),
            **tokens.vision,
        )[:, tokens.input_ids.shape[1] :]
        drawn = visual.among(ids)
        codes, counts = visual.codes(ids[drawn]), drawn.sum(1)
        return Drawing(codes, counts, tokenizer.pixels(tokenizer.decode_codes(codes, counts)))


@contextmanager
def _plainly(model: Any) -> Iterator[None]:
    """For a while, ``generate`` knows nothing of how the model writes texts, such as a penalty on what it repeats.

    Given a config for one call, it would take from the model's what that leaves open.
    """
    before, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _begun(tokens: Tokens, start: int) -> Tokens:
    """The same with the token ``start`` behind each."""
    return replace(
        tokens,
        input_ids=F.pad(tokens.input_ids, (0, 1), value=start),
        attention_mask=F.pad(tokens.attention_mask, (0, 1), value=1),
        labels=F.pad(tokens.labels, (0, 1), value=IGNORE),
        image_mask=F.pad(tokens.image_mask, (0, 1), value=False),
    )
