"""stretches: what a processor makes of stretches of text and their pictures, whatever it does to texts by itself."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import signature
from typing import Any

from PIL import Image
from torch import Tensor

PLAIN = {"add_special_tokens": False, "padding": False, "truncation": False}


class Stretches:
    """Makes tokens of stretches of text, and what the vision tower reads of the pictures in them.

    A processor that leaves texts as they are is called with all stretches at once. One that writes into them (the
    beginning of a sequence behind the pictures, say), or reads none without a picture, is asked for the tokens of each
    picture alone, and its tokenizer for those of the texts; what it writes is then for the chat template to write.

    Args:
        processor: Any, with a tokenizer and an image processor.
        image_token_id: Of what stands for patches.
    """

    def __init__(self, processor: Any, image_token_id: int) -> None:
        self.processor, self.image_token_id = processor, image_token_id
        self.nests = False

    def __call__(
        self, texts: Sequence[str], images: Sequence[Image.Image], answered: Sequence[bool]
    ) -> Mapping[str, Any]:
        """Ids of each stretch, neither padded nor cut, and what else there is.

        Args:
            texts: With the processor's own placeholder where a picture stands.
            images: In the order of their placeholders.
            answered: Whether a stretch is an answer, or stands behind one.
        """
        if not self._leaves_texts:
            return self._written(texts, images, answered)
        encoded = self._processed(texts, images)
        if images and self._groups_by_text:
            encoded = {key: _laid_end_to_end(key, value, self._shown(encoded)) for key, value in encoded.items()}
        return encoded

    def _processed(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Mapping[str, Any]:
        if not self.nests:
            try:
                return self.processor(text=list(texts), images=list(images) or None, **PLAIN)
            except ValueError:
                if not images:
                    raise
        found = self.processor(text=list(texts), images=self._by_text(texts, images) if images else None, **PLAIN)
        self.nests = True
        return found

    def _by_text(self, texts: Sequence[str], images: Sequence[Image.Image]) -> list[list[Image.Image]]:
        rest = iter(images)
        return [[next(rest) for _ in range(text.count(self.processor.image_token))] for text in texts]

    def _written(self, texts: Sequence[str], images: Sequence[Image.Image], answered: Sequence[bool]) -> dict[str, Any]:
        mark = self.processor.image_token
        vision: dict[str, Any] = {}
        pictures: list[list[int]] = []
        if images:
            vision = dict(self.processor(text=[mark] * len(images), images=list(images), **PLAIN))
            pictures = [[each for each in ids if each == self.image_token_id] for ids in vision["input_ids"]]
            width = len(vision["input_ids"])
            vision = {key: value for key, value in vision.items() if not _tokenwise(key, value, width)}
        rest, ids = iter(pictures), []
        for text in texts:
            first, *others = text.split(mark)
            parts = [self._plain(first)]
            for part in others:
                parts += [next(rest), self._plain(part)]
            ids.append([token for part in parts for token in part])
        if self._marks_answers:
            vision["token_type_ids"] = [[int(late)] * len(each) for late, each in zip(answered, ids, strict=True)]
        return {"input_ids": ids, **vision}

    def _plain(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def _shown(self, encoded: Mapping[str, Any]) -> list[int]:
        """Placeholders of patches in each stretch."""
        return [list(ids).count(self.image_token_id) for ids in encoded["input_ids"]]

    @cached_property
    def _leaves_texts(self) -> bool:
        """Whether the processor makes of a text without pictures what its tokenizer does."""
        try:
            found = self.processor(text=["a b"], images=None, **PLAIN)["input_ids"]
        except ValueError:
            return False
        return [list(each) for each in found] == [self._plain("a b")]

    @cached_property
    def _marks_answers(self) -> bool:
        """Whether token types say which tokens are an answer: to the model, all others are seen from both sides."""
        return "suffix" in signature(self.processor.__call__).parameters

    @cached_property
    def _groups_by_text(self) -> bool:
        """Whether all pictures of a text are one row of what the image processor returns, filled up with empty ones."""
        picture = Image.new("RGB", (32, 32))
        found = self.processor.image_processor(images=[picture, picture], return_tensors="pt")
        values = found.get("pixel_values")
        return isinstance(values, Tensor) and values.dim() >= 5 and len(values) == 1


def _tokenwise(key: str, value: Any, width: int) -> bool:
    return key in ("input_ids", "labels") or (key.endswith(("_mask", "_ids")) and len(value) == width)


def _laid_end_to_end(key: str, value: Any, shown: Sequence[int]) -> Any:
    """Tiles (S, M, ...) of S stretches as rows of one tile each, (tiles, 1, ...), without those that fill up.

    Args:
        shown: Placeholders in each stretch; a tile has as many as any other.
    """
    if not key.startswith("pixel_") or len(value) != len(shown):
        return value
    rows = [tile for row, count in zip(value, shown, strict=True) for tile in row[: count * len(row) // max(shown)]]
    return [tile[None] for tile in rows]
