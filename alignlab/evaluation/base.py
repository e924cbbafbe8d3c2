"""Evaluator: the base class; a subclass writes ``evaluate`` and names what it requires of the data."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torchmetrics import MeanMetric

from alignlab.backbones import Backbone
from alignlab.backbones.pictures import open_image
from alignlab.batch import Example, Turn
from alignlab.data.base import AlignmentData, Split, check_supplies
from alignlab.errors import InputError

OnBatch = Callable[[int, int], None]
"""Called with (done, all) after every batch."""

MAX_SIDE = 512
"""Pictures kept for reading, not for measuring, are made no larger than this many pixels a side."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluator found.

    Args:
        scores: Name -> number, without the evaluator's own name; never NaN.
        items: One for each thing judged, in order: ``id`` and ``score`` always; ``prompt``, ``output``, ``reference``
            and ``picture`` (None but for the first few) where a text was written.
    """

    scores: dict[str, float]
    items: list[dict[str, Any]]


class Evaluator(ABC):
    """One way to judge a backbone on the first examples of a split, in evaluation mode and without gradients.

    Args:
        num_examples: Examples to judge; all of the split, where it has fewer.
        batch_size: Sequences a forward pass.
        split: The split to judge on.
    """

    name: ClassVar[str]
    """The prefix of the scores."""

    requires: ClassVar[tuple[str, ...]]
    """The fields of ``Example`` that it reads."""

    def __init__(self, *, num_examples: int, batch_size: int, split: Split) -> None:
        if num_examples < 1 or batch_size < 1:
            given = f"{num_examples = }, {batch_size = }"
            raise InputError(f"{type(self).__name__} needs num_examples >= 1 and batch_size >= 1, got {given}")
        self.num_examples = num_examples
        self.batch_size = batch_size
        self.split = split

    @abstractmethod
    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        """Judge the backbone on the examples, of which there is at least one."""

    def __call__(self, backbone: Backbone, data: AlignmentData, *, on_batch: OnBatch | None = None) -> Evaluation:
        """Judge a backbone; it comes back in the mode it came in.

        Raises:
            InputError: The data lack what is required, or the split is empty.
        """
        self.check(data)
        split = data.examples(self.split)
        examples = [split[index] for index in range(min(self.num_examples, len(split)))]
        if not examples:
            raise InputError(f"{type(self).__name__}: the {self.split} split of {type(data).__name__} is empty")
        with evaluating(backbone), torch.no_grad():
            return self.evaluate(backbone, data, examples, on_batch or (lambda done, total: None))

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        """Raise InputError if the data do not supply what is required."""
        check_supplies(type(self).__name__, self.requires, data)

    def answers(
        self, backbone: Backbone, asked: Sequence[tuple[Example, str]], max_new_tokens: int, on_batch: OnBatch
    ) -> Iterator[str]:
        """Greedy answers to prompts, each about its example's first picture."""
        for start in range(0, len(asked), self.batch_size):
            part = asked[start : start + self.batch_size]
            turns = [(Turn("user", (self.picture(example), prompt)),) for example, prompt in part]
            tokens = backbone.encoder.prompts(turns).to(backbone.device)
            yield from backbone.generate(tokens, max_new_tokens=max_new_tokens)
            on_batch(start + len(part), len(asked))

    def picture(self, example: Example) -> Any:
        """The example's first picture."""
        if not example.images:
            raise InputError(f"{type(self).__name__} asks about pictures, but example {example.id!r} has none")
        return example.images[0]


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a while; each submodule then gets its own former mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def mean(values: Iterable[float]) -> float:
    """Mean of at least one value, in float64."""
    return MeanMetric().set_dtype(torch.float64)(torch.tensor(list(values), dtype=torch.float64)).item()


def tidy(text: str) -> str:
    """Lower case, single spaces, none at the ends."""
    return " ".join(text.lower().split())


def thumbnail(part: Any) -> Image.Image:
    """A picture for a report."""
    image = open_image(part).copy()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image
