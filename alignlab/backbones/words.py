"""words: which word of an answer each token belongs to."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignlab.batch import ROLES, Example, Turn
from alignlab.errors import InputError


def answer_texts(turns: Sequence[Turn]) -> tuple[str, ...]:
    """The texts of a conversation's last answer; its words are what stands between white space in them."""
    last = next(turn for turn in reversed(turns) if turn.role == "assistant")
    return tuple(part for part in last.content if isinstance(part, str))


def token_words(tokenizer: Any, id: str, rendered: str, ids: list[int], texts: Sequence[str]) -> list[int]:
    """Look up the word of every token of an answer: the one that the token's first character lies in.

    White space in front does not count as a token's first character, since many vocabularies begin a word with it.

    Args:
        id: The example's id, for messages.
        rendered: The answer as the chat template wrote it, with what the template puts around it.
        ids: The L tokens that the processor made of it.
        texts: The answer's texts; their words are counted through.

    Returns:
        L indices; -1 for tokens of no word, such as the template's closing token.

    Raises:
        InputError: The template or the processor changed the text, so that places in it mean nothing.
    """
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} cannot say where its tokens stand in a text; use a fast one")
    again = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    if again["input_ids"] != ids:
        raise InputError(
            f"example {id!r}: the processor and its tokenizer split the answer {rendered!r} differently, "
            f"{len(ids)} and {len(again['input_ids'])} tokens, so its words cannot be found among them"
        )
    word_at = _word_of_characters(id, rendered, texts)
    return [
        next((word_at[place] for place in range(start, end) if not rendered[place].isspace()), -1)
        for start, end in again["offset_mapping"]
    ]


def token_roles(examples: Sequence[Example], words: Tensor) -> Tensor:
    """Look up the role of every token's word.

    Args:
        examples: B examples.
        words: (B, T) long, the word of the last answer that each token belongs to, -1 where none.

    Returns:
        (B, T) long, the place in ``ROLES``, -1 where no word.

    Raises:
        InputError: An example's roles are not one a word, or not of ``ROLES``.
    """
    roles = [[*_places(example), -1] for example in examples]  # so that no word, -1, finds no role, -1
    rows = zip(roles, words.tolist(), strict=True)
    return torch.tensor([[role[word] for word in row] for role, row in rows])


def _places(example: Example) -> list[int]:
    words = sum(len(text.split()) for text in answer_texts(example.conversation))
    if len(example.roles) != words:
        raise InputError(
            f"example {example.id!r} has {len(example.roles)} roles, but its last answer has {words} words; "
            "it needs one for each word between white space"
        )
    if unknown := set(example.roles) - set(ROLES):
        raise InputError(f"example {example.id!r} has a role {min(unknown)!r}; a role is one of {', '.join(ROLES)}")
    return [ROLES.index(role) for role in example.roles]


def _word_of_characters(id: str, rendered: str, texts: Sequence[str]) -> list[int]:
    word_at = [-1] * len(rendered)
    done = count = 0
    for text in texts:
        text = text.strip()  # templates may strip an answer
        first = rendered.find(text, done)
        if first < 0:
            raise InputError(
                f"example {id!r}: the chat template changes the answer {text!r} to {rendered!r}, so its words cannot "
                "be found; use a template that only adds around it"
            )
        for word in re.finditer(r"\S+", text):
            start, done = first + word.start(), first + word.end()
            word_at[start:done] = [count] * (done - start)
            count += 1
    return word_at
