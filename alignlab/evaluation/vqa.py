"""VQAAccuracy: greedy answers to questions about pictures, by kind of question."""

from collections.abc import Mapping, Sequence

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData
from alignlab.data.comparing import tidy
from alignlab.errors import InputError
from alignlab.evaluation.asking import Asked, Asking, answered
from alignlab.evaluation.base import Evaluation, OnBatch, mean
from alignlab.evaluation.language import guesses, train_examples


class VQAAccuracy(Asking):
    """How often a greedy answer is the right one: ``accuracy``, and one score a kind.

    Right is what equals the question's answer but for case, white space and the data's synonyms (``data.canonical``).
    Every question of every example is asked by itself. ``accuracy`` counts questions, not kinds, equally.
    """

    name = "vqa"
    requires = ("questions",)

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        asked = _asked(examples)
        if not asked:
            raise InputError(f"VQAAccuracy: the {len(examples)} {self.split} examples hold no question")
        outputs = list(self.answers(backbone, [each.prompt for each in asked], self.max_new_tokens, on_batch))
        right = _right(asked, outputs, data.canonical)
        metrics = [("accuracy", each.question.kind) for each in asked]
        return Evaluation(_by_kind(asked, right), answered(asked, outputs, right, metrics, self.num_pictures))

    def baselines(self, data: AlignmentData, examples: list[Example]) -> Mapping[str, dict[str, float]]:
        asked = _asked(examples)
        learned = [question for example in train_examples(data) for question in example.questions]
        answers = guesses(learned, [each.question for each in asked])
        return {how: _by_kind(asked, _right(asked, said, data.canonical)) for how, said in answers.items()}


def _asked(examples: Sequence[Example]) -> list[Asked]:
    return [Asked(f"{e.id}-{index}", e, question) for e in examples for index, question in enumerate(e.questions)]


def _right(asked: Sequence[Asked], outputs: Sequence[str], synonyms: Mapping[str, str]) -> list[float]:
    pairs = zip(asked, outputs, strict=True)
    return [float(tidy(output, synonyms) == tidy(each.question.answer, synonyms)) for each, output in pairs]


def _by_kind(asked: Sequence[Asked], right: Sequence[float]) -> dict[str, float]:
    kinds = sorted({each.question.kind for each in asked})
    of = {kind: [r for each, r in zip(asked, right, strict=True) if each.question.kind == kind] for kind in kinds}
    return {"accuracy": mean(right)} | {kind: mean(scores) for kind, scores in of.items()}
