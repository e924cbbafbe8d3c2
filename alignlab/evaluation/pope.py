"""POPE: is an object there? Hallucination as the share of absent objects that a backbone says it sees."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData
from alignlab.errors import InputError
from alignlab.evaluation.asking import Asked, Asking, answered
from alignlab.evaluation.base import Evaluation, OnBatch, mean
from alignlab.evaluation.language import guesses, train_examples

ABSENT = ("random", "popular", "adversarial")
"""The kinds of questions for what is not there, and the splits they make."""

PRESENT = "present"


class POPE(Asking):
    """Yes-or-no questions whether an object is there (Li et al. 2023, https://arxiv.org/abs/2305.10355).

    For each of the splits ``random``, ``popular`` and ``adversarial``: ``<split>_accuracy``, ``_precision``,
    ``_recall``, ``_f1`` (of the answer yes) and ``_yes_ratio``, over the questions for absent objects of that kind and
    those for present objects of the same examples. A ratio of nothing to nothing is 0, where the authors' script stops
    with an error. ``accuracy`` and ``f1`` are the means of the splits that there are. Every question is asked once.

    An answer is no if one of the words ``No``, ``no`` and ``not`` stands before its first full stop, else yes, as in
    the authors' evaluate.py. ``strict_accuracy`` and ``strict_f1``, of each split and as means, are of the same answers
    read strictly: one that does not begin with the word yes or no, in any case and after any marks, is wrong, whatever
    the truth; ``unparsed`` is the share of those. In data of another language, yes and no are the answers to the
    questions for present and for absent objects.
    """

    name = "pope"
    requires = ("existence",)

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        asked = _asked(examples)
        if not any(each.question.kind in ABSENT for each in asked):
            raise InputError(
                f"POPE: the {len(examples)} {self.split} examples hold no question of the kinds {', '.join(ABSENT)}"
            )
        outputs = list(self.answers(backbone, [each.prompt for each in asked], self.max_new_tokens, on_batch))
        texts = _english(outputs, asked)
        right = [float(says_yes(text) == _truth(each)) for text, each in zip(texts, asked, strict=True)]
        splits = _splits(asked)
        metrics = [[f"{split}_accuracy" for split, of in splits.items() if each.id in of] for each in asked]
        return Evaluation(judge_answers(asked, outputs), answered(asked, outputs, right, metrics, self.num_pictures))

    def baselines(self, data: AlignmentData, examples: list[Example]) -> Mapping[str, dict[str, float]]:
        asked = _asked(examples)
        # The kind of such a question is its answer, so it is kept from who guesses.
        learned = [replace(each.question, kind="") for each in _asked(train_examples(data))]
        if not learned:  # an empty answer would count as a yes
            return {}
        answers = guesses(learned, [replace(each.question, kind="") for each in asked])
        return {how: judge_answers(asked, outputs) for how, outputs in answers.items()}


def says_yes(answer: str) -> bool:
    """Read an answer as the authors' evaluate.py does."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def says_strictly(answer: str) -> bool | None:
    """Whether an answer begins with the word yes or no, in any case and after any marks; None where with neither."""
    found = re.match(r"[\W_]*(yes|no)(?![^\W_])", answer.lower())
    return None if found is None else found[1] == "yes"


def measures(truth: Sequence[bool], said: Sequence[bool]) -> dict[str, float]:
    """Accuracy of at least one answer, precision, recall and F1 of yes, and the share of yes; 0 where undefined."""
    pairs = list(zip(truth, said, strict=True))
    hits = sum(is_there and yes for is_there, yes in pairs)
    precision, recall = hits / max(sum(said), 1), hits / max(sum(truth), 1)
    return {
        "accuracy": mean(is_there == yes for is_there, yes in pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": mean(said),
    }


def _asked(examples: Sequence[Example]) -> list[Asked]:
    return [
        Asked(f"{example.id}-{index}", example, question)
        for example in examples
        for index, question in enumerate(example.existence)
        if question.kind in (PRESENT, *ABSENT)
    ]


def _truth(asked: Asked) -> bool:
    return asked.question.kind == PRESENT


def _splits(asked: Sequence[Asked]) -> dict[str, set[str]]:
    """The ids of each split's questions: those for its absent objects, and those for what is there beside them."""
    found = {}
    for split in ABSENT:
        examples = {each.example.id for each in asked if each.question.kind == split}
        found[split] = {e.id for e in asked if e.question.kind in (split, PRESENT) and e.example.id in examples}
    return found


def judge_answers(asked: Sequence[Asked], outputs: Sequence[str]) -> dict[str, float]:
    """The scores of answers to questions of which at least one is for an absent object."""
    texts = _english(outputs, asked)
    scores: dict[str, float] = {}
    found = []
    for split, ids in _splits(asked).items():
        rows = [(_truth(each), text) for each, text in zip(asked, texts, strict=True) if each.id in ids]
        if rows:
            found.append(_both_ways(*zip(*rows, strict=True)))
            scores |= {f"{split}_{name}": value for name, value in found[-1].items()}
    means = ("accuracy", "f1", "strict_accuracy", "strict_f1")
    scores |= {name: mean(each[name] for each in found) for name in means}
    return scores | {"unparsed": mean(says_strictly(text) is None for text in texts)}


def _both_ways(truth: Sequence[bool], texts: Sequence[str]) -> dict[str, float]:
    """The measures of answers as the authors read them, and accuracy and F1 of the same read strictly."""
    said = [says_strictly(text) for text in texts]
    strict = measures(truth, [not is_there if yes is None else yes for is_there, yes in zip(truth, said, strict=True)])
    official = measures(truth, [says_yes(text) for text in texts])
    return official | {f"strict_{name}": strict[name] for name in ("accuracy", "f1")}


def _english(outputs: Sequence[str], asked: Sequence[Asked]) -> list[str]:
    """The outputs with the data's own words for yes and no in English; English stays as it is."""
    words = {word: "yes" if _truth(each) else "no" for each in asked for word in _first(each.question.answer)}
    return [re.sub(r"\w+", lambda word: words.get(word[0], word[0]), output) for output in outputs]


def _first(answer: str) -> list[str]:
    """An answer's first word, small and capitalised; none of an empty answer."""
    return [form for word in re.findall(r"\w+", answer)[:1] for form in (word.lower(), word.capitalize())]
