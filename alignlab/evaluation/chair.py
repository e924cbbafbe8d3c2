"""CHAIR: which objects of a description are not in the picture, as shares of descriptions and of mentions."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.mentions import Vocabulary, mentions
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean, thumbnail


class Told(NamedTuple):
    """A description.

    Args:
        objects: What it mentions, as often as it does.
        truth: The objects that are there.
        length: Its words.
    """

    objects: Sequence[str]
    truth: AbstractSet[str]
    length: int = 0


class CHAIR(Evaluator):
    """How often greedy descriptions mention objects that are not there (Rohrbach et al. 2018, arXiv:1809.02156).

        sentence (CHAIR_s) = descriptions with a mention of an object that is not there / descriptions
        instance (CHAIR_i) = mentions of objects that are not there / mentions

    ``recall`` is the share of the objects there that are mentioned, over all pictures; ``mentions`` and ``length`` are
    mentions and words a description: who says little is seldom wrong. Shares of nothing are 0, where the authors'
    script stops with an error; ``mentions`` is 0 then. The score of an item is 1 where no mention is wrong, else 0.

    Objects are found by ``data.objects`` as the authors' script finds them, but for tokens and singular, which are
    those of ``alignlab.data.mentions``: letters and digits in a row, and rules for English plurals. There are in a
    picture the objects that its boxes and its reference captions name. In the lab an object is a shape: one that no
    object of the scene has is not there; colours and sizes are judged by CaptionAccuracy.

    A score says nothing without the prompt, ``max_new_tokens`` and the examples; all of them are in the run's config.

    Args:
        prompt: What is asked about the picture; None: what the data ask, ``data.caption_prompt``.
        max_new_tokens: Longest description in tokens; a longer one is cut.
        num_pictures: Items that keep their picture, for a report.
    """

    name = "chair"
    requires = ("captions", "boxes")
    blindfolds = ("shuffled_images", "text_only")

    def __init__(
        self,
        *,
        prompt: str | None = None,
        num_examples: int = 256,
        max_new_tokens: int = 64,
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
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.num_pictures = num_pictures

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if not isinstance(data, type) and not data.objects.names:
            raise InputError(
                f"CHAIR finds objects by their names, but {type(data).__name__}.objects has none; Scenes and CocoJson "
                "know them, data of your own set objects to a Vocabulary"
            )

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        prompt = data.caption_prompt if self.prompt is None else self.prompt
        asked = [(example, prompt) for example in examples]
        outputs = list(self.answers(backbone, asked, self.max_new_tokens, on_batch))
        told = [
            Told(
                [mention.object for mention in mentions(output, data.objects)],
                objects_there(example, data.objects),
                len(output.split()),
            )
            for example, output in zip(examples, outputs, strict=True)
        ]
        items = [
            {
                "id": example.id,
                "score": float(not hallucinated(each)),
                "metrics": {"sentence": float(bool(hallucinated(each)))},
                "prompt": prompt,
                "output": output,
                "reference": example.captions[0],
                "picture": thumbnail(example) if index < self.num_pictures else None,
            }
            for index, (example, output, each) in enumerate(zip(examples, outputs, told, strict=True))
        ]
        return Evaluation(chair(told), items)


def objects_there(example: Example, vocabulary: Vocabulary) -> set[str]:
    """The objects that an example's boxes and captions name."""
    boxed = [vocabulary.objects(box.name) for box in example.boxes]
    captioned = [{each.object for each in mentions(caption, vocabulary)} for caption in example.captions]
    return set().union(*boxed, *captioned)


def hallucinated(told: Told) -> list[str]:
    """The mentions of what is not there."""
    return [each for each in told.objects if each not in told.truth]


def chair(told: Sequence[Told]) -> dict[str, float]:
    """The scores of at least one description."""
    wrong = [len(hallucinated(each)) for each in told]
    named = [len(each.objects) for each in told]
    found = [len(each.truth & set(each.objects)) for each in told]
    return {
        "sentence": mean(count > 0 for count in wrong),
        "instance": sum(wrong) / max(sum(named), 1),
        "recall": sum(found) / max(sum(len(each.truth) for each in told), 1),
        "mentions": mean(named),
        "length": mean(each.length for each in told),
    }
