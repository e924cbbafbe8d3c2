"""asking: what evaluators that ask every question of an example by itself share."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from alignlab.batch import Example, Question
from alignlab.data.base import AlignmentData, Split
from alignlab.evaluation.base import Evaluator, thumbnail


class Asked(NamedTuple):
    """A question of an example.

    Args:
        id: The example's, with the place of the question among its questions.
    """

    id: str
    example: Example
    question: Question

    @property
    def prompt(self) -> tuple[Example, str]:
        return self.example, self.question.text


class Asking(Evaluator):
    """An evaluator of greedy answers to questions.

    Args:
        num_examples: Examples whose questions are asked.
        max_new_tokens: Longest answer in tokens.
        num_pictures: Items that keep their picture, for a report.
    """

    blindfolds = ("shuffled_images", "text_only")

    def __init__(
        self,
        *,
        num_examples: int = 256,
        max_new_tokens: int = 8,
        batch_size: int = 64,
        num_pictures: int = 12,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
        blind: bool = False,
    ) -> None:
        super().__init__(
            num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label, blind=blind
        )
        self.max_new_tokens = max_new_tokens
        self.num_pictures = num_pictures


def answered(
    asked: Sequence[Asked],
    outputs: Sequence[str],
    scores: Sequence[float],
    metrics: Sequence[Collection[str]],
    num_pictures: int,
) -> list[dict[str, Any]]:
    """One item for each question, the first few with their picture.

    Args:
        metrics: Names of those to which each question's score adds.
    """
    return [
        {
            "id": each.id,
            "score": score,
            "metrics": dict.fromkeys(names, score),
            "prompt": each.question.text,
            "output": output,
            "reference": each.question.answer,
            "picture": thumbnail(each.example) if index < num_pictures else None,
        }
        for index, (each, output, score, names) in enumerate(zip(asked, outputs, scores, metrics, strict=True))
    ]
