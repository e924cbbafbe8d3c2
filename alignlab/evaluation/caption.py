"""CaptionAccuracy: greedy captions against the canonical ones, exactly and by attribute."""

import re
from collections.abc import Collection
from itertools import zip_longest
from typing import Literal

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean, thumbnail, tidy


class CaptionAccuracy(Evaluator):
    """How often a greedy caption is the canonical one, ``captions[0]``, and how many of its words of each attribute.

    ``exact`` is the share of captions equal to the reference but for case and white space. For each attribute of the
    data (``data.attributes``), the words of that attribute are picked out of reference and output, in order, and laid
    side by side; the score is the share of places, over all captions, where both have the same word. A word too few or
    too many is a place where they differ, so babble does not score; a word left out also shifts those after it. An
    attribute that no reference mentions has no score.

    Args:
        prompt: What is asked about the picture.
        max_new_tokens: Longest caption in tokens; a longer one is cut, and then seldom exact.
        num_pictures: Items that keep their picture, for a report.
    """

    name = "caption"
    requires = ("captions",)

    def __init__(
        self,
        *,
        prompt: str = "describe the image .",
        num_examples: int = 256,
        max_new_tokens: int = 48,
        batch_size: int = 64,
        num_pictures: int = 12,
        split: Literal["train", "val", "test"] = "test",
    ) -> None:
        super().__init__(num_examples=num_examples, batch_size=batch_size, split=split)
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.num_pictures = num_pictures

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        asked = [(example, self.prompt) for example in examples]
        items = [
            {
                "id": example.id,
                "score": float(tidy(output) == tidy(example.captions[0])),
                "prompt": self.prompt,
                "output": output,
                "reference": example.captions[0],
                "picture": thumbnail(self.picture(example)) if index < self.num_pictures else None,
            }
            for index, (example, output) in enumerate(
                zip(examples, self.answers(backbone, asked, self.max_new_tokens, on_batch), strict=True)
            )
        ]
        scores = {"exact": mean(item["score"] for item in items)}
        for attribute, words in data.attributes.items():
            pairs = [(picked(item["reference"], words), picked(item["output"], words)) for item in items]
            if any(reference for reference, _ in pairs):
                scores[attribute] = mean(a == b for pair in pairs for a, b in zip_longest(*pair))
        return Evaluation(scores, items)


def picked(text: str, words: Collection[str]) -> list[str]:
    """The text's words that are among ``words``, in order."""
    return [word for word in re.findall(r"\w+", text.lower()) if word in words]
