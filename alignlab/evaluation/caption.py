"""CaptionAccuracy: greedy captions against the canonical ones, exactly and by attribute."""

from itertools import zip_longest

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.comparing import picked, tidy
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean, thumbnail


class CaptionAccuracy(Evaluator):
    """How often a greedy caption is the canonical one, ``captions[0]``, and how many of its words of each attribute.

    ``exact`` is the share of captions equal to the reference but for case, white space and the data's synonyms
    (``data.canonical``). For each attribute of the data (``data.attributes``), the words of that attribute are picked
    out of reference and output, in order, and laid side by side; the score is the share of places, over all captions,
    where both have the same word. A word too few or too many is a place where they differ, so babble does not score; a
    word left out also shifts those after it. An attribute that no reference mentions has no score.

    Args:
        prompt: What is asked about the picture; None: what the data ask, ``data.caption_prompt``.
        max_new_tokens: Longest caption in tokens; a longer one is cut, and then seldom exact.
        num_pictures: Items that keep their picture, for a report.
    """

    name = "caption"
    requires = ("captions",)
    blindfolds = ("shuffled_images", "text_only")

    def __init__(
        self,
        *,
        prompt: str | None = None,
        num_examples: int = 256,
        max_new_tokens: int = 48,
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

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        prompt = data.caption_prompt if self.prompt is None else self.prompt
        asked = [(example, prompt) for example in examples]
        outputs = list(self.answers(backbone, asked, self.max_new_tokens, on_batch))
        pairs = [
            (tidy(example.captions[0], data.canonical), tidy(output, data.canonical))
            for example, output in zip(examples, outputs, strict=True)
        ]
        items = [
            {
                "id": example.id,
                "score": float(reference == said),
                "metrics": {"exact": float(reference == said)},
                "prompt": prompt,
                "output": output,
                "reference": example.captions[0],
                "picture": thumbnail(example) if index < self.num_pictures else None,
            }
            for index, (example, output, (reference, said)) in enumerate(zip(examples, outputs, pairs, strict=True))
        ]
        scores = {"exact": mean(item["score"] for item in items)}
        for attribute, words in data.attributes.items():
            places = [(picked(reference, words), picked(said, words)) for reference, said in pairs]
            if any(reference for reference, _ in places):
                scores[attribute] = mean(a == b for pair in places for a, b in zip_longest(*pair))
        return Evaluation(scores, items)
