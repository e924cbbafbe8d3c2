"""Encoder: the processor side of a backbone, from Examples to token sequences; it runs in the loader's workers."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from operator import or_
from typing import Any, Literal, Self

import torch
from torch import Tensor

from alignlab.backbones.batching import Batching
from alignlab.backbones.pictures import open_image
from alignlab.backbones.ragged import aligned, join, pad, tensor
from alignlab.backbones.stretches import Stretches
from alignlab.backbones.vocabulary import END, START, VisualVocabulary
from alignlab.backbones.words import answer_texts, token_roles, token_words
from alignlab.batch import IGNORE, Batch, Content, Example, Part, Tokens, Turn
from alignlab.errors import InputError

Segment = tuple[str, bool]
"""A stretch of rendered text and whether it is trained on."""


@dataclass(frozen=True)
class _Row:
    """One sample before tokenization: rendered text in stretches, and its pictures in order."""

    id: str
    segments: list[Segment]
    images: list[Part]


class Encoder(Batching):
    """Turns conversations and contents into ``Tokens`` with a Hugging Face processor and its chat template.

    A conversation is tokenized in stretches (prompt, answer, prompt, ...), so that an answer's tokens follow exactly
    the prompt's tokens that generation will see, whatever the tokenizer merges. Answers are trained on, with the
    template's closing token.

    Args:
        processor: Any processor with a tokenizer, an image processor and a chat template.
        image_token_id: The placeholder's id.
        max_length: Longest sequence in tokens; a longer conversation loses its end, a longer prompt or content is
            refused, since its end is what asks for the answer. None: no limit.
        padding_side: Where training sequences are padded; prompts for generation are always padded on the left.

    Attributes:
        visual: The tokens of visual codes, whose start and end stand around each picture; None: there are none.
    """

    kind = "a vision-language model"
    sequences = (*Batching.sequences, "conversation", "rejected", "roles")

    def __init__(
        self,
        processor: Any,
        image_token_id: int,
        *,
        max_length: int | None = None,
        padding_side: Literal["left", "right"] = "right",
    ) -> None:
        if max_length is not None and max_length < 1:
            raise InputError(f"backbone.max_length must be at least 1 token, or null, got {max_length}")
        if processor.tokenizer.chat_template is None and processor.chat_template is None:
            raise InputError("the backbone's processor has no chat template; add chat_template.jinja to its directory")
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_processor = processor.image_processor
        self.image_token_id = image_token_id
        self.stretches = Stretches(processor, image_token_id)
        self.max_length, self.padding_side = max_length, padding_side
        self.pad_id = padding_id(self.tokenizer)
        self.visual = VisualVocabulary.of(self.tokenizer)
        # Some templates write the beginning-of-sequence token themselves, others leave it to the tokenizer.
        self.first_token = (
            self.tokenizer.bos_token if self.tokenizer("a").input_ids[0] == self.tokenizer.bos_token_id else ""
        )

    @classmethod
    def load(cls, path: str, *, max_length: int | None = None) -> Self:
        """Load the processor alone; reads no weights."""
        from alignlab.backbones.processing import read_processor
        from alignlab.backbones.reading import read_config

        config = read_config(path, what="vision-language model")
        processor = read_processor(path, config)
        return cls(processor, image_token_id(config), max_length=max_length)

    def batch(self, examples: Sequence[Example], sequences: Sequence[str]) -> Batch:
        """Encode the named sequences of every example.

        Raises:
            InputError: An example lacks one, ``max_length`` would cut a picture or leave nothing to train on (but of
                pairs, which are then nothing to their objective), there are not as many roles as words, or one of a
                pair's answers is missing or holds a picture.
        """
        for name in ("roles", "rejected"):
            if name in sequences and "conversation" not in sequences:
                raise InputError(f"{name} go with a conversation; what requires {name} requires it, too")
        return super().batch(examples, sequences)

    def sequence(self, name: str, examples: Sequence[Example], among: Sequence[str]) -> dict[str, Any]:
        match name:
            case "conversation" if "roles" in among or "rejected" in among:
                return {}  # made with those
            case "roles":
                conversation, words = self.words([(e.id, e.conversation) for e in examples])
                return {"conversation": conversation, name: token_roles(examples, words)}
            case "rejected":
                return self.pairs(examples)
            case "conversation":
                return {name: self.conversations([(e.id, e.conversation) for e in examples])}
        return super().sequence(name, examples, among)

    def pairs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Encode each conversation with its own last answer and with the rejected one, and say where those begin.

        Prompts and their pictures are processed once. Where ``max_length`` leaves nothing of an answer, there is none
        of its labels.
        """
        for example in examples:
            _check_answers(example)
        rows = self._rows([(e.id, e.conversation) for e in examples])
        others = self._rows([(e.id, (*e.conversation[:-1], Turn("assistant", e.rejected))) for e in examples])
        encoded = self._process(rows)
        answers = self.tokenizer([row.segments[-1][0] for row in others], add_special_tokens=False)["input_ids"]
        exchanged = _exchanged(encoded, [len(row.segments) for row in rows], answers)
        sides = [(rows, encoded), (others, exchanged)]
        conversation, rejected = (self._tokens(*side, self.padding_side) for side in sides)
        rejected = replace(rejected, vision={**conversation.vision, **rejected.along()})
        lengths = [_lengths(*side) for side in sides]
        return {
            "conversation": conversation,
            "rejected": rejected,
            "prompt_lengths": torch.tensor([sum(before) for *before, _ in lengths[0]]),
            "answer_lengths": torch.tensor([[last for *_, last in side] for side in lengths]),
        }

    def conversations(self, conversations: Sequence[tuple[str, tuple[Turn, ...]]]) -> Tokens:
        """Encode whole conversations, each with its id, labels on the assistant's turns."""
        rows = self._rows(conversations)
        return self._trained(rows, self._process(rows))

    def words(self, conversations: Sequence[tuple[str, tuple[Turn, ...]]]) -> tuple[Tokens, Tensor]:
        """Encode as ``conversations`` does, and say which word of the last answer each token belongs to.

        Returns:
            The tokens, and (B, T) long: the place, from 0, of the token's word among those between white space in the
            last answer; -1 at every other token.
        """
        rows = self._rows(conversations)
        encoded = self._process(rows)
        pieces = iter(encoded["input_ids"])
        words = []
        for row, (_, turns) in zip(rows, conversations, strict=True):
            *before, last = [next(pieces) for _ in row.segments]  # a conversation's last stretch is its last answer
            found = token_words(self.tokenizer, row.id, row.segments[-1][0], last, answer_texts(turns))
            words.append([-1] * sum(map(len, before)) + found)
        return self._trained(rows, encoded), pad(words, -1, limit=self.max_length, side=self.padding_side)

    def prompts(self, conversations: Sequence[tuple[Turn, ...]]) -> Tokens:
        """Encode conversations up to where the assistant begins to answer, padded on the left."""
        rows = [_Row("prompt", [(self._render(turns, answer=True), False)], _images(turns)) for turns in conversations]
        return self._tokens(rows, self._process(rows), "left")

    def contents(self, contents: Sequence[Content]) -> Tokens:
        """Encode each content as one user turn that asks for an answer; its last token is where embeddings are read."""
        turns = [(Turn("user", content),) for content in contents]
        rows = [_Row("content", [(self._render(turn, answer=True), False)], _images(turn)) for turn in turns]
        return self._tokens(rows, self._process(rows), self.padding_side)

    def tokenizer_fingerprint(self) -> str:
        """16 hexadecimal characters of what decides which tokens a conversation is."""
        model = getattr(self.tokenizer, "backend_tokenizer", None)
        words = self.tokenizer.get_vocab() if model is None else model.to_str()
        templates = [self.tokenizer.chat_template, self.processor.chat_template, self.first_token]
        return _digest([words, self.tokenizer.special_tokens_map, *templates])

    def prompt_format(self) -> dict[str, str | None]:
        """What a run's record says of how prompts are written: the chat template, and ``tokenizer_fingerprint``."""
        template = self.processor.chat_template or self.tokenizer.chat_template
        return {"chat_template": template, "tokenizer_fingerprint": self.tokenizer_fingerprint()}

    def image_fingerprint(self) -> str:
        """16 hexadecimal characters of what decides what the vision tower sees of a picture, and as how many tokens."""
        plain = (str, int, float, bool, type(None))
        own = {name: value for name, value in vars(self.processor).items() if isinstance(value, plain)}
        return _digest([self.image_processor.to_dict(), own | {"chat_template": None}])

    def decode(self, ids: Tensor) -> list[str]:
        """Text of generated ids (B, L), special tokens stripped."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _render(self, turns: Sequence[Turn], *, answer: bool) -> str:
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                    for part in turn.content
                ],
            }
            for turn in turns
        ]
        return self.processor.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False)

    def _segments(self, id: str, turns: tuple[Turn, ...]) -> list[Segment]:
        segments: list[Segment] = []
        done = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt, upto = self._render(turns[:index], answer=True), self._render(turns[: index + 1], answer=False)
            if not (upto.startswith(prompt) and prompt.startswith(done)):
                raise InputError(
                    f"example {id!r}: the chat template changes earlier turns when later ones are added, so it cannot "
                    "be known which tokens are the answer's; use a template that only appends"
                )
            segments += [(prompt[len(done) :], False), (upto[len(prompt) :], True)]
            done = upto
        if not segments:
            raise InputError(f"example {id!r}: its conversation has no assistant turn, so there is nothing to train on")
        return segments

    def _rows(self, conversations: Sequence[tuple[str, tuple[Turn, ...]]]) -> list[_Row]:
        return [_Row(id, self._segments(id, turns), _images(turns)) for id, turns in conversations]

    def _process(self, rows: list[_Row]) -> Mapping[str, Any]:
        """What the processor makes of all stretches and pictures: ids a stretch, neither padded nor cut."""
        images = [open_image(part) for row in rows for part in row.images]
        trained = [accumulate((train for _, train in row.segments), or_) for row in rows]
        return self.stretches(self._texts(rows), images, [late for row in trained for late in row])

    def _trained(self, rows: list[_Row], encoded: Mapping[str, Any]) -> Tokens:
        tokens = self._tokens(rows, encoded, self.padding_side)
        untrained = (tokens.labels[:, 1:] == IGNORE).all(-1).nonzero().flatten().tolist()
        if untrained:
            cut = f"max_length = {self.max_length} ends before its answer"
            raise InputError(
                f"example {rows[untrained[0]].id!r} has no token left to train on: "
                + (cut if self.max_length else "its answers are empty")
            )
        return tokens

    def _tokens(self, rows: list[_Row], encoded: Mapping[str, Any], side: Literal["left", "right"]) -> Tokens:
        pieces = encoded["input_ids"]
        owners = [index for index, row in enumerate(rows) for _ in row.segments]
        trained = [train for row in rows for _, train in row.segments]
        labels = [piece if train else [IGNORE] * len(piece) for piece, train in zip(pieces, trained, strict=True)]
        ids = join(pieces, owners)
        for row, sequence in zip(rows, ids, strict=True):
            if self._shows(sequence[self.max_length or len(sequence) :]):
                self._refuse_cut_images(row, sequence)
            self._check_cut(row, len(sequence))
        padded = partial(pad, limit=self.max_length, side=side)
        input_ids = padded(ids, self.pad_id)
        vision: dict[str, Any] = {}
        for key, value in encoded.items():
            if key in ("input_ids", "attention_mask", "labels"):  # what is trained on is known here alone
                continue
            vision[key] = padded(join(value, owners), 0) if aligned(value, pieces) else tensor(value)
        return Tokens(
            input_ids=input_ids,
            attention_mask=padded([[1] * len(sequence) for sequence in ids], 0),
            labels=padded(join(labels, owners), IGNORE),
            image_mask=input_ids == self.image_token_id,
            vision=vision,
            num_images=torch.tensor([len(row.images) for row in rows]),
        )

    def _texts(self, rows: list[_Row]) -> list[str]:
        """The segments of all rows, one after the other, as the processor takes them."""
        texts = []
        for row in rows:
            shown = sum(text.count(self.processor.image_token) for text, _ in row.segments)
            if shown != len(row.images):
                raise InputError(
                    f"example {row.id!r} has {len(row.images)} picture(s), but its rendered text has {shown} "
                    f"{self.processor.image_token!r}; text of a record must not contain the placeholder itself"
                )
            for number, (text, _) in enumerate(row.segments):
                if self.visual is not None:
                    text = text.replace(self.processor.image_token, START + self.processor.image_token + END)
                bare = number == 0 and self.first_token and not text.startswith(self.first_token)
                texts.append(self.first_token + text if bare else text)
        return texts

    def _shows(self, ids: list[int]) -> bool:
        """Whether a picture stands among these tokens, or ends."""
        return self.image_token_id in ids or (self.visual is not None and self.visual.end in ids)

    def _refuse_cut_images(self, row: _Row, ids: list[int]) -> None:
        length = max(index for index, token in enumerate(ids) if self._shows([token])) + 1
        raise InputError(
            f"max_length = {self.max_length} would cut the image tokens of example {row.id!r}, which reach to "
            f"{length}; set backbone.max_length to more than {length}, or null"
        )

    def _check_cut(self, row: _Row, length: int) -> None:
        if self.max_length is not None and length > self.max_length and not any(train for _, train in row.segments):
            raise InputError(
                f"max_length = {self.max_length} would cut a {row.id} of {length} tokens, whose end asks for the "
                f"answer; set backbone.max_length to at least {length}, or null"
            )


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _check_answers(example: Example) -> None:
    """Raise InputError where an example has not two answers in words to one prompt."""
    if not example.conversation or example.conversation[-1].role != "assistant":
        raise InputError(f"example {example.id!r} ends without an answer, of which the rejected one takes the place")
    shown = (*example.conversation[-1].content, *example.rejected)
    if not all(isinstance(part, str) for part in shown):
        raise InputError(f"example {example.id!r} has a picture in one of its two answers; those are compared in words")


def _lengths(rows: Sequence[_Row], encoded: Mapping[str, Any]) -> list[list[int]]:
    """Tokens of every stretch of every row."""
    pieces = iter(encoded["input_ids"])
    return [[len(next(pieces)) for _ in row.segments] for row in rows]


def _exchanged(encoded: Mapping[str, Any], counts: Sequence[int], answers: list[list[int]]) -> dict[str, Any]:
    """The same with other tokens in the last of each row's stretches, of which there are ``counts``."""
    places = [sum(counts[: row + 1]) - 1 for row in range(len(counts))]
    exchanged = {}
    for key, value in encoded.items():
        if aligned(value, encoded["input_ids"]):
            value = list(value)
            for place, answer in zip(places, answers, strict=True):
                # What else is said of a token is the same of all tokens of a text.
                value[place] = answer if key == "input_ids" else (value[place][-1:] or [0]) * len(answer)
        exchanged[key] = value
    return exchanged


def padding_id(tokenizer: Any) -> int:
    """The token that fills up; the end token where a tokenizer names none."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def image_token_id(config: Any) -> int:
    """The id of the image placeholder, which configs of different families name differently."""
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    raise InputError(
        f"{type(config).__name__} names no image token, so this is not a vision-language model alignlab can read"
    )


def _images(turns: Sequence[Turn]) -> list[Part]:
    return [part for turn in turns for part in turn.content if not isinstance(part, str)]
