"""VQAAccuracy: greedy answers to questions about pictures, by kind of question."""

from collections import defaultdict
from typing import Literal

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean, thumbnail, tidy


class VQAAccuracy(Evaluator):
    """How often a greedy answer is the right one but for case and white space: ``accuracy``, and one score a kind.

    Every question of every example is asked by itself. ``accuracy`` counts questions, not kinds, equally.

    Args:
        num_examples: Examples whose questions are asked.
        max_new_tokens: Longest answer in tokens.
        num_pictures: Items that keep their picture, for a report.
    """

    name = "vqa"
    requires = ("questions",)

    def __init__(
        self,
        *,
        num_examples: int = 256,
        max_new_tokens: int = 8,
        batch_size: int = 64,
        num_pictures: int = 12,
        split: Literal["train", "val", "test"] = "test",
    ) -> None:
        super().__init__(num_examples=num_examples, batch_size=batch_size, split=split)
        self.max_new_tokens = max_new_tokens
        self.num_pictures = num_pictures

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        asked = [(example, index) for example in examples for index in range(len(example.questions))]
        if not asked:
            raise InputError(f"VQAAccuracy: the {len(examples)} {self.split} examples hold no question")
        prompts = [(example, example.questions[index].text) for example, index in asked]
        items, by_kind = [], defaultdict(list)
        answers = self.answers(backbone, prompts, self.max_new_tokens, on_batch)
        for (example, index), output in zip(asked, answers, strict=True):
            question = example.questions[index]
            score = float(tidy(output) == tidy(question.answer))
            by_kind[question.kind].append(score)
            items.append(
                {
                    "id": f"{example.id}-{index}",
                    "score": score,
                    "prompt": question.text,
                    "output": output,
                    "reference": question.answer,
                    "picture": thumbnail(self.picture(example)) if len(items) < self.num_pictures else None,
                }
            )
        scores = {"accuracy": mean(item["score"] for item in items)}
        return Evaluation(scores | {kind: mean(by_kind[kind]) for kind in sorted(by_kind)}, items)
