"""answers: two answers to each prompt, in one sequence that holds prompt and pictures once where that is exact."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignlab.batch import Tokens


@dataclass(frozen=True)
class Answers:
    """Two answers to each of B prompts, as a backbone scores them.

    Args:
        sequences: One, whose rows are ``[prompt | chosen | rejected]``, or two: the chosen answers' and the others'.
        logits_at: For each, (B, T) bool, the states that predict a token of an answer; M in all.
        states: (K,) long, for each token of an answer its state among the M; the first tokens of a pair share one.
        targets: (K,) long, the tokens.
        owners: (K,) long in [0, 2 B), the row of its pair, and B more for a rejected answer.
        lengths: (2, B) long, tokens of the chosen and of the rejected answers.
    """

    sequences: tuple[Tokens, ...]
    logits_at: tuple[Tensor, ...]
    states: Tensor
    targets: Tensor
    owners: Tensor
    lengths: Tensor


def apart(chosen: Tokens, rejected: Tokens, prompt_lengths: Tensor) -> Answers:
    """Two sequences, each with its prompt.

    Args:
        prompt_lengths: (B,) long, real tokens before the answer, the same in both sequences of a pair.
    """
    sides = (chosen, rejected)
    scored = [_scored(tokens, prompt_lengths) for tokens in sides]  # (B, T) each
    owners = torch.cat([_rows(of) + side * len(of) for side, of in enumerate(scored)])
    return Answers(
        sequences=sides,
        logits_at=tuple(_before(of) for of in scored),
        states=torch.arange(len(owners), device=owners.device),
        targets=torch.cat([tokens.input_ids[of] for tokens, of in zip(sides, scored, strict=True)]),
        owners=owners,
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
    starts = (prompt_lengths[:, None], end[:, None])
    sides = [answered & ~second, answered & second]
    number = at.flatten().cumsum(0).view(at.shape) - 1
    states = []
    for side, start in zip(sides, starts, strict=True):
        before = torch.where(place == start, starts[0], place) - 1
        states.append(number.gather(1, before.clamp(min=0))[side])
    return Answers(
        sequences=(joint,),
        logits_at=(at,),
        states=torch.cat(states),
        targets=torch.cat([joint.input_ids[side] for side in sides]),
        owners=torch.cat([_rows(side) + number * len(side) for number, side in enumerate(sides)]),
        lengths=torch.stack([side.sum(1) for side in sides]),
    )


def joinable(chosen: Tokens, rejected: Tokens, prompt_lengths: Tensor) -> bool:
    """Whether the sequences say so: one prompt, with all of the pictures, and no rules of who looks at whom."""
    if "token_type_ids" in chosen.vision:  # parts of the prompt look at what comes after them
        return False
    scored = [_scored(tokens, prompt_lengths) for tokens in (chosen, rejected)]
    prompts = [
        tokens.input_ids[tokens.attention_mask.bool() & ~of]
        for tokens, of in zip((chosen, rejected), scored, strict=True)
    ]
    shown = (chosen.image_mask & scored[0]).any() | (rejected.image_mask & scored[1]).any()
    return torch.equal(*prompts) and not bool(shown | (prompt_lengths < 1).any())


def trial(pad_id: int, device: torch.device, dtype: torch.dtype) -> tuple[Answers, Answers]:
    """A pair of texts in one sequence and in two, to see whether a model makes the same of them."""

    def text(*ids: int) -> Tokens:
        input_ids = torch.tensor([ids], device=device)
        nothing = torch.zeros_like(input_ids, dtype=torch.bool)
        return Tokens(input_ids, torch.ones_like(input_ids), input_ids, nothing, {}, torch.zeros(1, dtype=torch.long))

    prompt = (pad_id, 0, 1, 2)
    sides, length = (text(*prompt, 3, 4, 5), text(*prompt, 5, 3)), torch.tensor([len(prompt)], device=device)
    positions = tuple(torch.arange(tokens.input_ids.shape[1], device=device)[None] for tokens in sides)
    return joined(*sides, length, positions, pad_id, dtype), apart(*sides, length)


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


def _rows(mask: Tensor) -> Tensor:
    return mask.nonzero()[:, 0]
