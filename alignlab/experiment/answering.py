"""answering: a backbone's answers to examples, with their pictures and with corrupted ones, kept as they come."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from alignlab.backbones import Backbone
from alignlab.backbones.pictures import open_image
from alignlab.batch import Example, Turn
from alignlab.data import Corruption, Split
from alignlab.data.corruptions import can_corrupt, corrupted, generator_for
from alignlab.errors import InputError
from alignlab.experiment.opening import OnProgress
from alignlab.experiment.record import writing

Prompt = tuple[Turn, ...]


@dataclass(frozen=True)
class Answer:
    """Two greedy answers to an example.

    Args:
        index: The example's place in its split.
        chosen: To the prompt as it is; None where it has no picture, so that nothing was asked.
        rejected: To the prompt with its pictures corrupted.
        chosen_cut: Whether the answer ended only because it may be no longer.
        rejected_cut: Likewise.
    """

    split: Split
    index: int
    id: str
    chosen: str | None = None
    rejected: str | None = None
    chosen_cut: bool = False
    rejected_cut: bool = False


@dataclass(frozen=True)
class Asking:
    """How answers are made; see ``PairSettings``."""

    backbone: Backbone
    corruption: Corruption
    seed: int
    max_new_tokens: int
    batch_size: int

    def answers(self, asked: Sequence[tuple[str, Prompt]]) -> Iterator[tuple[tuple[str, str], tuple[bool, bool]]]:
        """Two answers each to prompts with pictures, of examples of these ids, and whether each was cut."""
        encoder = self.backbone.encoder
        generators = [generator_for(self.seed, id) for id, _ in asked]
        prompts = [_opened(prompt) for _, prompt in asked]
        chosen = self._generate(encoder.prompts(prompts))
        others = [_changed(*each, self.corruption) for each in zip(prompts, generators, strict=True)]
        tokens = encoder.prompts(others)
        if not self.corruption.is_after:
            rejected = self._generate(tokens)
        elif can_corrupt(tokens):
            rejected = self._generate(corrupted(tokens, self.corruption, generators))
        else:
            alone = (
                [encoder.prompts([prompt]), generator] for prompt, generator in zip(others, generators, strict=True)
            )
            rejected = [self._generate(corrupted(one, self.corruption, [own]))[0] for one, own in alone]
        for (one, one_cut), (other, other_cut) in zip(chosen, rejected, strict=True):
            yield (one, other), (one_cut, other_cut)

    def _generate(self, tokens: Any) -> list[tuple[str, bool]]:
        ids = self.backbone.generate_ids(tokens.to(self.backbone.device), max_new_tokens=self.max_new_tokens)
        return list(zip(self.backbone.encoder.decode(ids), (~self.backbone.ended(ids)).tolist(), strict=True))


def prompt_of(example: Example) -> Prompt:
    """The turns before a conversation's last answer; all, where none of them is an answer."""
    roles = [turn.role for turn in example.conversation]
    return (
        example.conversation[: len(roles) - 1 - roles[::-1].index("assistant")]
        if "assistant" in roles
        else (example.conversation)
    )


def answer_split(
    asking: Asking, split: Split, examples: Sequence[Example], first: int, file: TextIO, on_progress: OnProgress
) -> None:
    """Append an Answer for each example from ``first`` on to a file, one JSON object a line."""
    for start in range(first, len(examples), asking.batch_size):
        places = range(start, min(start + asking.batch_size, len(examples)))
        asked = {place: examples[place] for place in places}
        seen = {place: prompt for place, each in asked.items() if _has_picture(prompt := prompt_of(each))}
        said = asking.answers([(asked[place].id, prompt) for place, prompt in seen.items()]) if seen else ()
        pairs = dict(zip(seen, said, strict=True))
        for place, example in asked.items():
            (chosen, rejected), cut = pairs.get(place, ((None, None), (False, False)))
            answer = Answer(split, place, example.id, chosen, rejected, *cut)
            file.write(json.dumps(vars(answer)) + "\n")
        file.flush()
        on_progress(f"answering {split}", places.stop, len(examples))


@contextmanager
def unfinished(path: Path, known: Mapping[str, Any]) -> Iterator[tuple[list[Answer], TextIO]]:
    """The answers there are, and the file open behind them; a line that was interrupted is dropped.

    Raises:
        InputError: The file is of another provenance than ``known``.
    """
    head, answers, size = _read(path)
    if head is not None:
        refuse_other(path.parent, head, known, "unfinished, and ")
    with writing(path), path.open("a") as file:
        os.truncate(path, size)
        if head is None:
            file.write(json.dumps(known) + "\n")
        yield answers, file
        file.flush()
        os.fsync(file.fileno())


def refuse_other(folder: Path, there: Mapping[str, Any], known: Mapping[str, Any], state: str = "") -> None:
    """Raise InputError if what is known of the pairs in a folder differs from what is known of the new ones."""
    if differing := [name for name, value in known.items() if there.get(name) != value]:
        raise InputError(
            f"{folder} is there already, {state}differs in {', '.join(differing)}; choose another --output, or move it "
            "away"
        )


def answers_in(path: Path) -> list[Answer]:
    """All answers of a file, in the order of the splits and their examples."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Any] | None, list[Answer], int]:
    """The first line, the answers, and the size of the whole lines in bytes."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    head, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
    return head, [Answer(**line) for line in lines], len(whole)


def _has_picture(prompt: Prompt) -> bool:
    return any(not isinstance(part, str) for turn in prompt for part in turn.content)


def _opened(prompt: Prompt) -> Prompt:
    """The same with its pictures decoded."""
    return tuple(
        replace(turn, content=tuple(part if isinstance(part, str) else open_image(part) for part in turn.content))
        for turn in prompt
    )


def _changed(prompt: Prompt, generator: torch.Generator, corruption: Corruption) -> Prompt:
    """The same with other pictures; these are decoded."""
    return tuple(
        replace(
            turn,
            content=tuple(
                part if isinstance(part, str) else corruption.before(part, generator) for part in turn.content
            ),
        )
        for turn in prompt
    )
