"""answers: two answers to each prompt, in one sequence that holds prompt and pictures once where that is exact."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.batch import Tokens


@dataclass(frozen=True)
class Answers:
    """Two answers to each of B prompts, as a backbone scores them.

    Args:
        sequences: One, whose rows are ``[prompt | chosen | rejected]``, or two: the chosen answers' and the others'.
        logits_at: For each, (B, T) bool, the states that predict a token of an answer; M in all.
        states: (K,) long, for each token of an answer its state among the M; the first tokens of a pair share one.
            First the tokens of the chosen answers, row by row, then those of the rejected ones.
        targets: (K,) long, the tokens.
        lengths: (2, B) long, tokens of the chosen and of the rejected answers.
    """

    sequences: tuple[Tokens, ...]
    logits_at: tuple[Tensor, ...]
    states: Tensor
    targets: Tensor
    lengths: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """The sums (2, B) over the tokens of each answer of values (K,), added up in the same order each time."""
        counts = self.lengths.flatten()[:, None]  # (2 B, 1)
        place = torch.arange(int(counts.max()), device=values.device)
        padded = values.new_zeros(len(counts), len(place)).masked_scatter(place < counts, values)
        return padded.sum(1).view_as(self.lengths)


def apart(chosen: Tokens, rejected: Tokens, prompt_lengths: Tensor) -> Answers:
    """Two sequences, each with its prompt.

    Args:
        prompt_lengths: (B,) long, real tokens before the answer, the same in both sequences of a pair.
    """
    sides = (chosen, rejected)
    scored = [_scored(tokens, prompt_lengths) for tokens in sides]  # (B, T) each
    targets = torch.cat([tokens.input_ids[of] for tokens, of in zip(sides, scored, strict=True)])
    return Answers(
        sequences=sides,
        logits_at=tuple(_before(of) for of in scored),
        states=torch.arange(len(targets), device=targets.device),
        targets=targets,
        lengths=torch.stack([of.sum(1) for of in scored]),
    )


def joined(
    chosen: Tokens,
    rejected: Tokens,
    prompt_lengths: Tensor,
    positions: tuple[Tensor, Tensor],
    pad_id: int,
    dtype: torch.dtype,
) -> Answers:
    """One sequence, padded on the right: behind the prompt the chosen answer, then the rejected one.

    The rejected answer does not look at the chosen one, and its positions go on from the prompt's.

    Args:
        prompt_lengths: As in ``apart``; at least 1.
        positions: The position ids of both, (B, T), or (3, B, T) where they are of three axes.
        pad_id: Of the tokenizer.
        dtype: Of the attention mask, which is additive: a boolean one is misread by some implementations.
    """
    places, counts = zip(*(_real(tokens) for tokens in (chosen, rejected)), strict=True)
    width, end = chosen.input_ids.shape[1], counts[0]
    lengths = end + (counts[1] - prompt_lengths).clamp(min=0)
    place = torch.arange(int(lengths.max()), device=end.device).expand(len(end), -1)  # (B, T)
    second = place >= end[:, None]
    behind = (prompt_lengths - end)[:, None] + place
    source = torch.where(
        second,
        width + places[1].gather(1, behind.clamp(0, places[1].shape[1] - 1)),
        places[0].gather(1, place.clamp(max=width - 1)),
    )
    there = place < lengths[:, None]

    def taken(one: Tensor, other: Tensor) -> Tensor:
        both = torch.cat([one, other], 1)  # (B, T, ...)
        return both[torch.arange(len(both), device=both.device)[:, None], source]

    others = rejected.along()
    vision: dict[str, Any] = {name: taken(value, others[name]) for name, value in chosen.along().items()}
    vision |= {name: value for name, value in chosen.vision.items() if name not in vision}
    # Padding may shift the positions of one of the sequences, as it may stand before them.
    first = [p.gather(-1, at[:, :1].expand(*p.shape[:-1], -1)) for p, at in zip(positions, places, strict=True)]
    both = torch.cat([positions[0], positions[1] + (first[0] - first[1])], -1)
    vision["position_ids"] = both.gather(-1, source.expand(*both.shape[:-1], -1))
    joint = Tokens(
        input_ids=taken(chosen.input_ids, rejected.input_ids).masked_fill(~there, pad_id),
        attention_mask=_blocks(place, prompt_lengths, end, lengths, dtype),
        labels=taken(chosen.labels, rejected.labels),
        image_mask=taken(chosen.image_mask, rejected.image_mask) & there,
        vision=vision,
        num_images=chosen.num_images,
    )
    # What predicts: the prompt's last token both first ones, within an answer each token the next.
    answered = (place >= prompt_lengths[:, None]) & there
    last = (place == end[:, None] - 1) | (place == lengths[:, None] - 1)
    at = (place == prompt_lengths[:, None] - 1) & (lengths > prompt_lengths)[:, None] | answered & ~last
    number = at.flatten().cumsum(0).view(at.shape) - 1
    sides, states = [answered & ~second, answered & second], []
    for side, start in zip(sides, (prompt_lengths, end), strict=True):
        before = torch.where(place == start[:, None], prompt_lengths[:, None], place) - 1
        states.append(number.gather(1, before.clamp(min=0))[side])
    return Answers(
        sequences=(joint,),
        logits_at=(at,),
        states=torch.cat(states),
        targets=torch.cat([joint.input_ids[side] for side in sides]),
        lengths=torch.stack([side.sum(1) for side in sides]),
    )


def one_prompt(chosen: Tokens, rejected: Tokens, prompt_lengths: Tensor) -> bool:
    """Whether both sequences begin with the same tokens, and pictures are there alone."""
    sides = (chosen, rejected)
    scored = [_scored(tokens, prompt_lengths) for tokens in sides]
    prompts = [tokens.input_ids[tokens.attention_mask.bool() & ~of] for tokens, of in zip(sides, scored, strict=True)]
    shown = (chosen.image_mask & scored[0]).any() | (rejected.image_mask & scored[1]).any()
    return torch.equal(*prompts) and not bool(shown | (prompt_lengths < 1).any())


def takes_masks(mask: Tensor, given: list[Tensor | None]) -> bool:
    """Whether a decoder's parts were given this mask (B, 1, T, T) of who looks at whom."""
    wanted = _visible(mask)
    return bool(given) and all(each is not None and torch.equal(_visible(each), wanted) for each in given)


def is_causal(tokens: Tokens, given: list[Tensor | None]) -> bool:
    """Whether masks that a decoder made say no more than that tokens look back, at real ones."""
    real = tokens.attention_mask.bool()
    row = torch.arange(real.shape[1], device=real.device)
    wanted = (row <= row[:, None]) & real[:, None, :]  # (B, T, T)
    masks = [_visible(each).expand(len(real), -1, -1, -1)[:, 0] for each in given if each is not None]
    # Who looks from padding is of no account. Without a mask, attention is causal.
    return bool(given) and all(torch.equal(mask & real[..., None], wanted & real[..., None]) for mask in masks)


@contextmanager
def masks_given(decoder: nn.Module) -> Iterator[list[Tensor | None]]:
    """The attention masks that the decoder's parts are given, while this is open."""
    given: list[Tensor | None] = []

    def note(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        if "attention_mask" in named:
            given.append(named["attention_mask"])

    parts = [module for module in decoder.modules() if module is not decoder]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in parts]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def _visible(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask == 0


def _blocks(place: Tensor, prompt_lengths: Tensor, end: Tensor, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """Who looks at whom, (B, 1, T, T): 0, or the least number of the type where a query must not look."""
    row, column = place[:, :, None], place[:, None, :]
    starts, end, lengths = (each[:, None, None] for each in (prompt_lengths, end, lengths))
    looks = (column <= row) & (column < lengths) & ~((row >= end) & (column >= starts) & (column < end))
    least = torch.finfo(dtype).min
    return torch.zeros(looks.shape, dtype=dtype, device=place.device).masked_fill(~looks, least)[:, None]


def _real(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Where the real tokens stand, first to last and the padding behind, (B, T), and how many they are, (B,)."""
    order = tokens.attention_mask.argsort(dim=1, descending=True, stable=True)
    return order, tokens.attention_mask.sum(1)


def _scored(tokens: Tokens, prompt_lengths: Tensor) -> Tensor:
    """The answer's tokens, (B, T) bool; the first of a sequence is none, as nothing predicts it."""
    number = tokens.attention_mask.cumsum(1) - 1
    return tokens.attention_mask.bool() & (number >= prompt_lengths.clamp(min=1)[:, None])


def _before(scored: Tensor) -> Tensor:
    """The places right before those, (B, T) bool."""
    return torch.cat([scored[:, 1:], torch.zeros_like(scored[:, :1])], 1)
