"""LocalizationError: how far from its object a backbone points for each word of an answer."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.backbones.pictures import open_image
from alignlab.backbones.words import answer_texts
from alignlab.batch import Box, Example, Point, Tokens
from alignlab.data.base import AlignmentData
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean


@runtime_checkable
class Pointing(Protocol):
    """A backbone that says where in the picture what each token names is."""

    def points(self, tokens: Tokens) -> Tensor:
        """(B, T, 2) in [0, 1], x right, y down, each for the token at its position."""


class Pointed(NamedTuple):
    """One word: how far the point is from the true one, in image widths, and whether it lies in the word's box."""

    distance: float
    inside: bool | None


class LocalizationError(Evaluator):
    """Mean distance between the backbone's point for a word and the true one, given the true answer.

    ``distance`` is the mean over words that have a true point, in image widths; a word's point is the mean of its
    tokens' points, and one that is not a number is as far away as the picture is large. Lower is better; the score of
    an item is minus the mean distance of one example. ``inside``, where the data know boxes, is the share of words
    whose point lies in their object's box: the smallest one that holds the true point. Words that ``max_length`` cuts
    off are not judged. Without a picture, in the blind audit, the picture counts as square.
    """

    name = "localization"
    requires = ("conversation", "points")
    blindfolds = ("shuffled_images", "text_only")

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if isinstance(data, type):
            return
        examples = self._examples(data)
        if not any(point is not None for example in examples for point in example.points):
            raise InputError(
                f"LocalizationError: the {len(examples)} {self.split} examples of {type(data).__name__} hold no word "
                "with a point; answers that name what is seen do, such as those of Scenes(tasks=[caption])"
            )

    def check_backbone(self, backbone: Backbone) -> None:
        if not isinstance(backbone, Pointing):
            raise InputError(
                "LocalizationError needs a backbone that points: one with a method points(tokens), which this one has "
                "not; train it with an objective that gives it one, or leave the evaluator out"
            )

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        pointed: list[Pointed] = []
        items = []
        for part in self.batches(examples, on_batch):
            tokens, words = backbone.encoder.words([(example.id, example.conversation) for example in part])
            points = backbone.points(tokens.to(backbone.device)).cpu().double()
            for example, row, places in zip(part, words, points, strict=True):
                found = judge(example, row, places)
                pointed += found
                if found:
                    items.append({"id": example.id, "score": -mean(word.distance for word in found)})
        if not pointed:
            raise InputError(f"LocalizationError: the {len(examples)} {self.split} examples hold no word with a point")
        scores = {"distance": mean(word.distance for word in pointed)}
        if boxed := [word.inside for word in pointed if word.inside is not None]:
            scores["inside"] = mean(boxed)
        return Evaluation(scores, items)


def judge(example: Example, words: Tensor, points: Tensor) -> list[Pointed]:
    """Judge the points for an example's words, in order, where there is a true one.

    Args:
        words: (T,) long, which word of the last answer each token belongs to, -1 where none.
        points: (T, 2).

    Raises:
        InputError: There is not one true point, or None, for each word.
    """
    count = sum(len(text.split()) for text in answer_texts(example.conversation))
    if len(example.points) != count:
        raise InputError(
            f"example {example.id!r} has {len(example.points)} points, but its last answer has {count} words; "
            "it needs one, or None, for each word between white space"
        )
    width, height = open_image(example.images[0]).size if example.images else (1, 1)
    farthest = math.hypot(1, height / width)
    found = []
    for index, true in enumerate(example.points):
        tokens = words == index
        if true is None or not tokens.any():
            continue
        x, y = points[tokens].mean(0).tolist()
        distance = math.hypot(x - true[0], (y - true[1]) * height / width)
        box = _around(true, example.boxes)
        inside = None if box is None else _holds(box, (x, y))
        found.append(Pointed(distance if math.isfinite(distance) else farthest, inside))
    return found


def _around(point: Point, boxes: Sequence[Box]) -> Box | None:
    """The smallest box that holds the point."""
    holding = [box for box in boxes if _holds(box, point)]
    return min(holding, key=lambda box: (box.right - box.left) * (box.bottom - box.top), default=None)


def _holds(box: Box, point: Point) -> bool:
    return box.left <= point[0] <= box.right and box.top <= point[1] <= box.bottom
