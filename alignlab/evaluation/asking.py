"""asking: what evaluators that ask questions share."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from alignlab.batch import Example, Question
from alignlab.evaluation.base import thumbnail


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


def answered(
    asked: Sequence[Asked], outputs: Sequence[str], scores: Sequence[float], num_pictures: int
) -> list[dict[str, Any]]:
    """One item for each question, the first few with their picture."""
    return [
        {
            "id": each.id,
            "score": score,
            "prompt": each.question.text,
            "output": output,
            "reference": each.question.answer,
            "picture": thumbnail(each.example) if index < num_pictures else None,
        }
        for index, (each, output, score) in enumerate(zip(asked, outputs, scores, strict=True))
    ]
