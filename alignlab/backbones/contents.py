"""contents: pictures and texts for the two towers of a dual encoder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch

from alignlab.backbones.batching import Batching
from alignlab.backbones.encoding import Encoder, padding_id
from alignlab.backbones.pictures import open_image
from alignlab.backbones.ragged import pad
from alignlab.batch import IGNORE, Content, Tokens
from alignlab.errors import InputError

Texts = tuple[str, ...]
"""The texts of one content, in order."""


class TextReader(ABC):
    """How a text tower's tokenizer reads the texts of a content."""

    tokenizer: Any
    pad_id: int

    @abstractmethod
    def ids(self, contents: Sequence[Texts]) -> list[list[int]]:
        """The tokens of each content."""

    def prompt_format(self) -> dict[str, str | None]:
        """As that of an encoder."""
        return {}


class PlainTexts(TextReader):
    """Texts as they are, joined by a space, with the special tokens that the tokenizer adds; the end is cut off.

    Args:
        limit: Most tokens of a text, the special ones included.
        reads_end: The tower reads a text's embedding at its end token, so there has to be one.
    """

    def __init__(self, tokenizer: Any, limit: int, *, reads_end: bool) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.pad_id = padding_id(tokenizer)
        if reads_end and tokenizer("a").input_ids[-1] != tokenizer.eos_token_id:
            raise InputError(
                f"the backbone's tokenizer does not end a text with {tokenizer.eos_token!r}, where its text tower "
                "reads the embedding; give tokenizer.json a post-processor that adds it"
            )

    def ids(self, contents: Sequence[Texts]) -> list[list[int]]:
        texts = [" ".join(texts) for texts in contents]
        return self.tokenizer(texts, truncation=True, max_length=self.limit, padding=False).input_ids


class ChatTexts(TextReader):
    """Texts as one turn of a user, in a language model's chat template, up to where the assistant would answer.

    Args:
        template: In Jinja, as ``apply_chat_template`` takes it.
        in_parts: The template takes a turn's content as a list of parts, as those of vision-language models do.
        max_length: A longer text is refused, since its end is where the embedding is read; None: no limit.
    """

    def __init__(self, tokenizer: Any, template: str, *, in_parts: bool, max_length: int | None = None) -> None:
        self.processor = _TextProcessor(tokenizer, template, in_parts)
        self.encoder = Encoder(self.processor, -1, max_length=max_length)
        self.tokenizer, self.pad_id = tokenizer, self.encoder.pad_id

    def ids(self, contents: Sequence[Texts]) -> list[list[int]]:
        tokens = self.encoder.contents(contents)
        return [ids[mask.bool()].tolist() for ids, mask in zip(tokens.input_ids, tokens.attention_mask, strict=True)]

    def prompt_format(self) -> dict[str, str | None]:
        return self.encoder.prompt_format()


class _TextProcessor:
    """A tokenizer with a chat template, as ``Encoder`` asks a vision-language processor."""

    image_token = "\0"  # no text has it
    image_processor = None

    def __init__(self, tokenizer: Any, chat_template: str, in_parts: bool) -> None:
        self.tokenizer, self.chat_template, self.in_parts = tokenizer, chat_template, in_parts

    def apply_chat_template(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        if not self.in_parts:
            joined = [" ".join(part["text"] for part in message["content"]) for message in messages]
            messages = [{**message, "content": text} for message, text in zip(messages, joined, strict=True)]
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **settings)

    def __call__(self, text: list[str], images: None, **settings: Any) -> dict[str, Any]:
        return self.tokenizer(text, **settings)


class ContentEncoder(Batching):
    """Turns contents into ``Tokens`` for a dual encoder: their texts as ids, their pictures beside them.

    Args:
        texts: Reads the texts.
        image_processor: Of transformers, reads the pictures.
        padding_side: Where texts are padded; the towers do not care.
    """

    kind = "a dual encoder"
    lacking = "needs a backbone that generates text"

    def __init__(
        self, texts: TextReader, image_processor: Any, *, padding_side: Literal["left", "right"] = "right"
    ) -> None:
        self.texts, self.image_processor = texts, image_processor
        self.tokenizer, self.pad_id = texts.tokenizer, texts.pad_id
        self.padding_side = padding_side

    def prompt_format(self) -> dict[str, str | None]:
        return self.texts.prompt_format()

    def contents(self, contents: Sequence[Content]) -> Tokens:
        """Encode each content: (B, T) ids of its texts, all padding where it has none, and its pictures in order."""
        if not all(contents):
            raise InputError("a content is empty; it needs a picture or a text to be embedded")
        written = [tuple(part for part in content if isinstance(part, str)) for content in contents]
        spoken = [index for index, texts in enumerate(written) if texts]
        found = iter(self.texts.ids([written[index] for index in spoken]) if spoken else ())
        ids = [next(found) if texts else [] for texts in written]
        shown = [[part for part in content if not isinstance(part, str)] for content in contents]
        padded = partial(pad, limit=None, side=self.padding_side)
        input_ids = padded(ids, self.pad_id)
        return Tokens(
            input_ids=input_ids,
            attention_mask=padded([[1] * len(row) for row in ids], 0),
            labels=torch.full_like(input_ids, IGNORE),
            image_mask=torch.zeros_like(input_ids, dtype=torch.bool),
            vision=self._pixels([open_image(part) for parts in shown for part in parts]),
            num_images=torch.tensor([len(parts) for parts in shown]),
        )

    def _pixels(self, pictures: Sequence[Any]) -> dict[str, Any]:
        return dict(self.image_processor(images=pictures, return_tensors="pt")) if pictures else {}
