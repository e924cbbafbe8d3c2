"""Evaluator: the base class; a subclass writes ``evaluate`` and names what it requires of the data."""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torchmetrics import MeanMetric

from alignlab.backbones import Backbone
from alignlab.backbones.pictures import open_image
from alignlab.batch import Content, Example, Turn
from alignlab.data.base import AlignmentData, Split, check_supplies
from alignlab.errors import InputError
from alignlab.evaluation.blindfolds import BLINDFOLDS, Blindfold
from alignlab.functional import normalize
from alignlab.modules.parted import evaluating

OnBatch = Callable[[int, int], None]
"""Called with (done, all) after every batch."""

MAX_SIDE = 512
"""Pictures kept for reading, not for measuring, are made no larger than this many pixels a side."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Args:
        scores: Name -> number, without the evaluator's own prefix; never NaN.
        items: One for each thing judged, in order: ``id`` and ``score`` always, higher is better; ``prompt``,
            ``output``, ``reference`` and ``picture`` (None but for the first few) where a text was written. Where
            scores are means over items, ``metrics`` says what the item adds to which, by the score's name. Where one
            was weighed, ``weights``, pairs of a token's text and its weight, and ``bounds``, the least and the largest.
    """

    scores: dict[str, float]
    items: list[dict[str, Any]]


class Evaluator(ABC):
    """One way to judge a backbone on the first examples of a split, in evaluation mode and without gradients.

    The blind audit judges the same examples again without sight of what they are about; what is scored then was not
    seen. Its scores are called ``blind/<how>/<score>``, where how is

    - ``shuffled_images``: every example has another one's picture, of another caption (left out, with a warning, where
      more than half of the examples share one caption);
    - ``text_only``: there are no pictures;
    - ``length_only`` and ``bag_of_words``: no backbone answers, but what the judged data's train split tells about
      questions of this length, or about these words; of two captions, length prefers the shorter.

    Args:
        num_examples: Examples to judge; all of the split, where it has fewer.
        batch_size: Sequences a forward pass.
        split: The split to judge on.
        data: Data of the evaluator's own, judged instead of the experiment's, e.g. another language.
        label: The prefix of the scores; None: the class's name. With it two evaluators of one class stand side by side.
        blind: Also give the scores of the blind audit.
    """

    name: ClassVar[str]
    """The prefix of the scores, unless a label is given."""

    requires: ClassVar[tuple[str, ...]]
    """The fields of ``Example`` that it reads."""

    generative: ClassVar[bool] = True
    """Whether it needs a backbone that generates texts, or says how likely they are; embeddings alone do if not."""

    blindfolds: ClassVar[tuple[Blindfold, ...]] = ()
    """How the blind audit changes the examples. Whoever can be judged by text only asks about pictures otherwise."""

    def __init__(
        self,
        *,
        num_examples: int = 256,
        batch_size: int = 64,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
        blind: bool = False,
    ) -> None:
        if num_examples < 1 or batch_size < 1:
            given = f"{num_examples = }, {batch_size = }"
            raise InputError(f"{type(self).__name__} needs num_examples >= 1 and batch_size >= 1, got {given}")
        if label is not None and not re.fullmatch(r"[\w-]+", label):
            raise InputError(f"{type(self).__name__}: its label names files: letters, digits, - and _, got {label!r}")
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.split = split
        self.data = data
        self.label = self.name if label is None else label
        self.blind = blind

    @abstractmethod
    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        """Judge the backbone on the examples, of which there is at least one."""

    def baselines(self, data: AlignmentData, examples: list[Example]) -> Mapping[str, dict[str, float]]:
        """Scores of what answers by the words alone, for the blind audit: how -> scores; by default none."""
        return {}

    def judged(self, data: AlignmentData) -> AlignmentData:
        """The data that are judged: its own, else those given."""
        return data if self.data is None else self.data

    def __call__(self, backbone: Backbone, data: AlignmentData, *, on_batch: OnBatch | None = None) -> Evaluation:
        """Judge a backbone; it comes back in the mode it came in.

        Raises:
            InputError: Data or backbone lack what is required, or the split is empty.
        """
        data = self.judged(data)
        self.check(data)
        self.check_backbone(backbone)
        examples = self._examples(data)
        rounds = len(self.blindfolds) + 1 if self.blind else 1

        def progress(number: int) -> OnBatch:
            return lambda done, total: on_batch(number * total + done, rounds * total) if on_batch else None

        with evaluating(backbone), torch.no_grad():
            sighted = self.evaluate(backbone, data, examples, progress(0))
            found: dict[str, Mapping[str, float]] = {}
            for number, how in enumerate(self.blindfolds if self.blind else (), start=1):
                if blinded := BLINDFOLDS[how](examples):
                    found[how] = self.evaluate(backbone, data, blinded, progress(number)).scores
                else:
                    warnings.warn(f"{self.label}: no {how}: over half of the examples share one caption", stacklevel=2)
            found |= self.baselines(data, examples) if self.blind else {}
        blind = {f"blind/{how}/{name}": score for how, scores in found.items() for name, score in scores.items()}
        return Evaluation(sighted.scores | blind, sighted.items)

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        """Raise InputError if the data do not supply what is required, or lack the split."""
        check_supplies(type(self).__name__, self.requires, data)
        if self.split not in data.splits:
            whose = data.__name__ if isinstance(data, type) else type(data).__name__
            has = ", ".join(data.splits)
            raise InputError(f"{type(self).__name__} judges the {self.split} split, but {whose} has only {has}")

    def check_backbone(self, backbone: Backbone) -> None:
        """Raise InputError if the backbone cannot do what is judged; its weights may not have been read yet."""
        if self.generative and not isinstance(backbone, Backbone):
            raise InputError(
                f"{type(self).__name__} needs a backbone that generates text, but {backbone.path} is a dual encoder, "
                "which only embeds; leave it out, or judge by Retrieval or Composition(by=similarity)"
            )

    def _examples(self, data: AlignmentData) -> list[Example]:
        who, examples = type(self).__name__, data.first(self.split, self.num_examples)
        if not examples:
            raise InputError(f"{who}: the {self.split} split of {type(data).__name__} is empty")
        if "text_only" in self.blindfolds and (unseen := [example.id for example in examples if not example.images]):
            raise InputError(f"{who} asks about pictures, but example {unseen[0]!r} has none")
        return examples

    def answers(
        self, backbone: Backbone, asked: Sequence[tuple[Example, str]], max_new_tokens: int, on_batch: OnBatch
    ) -> Iterator[str]:
        """Greedy answers to prompts, each about its example's first picture, if it has one."""
        for part in self.batches(asked, on_batch):
            turns = [(Turn("user", (*example.images[:1], prompt)),) for example, prompt in part]
            tokens = backbone.encoder.prompts(turns).to(backbone.device)
            yield from backbone.generate(tokens, max_new_tokens=max_new_tokens)

    def embeddings(self, backbone: Backbone, contents: Sequence[Content], on_batch: OnBatch) -> Tensor:
        """Embeddings of contents, normalised, on the CPU. (number of contents, D)"""
        vectors = []
        for part in self.batches(contents, on_batch):
            tokens = backbone.encoder.contents(part).to(backbone.device)
            vectors.append(normalize(backbone.embed(tokens)).cpu())
        return torch.cat(vectors)

    def batches(self, things: Sequence[Any], on_batch: OnBatch) -> Iterator[Sequence[Any]]:
        """Cut into batches; each is reported when the next one is asked for."""
        for start in range(0, len(things), self.batch_size):
            part = things[start : start + self.batch_size]
            yield part
            on_batch(start + len(part), len(things))


def mean(values: Iterable[float]) -> float:
    """Mean of at least one value, in float64."""
    return MeanMetric().set_dtype(torch.float64)(torch.tensor(list(values), dtype=torch.float64)).item()


def thumbnail(example: Example) -> Image.Image | None:
    """An example's first picture for a report, if it has one."""
    if not example.images:
        return None
    image = open_image(example.images[0]).copy()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image
