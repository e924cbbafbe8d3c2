"""Example and Batch: the two types that flow through everything.

Shape legend of the whole package: B samples, T tokens, N visual tokens, D width, V vocabulary, K candidates or codes,
L generated length, H W pixels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from PIL import Image
from torch import Tensor

from alignlab.errors import InputError

IGNORE = -100
"""The label of a token that is not trained on."""

PICTURES = ("pixel_", "image_", "spatial_", "batch_num_")
"""How the names begin of what a processor returns for each picture."""


@dataclass(frozen=True)
class PictureBytes:
    """The file of a picture, read from within a larger file.

    Args:
        content: The bytes of the file.
        name: Where they are from, for messages and to tell pictures apart.
    """

    content: bytes = field(repr=False)
    name: str

    def __str__(self) -> str:
        return self.name


Part = str | Image.Image | Path | PictureBytes
"""One part of a content: a text, a picture, or the file of a picture (decoded when it is encoded)."""

Content = tuple[Part, ...]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Content


@dataclass(frozen=True)
class Question:
    """A question about the example's picture, with its only right answer."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Foil:
    """A true caption of a picture and a false one, which differ in one thing.

    Args:
        kind: What was done to the true one, e.g. ``swap_attribute``.
    """

    true: str
    false: str
    kind: str


@dataclass(frozen=True)
class Box:
    """An object and its place: edges in [0, 1], in shares of the picture's width and height, x right, y down."""

    name: str
    left: float
    top: float
    right: float
    bottom: float


Role = Literal["visual", "filler", "contradictory"]
"""What a word of an answer is to its picture: read off it, said whatever it shows, or false of it."""

ROLES: tuple[Role, ...] = get_args(Role)

Point = tuple[float, float]
"""x right, y down, in [0, 1]."""


@dataclass(frozen=True)
class Example:
    """One raw record, before any tokenizer. A field that a data set does not have stays empty.

    Args:
        id: Unique within the split; random noise and cached results are keyed by it.
        conversation: Turns in order; assistant turns are what likelihood trains on.
        query: The side that searches, e.g. a picture and an instruction.
        target: The side to be found.
        negatives: Contents close to ``target`` that are wrong for ``query``.
        captions: Right captions of the picture, the canonical one first.
        embedding: What a teacher makes of ``target``, in the teacher's own width.
        foils: Pairs of a right and a wrong caption, at most one of a kind.
        questions: Questions about the picture.
        existence: Questions whether an object is there, of the kinds ``present`` (answer yes), ``random``, ``popular``
            and ``adversarial`` (answer no), in the sense of POPE (Li et al. 2023, https://arxiv.org/abs/2305.10355).
        text: A conversation without pictures, which asks for what a language model knows by itself.
        rejected: An answer worse than the conversation's last one.
        boxes: Objects of the picture.
        roles: One for each word (between white space) of the conversation's last answer.
        points: For each word of the conversation's last answer, where in the picture what it names is, or None.
        group: Examples of one group are right for each other, so they are no negatives of each other.
        source: The data set the record comes from.
        truth: What the data set knows beyond the record (the lab's scene, say); never seen by a model.
    """

    id: str
    conversation: tuple[Turn, ...] = ()
    query: Content = ()
    target: Content = ()
    negatives: tuple[Content, ...] = ()
    captions: tuple[str, ...] = ()
    embedding: tuple[float, ...] = ()
    foils: tuple[Foil, ...] = ()
    questions: tuple[Question, ...] = ()
    existence: tuple[Question, ...] = ()
    text: tuple[Turn, ...] = ()
    rejected: Content = ()
    boxes: tuple[Box, ...] = ()
    roles: tuple[Role, ...] = ()
    points: tuple[Point | None, ...] = ()
    group: str = ""
    source: str = ""
    truth: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def answering(cls, id: str, image: Part, prompt: str, answer: str, **fields: Any) -> Self:
        """One picture, one prompt, one answer."""
        turns = (Turn("user", (image, prompt)), Turn("assistant", (answer,)))
        return cls(id, conversation=turns, **fields)

    @property
    def images(self) -> tuple[Part, ...]:
        """The pictures of the conversation, or where it has none, those of the query."""
        shown = tuple(part for turn in self.conversation for part in turn.content if not isinstance(part, str))
        return shown or tuple(part for part in self.query if not isinstance(part, str))

    def phrased(self, caption: str) -> Content:
        """A caption in the form of the target: in place of the part that is one of the example's captions.

        Where no part is, it stands in place of the first text; where there is no text, alone.
        """
        texts = [part for part in self.target if isinstance(part, str)]
        if not texts:
            return (caption,)
        said = next((text for text in texts if text in self.captions), texts[0])
        return tuple(caption if part == said else part for part in self.target)


@dataclass(frozen=True)
class Tokens:
    """One token sequence a sample, as a backbone reads it.

    Args:
        input_ids: (B, T) long, image placeholders in place.
        attention_mask: (B, T) long, 1 at real tokens; padding may stand on either side.
        labels: (B, T) long, unshifted; -100 where not trained on.
        image_mask: (B, T) bool, True at image placeholders.
        vision: What the processor returned beside the ids, unknown keys included, exactly as it came.
        num_images: (B,) long; lets a batch be cut where the processor flattens the pictures of all samples.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    image_mask: Tensor
    vision: Mapping[str, Any]
    num_images: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return _map_tensors(self, Tensor.pin_memory)

    def select(self, rows: Tensor) -> Self:
        """These samples, (M,) long, in this order, with their own pictures and without padding that all of them have.

        Raises:
            InputError: It cannot be known whose a part of the vision inputs is.
        """
        columns = _used(self.attention_mask[rows])
        aligned = ("input_ids", "attention_mask", "labels", "image_mask")
        cut = {name: getattr(self, name)[rows, columns] for name in aligned}
        return replace(self, **cut, num_images=self.num_images[rows], vision=self._vision(rows, columns))

    def along(self) -> dict[str, Tensor]:
        """What of the vision inputs goes along with the tokens, (B, T, ...)."""
        return {
            key: value
            for key, value in self.vision.items()
            if isinstance(value, Tensor) and value.shape[:2] == self.input_ids.shape and not key.startswith("pixel_")
        }

    def rows_of(self, key: str, samples: Tensor) -> Tensor | None:
        """Which rows of a vision input are these samples', (M,) long, sample by sample: (K,) long; None: not known."""
        size = len(self.vision[key])
        pictures = _belonging(self.num_images, samples)
        num_pictures, even = int(self.num_images.sum()), bool((self.num_images == 1).all())
        grid = self.vision.get("image_grid_thw")  # where a picture is as many rows as it has patches
        if size == num_pictures and (size != len(self) or key.startswith(PICTURES)):
            return pictures
        if size == len(self) and even:
            return samples
        if grid is not None and size == int(grid.prod(-1).sum()):
            return _belonging(grid.prod(-1), pictures)
        return self._tiles_of(size, samples) if key.startswith(PICTURES) else None

    def _tiles_of(self, size: int, samples: Tensor) -> Tensor | None:
        """The same where pictures are cut into tiles, each with as many placeholders as any other."""
        shown = self.image_mask.sum(1)  # (B,)
        each, rest = divmod(int(shown.sum()), size) if size else (0, 0)
        if not each or rest or bool((shown % each).any()):
            return None
        return _belonging(shown // each, samples)

    def _vision(self, rows: Tensor, columns: slice) -> dict[str, Any]:
        along, vision = self.along(), {}
        for key, value in self.vision.items():
            if not isinstance(value, Tensor | list):
                vision[key] = value
            elif key in along:
                vision[key] = value[rows, columns]
            elif (own := self.rows_of(key, rows)) is not None:
                vision |= _chosen(key, value, own)
            else:
                raise InputError(
                    f"a batch of {len(self)} samples with {int(self.num_images.sum())} pictures cannot be cut, as it "
                    f"is not known whose the {len(value)} rows of its {key} are; set chunk_size to null"
                )
        return vision


@dataclass(frozen=True)
class Batch:
    """B encoded examples: the token sequences that the objective named in ``requires``; the others are None.

    Args:
        ids: B example ids.
        conversation: The whole conversation, labels on the assistant's turns.
        query: The query side alone.
        target: The target side alone.
        rejected: The conversation with its last answer replaced by the rejected one.
        negatives: All negatives of all samples, one after the other; None where there are none.
        num_negatives: (B,) long, how many rows of ``negatives`` belong to each sample.
        captions: All captions of all samples, in the form of their targets, one after the other.
        num_captions: (B,) long, how many rows of ``captions`` belong to each sample.
        embedding: (B, E), a teacher's embedding of each target.
        roles: (B, T) long, along ``conversation``: the place in ``ROLES`` of the last answer's tokens; -1 elsewhere.
        groups: B names; the samples of one group are right for each other.
        prompt_lengths: (B,) long, real tokens before the last answer, of ``conversation`` and of ``rejected`` alike.
        answer_lengths: (2, B) long, tokens of those two answers, before they were cut to the longest sequence.
        sources: B names of data sets; empty where a batch is none of a loader's.
        skipped: Ids of examples that could not be read, and that others of the batch stand in for.
    """

    ids: tuple[str, ...]
    conversation: Tokens | None = None
    query: Tokens | None = None
    target: Tokens | None = None
    rejected: Tokens | None = None
    negatives: Tokens | None = None
    num_negatives: Tensor | None = None
    captions: Tokens | None = None
    num_captions: Tensor | None = None
    embedding: Tensor | None = None
    roles: Tensor | None = None
    groups: tuple[str, ...] | None = None
    prompt_lengths: Tensor | None = None
    answer_lengths: Tensor | None = None
    sources: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Tokens]:
        """The sequences that are present."""
        sequences = (self.conversation, self.query, self.target, self.rejected, self.negatives, self.captions)
        return (tokens for tokens in sequences if tokens is not None)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return _map_tensors(self, Tensor.pin_memory)


def _used(mask: Tensor) -> slice:
    """The columns from the first to the last that any row of the mask (M, T) has."""
    if not mask.shape[1]:  # pictures alone, which a dual encoder reads without a token
        return slice(0, 0)
    used = mask.any(0).long()
    first, behind = torch.stack([used.argmax(), used.flip(0).argmax()]).tolist()
    return slice(first, len(used) - behind)


def _belonging(counts: Tensor, rows: Tensor) -> Tensor:
    """Where the things of these rows stand among those of all, each row having so many; row by row, (K,) long."""
    before, num = (counts.cumsum(0) - counts)[rows], counts[rows]
    within = torch.arange(int(num.sum()), device=num.device) - (num.cumsum(0) - num).repeat_interleave(num)
    return before.repeat_interleave(num) + within


def _chosen(key: str, value: Tensor | list, index: Tensor) -> dict[str, Tensor | list]:
    """The value's rows; nothing at all where there are none, as a processor returns it for texts alone."""
    if not len(index):
        return {}
    return {key: value[index] if isinstance(value, Tensor) else [value[place] for place in index.tolist()]}


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    if isinstance(value, Tokens | Batch):
        return replace(value, **{name: _map_tensors(item, function) for name, item in vars(value).items()})
    return value
