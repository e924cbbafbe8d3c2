"""ImageGeneration: pictures drawn from captions, judged by what can be read in them."""

from collections.abc import Sequence

from PIL import Image

from alignlab.backbones import Backbone, DualEncoder
from alignlab.backbones.pictures import open_image
from alignlab.batch import Example, Turn
from alignlab.data.base import AlignmentData, Split
from alignlab.data.identity import seed_of
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean, thumbnail
from alignlab.evaluation.panels import beside, picture_of


class ImageGeneration(Evaluator):
    """How much of a caption, ``captions[0]``, a picture shows that the backbone draws from it.

    The caption is said in the form of the example's ``target``, with its instruction if it has one, as in training.

    The data judge the pictures (``data.drawn``): the lab reads the objects in them, and says how many pictures have
    the caption's objects and no others, ``exact``, what share of the words for shape, colour and size they have,
    whether as many objects, and which share of the relations holds. ``tokens`` is the mean number of tokens of a
    picture. ``shuffled/<score>`` is what the same drawings score where each is judged by another's caption: what
    drawing anything that looks like the data is worth. No more can be right than a tokenizer keeps: Reconstruction's
    ``read_exact`` says how much that is.

    Codes are sampled, so that scores have the noise of the samples, which differ with ``seed`` and ``batch_size``.
    Where a picture is drawn as features, nothing is, and the settings of sampling are without effect.

    Args:
        guidance: How strongly the caption is followed, as ``Backbone.draw`` has it.
        top_k: The likeliest codes among which is drawn; 0: all.
        temperature: What log-probabilities are divided by; 0: the likeliest code is taken.
        seed: Of the samples.
        num_pictures: Items that keep their picture, for a report.
    """

    name = "drawing"
    requires = ("captions",)

    def __init__(
        self,
        *,
        guidance: float = 4.0,
        top_k: int = 50,
        temperature: float = 1.0,
        seed: int = 0,
        num_examples: int = 256,
        batch_size: int = 64,
        num_pictures: int = 12,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label)
        if min(guidance, top_k, temperature) < 0:
            raise InputError(
                f"ImageGeneration needs guidance, top_k and temperature >= 0, got {guidance}, {top_k}, {temperature}"
            )
        self.guidance, self.top_k, self.temperature, self.seed = guidance, top_k, temperature, seed
        self.num_pictures = num_pictures

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if isinstance(data, type) or not (examples := data.first(self.split, 1)):
            return
        example = examples[0]
        if not example.images or data.drawn(example, open_image(example.images[0])) is None:
            raise InputError(
                f"ImageGeneration lets the data judge what is drawn, but {type(data).__name__}.drawn knows nothing of "
                "this picture; Scenes in the flat rendering read theirs, data of your own override drawn"
            )

    def check_backbone(self, backbone: Backbone | DualEncoder) -> None:
        super().check_backbone(backbone)
        tokenizer = backbone.visual_tokenizer
        writes_codes = tokenizer is None or tokenizer.writes_codes
        missing = {
            "a visual tokenizer": tokenizer is None,
            "a quantizer": tokenizer is not None and writes_codes and not tokenizer.num_codes,
            "a pixel decoder": tokenizer is not None and tokenizer.pixel_decoder is None,
            "tokens for codes": writes_codes and backbone.encoder.visual is None,
        }
        if any(missing.values()):
            lacks = ", ".join(name for name, is_missing in missing.items() if is_missing)
            raise InputError(
                f"ImageGeneration needs a backbone that draws, but {backbone.path} lacks {lacks}; leave it out, or "
                "train the backbone to write the codes or the features of a visual tokenizer first"
            )

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        pictures, tokens = [], []
        for number, part in enumerate(self.batches(examples, on_batch)):
            said = [example.phrased(example.captions[0]) for example in part]
            prompts = backbone.encoder.prompts([(Turn("user", content),) for content in said])
            drawing = backbone.draw(
                prompts.to(backbone.device),
                guidance=self.guidance,
                top_k=self.top_k,
                temperature=self.temperature,
                seed=seed_of(self.seed, str(number)),  # a sum would be another seed's of another batch
            )
            pictures += map(picture_of, drawing.pixels)
            tokens += drawing.counts.tolist()
        judged = _judged(data, examples, pictures)
        items = []
        for index, (example, picture, shares) in enumerate(zip(examples, pictures, judged, strict=True)):
            original = thumbnail(example) if index < self.num_pictures else None
            items.append({
                "id": example.id,
                "score": shares.get("exact", 0.0),
                "prompt": example.captions[0],
                "output": data.read(picture) or "",
                "reference": example.captions[0],
                "picture": None if original is None else beside(original, picture),
                **({} if original is None else {"panels": ["picture", "drawing"]}),
            })  # fmt: skip
        shuffled = _means(_judged(data, examples, [*pictures[1:], pictures[0]])) if len(pictures) > 1 else {}
        others = {f"shuffled/{name}": score for name, score in shuffled.items()}
        return Evaluation(_means(judged) | {"tokens": mean(tokens)} | others, items)


def _judged(
    data: AlignmentData, examples: Sequence[Example], pictures: Sequence[Image.Image]
) -> list[dict[str, float]]:
    return [data.drawn(example, picture) or {} for example, picture in zip(examples, pictures, strict=True)]


def _means(judged: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for shares in judged for name in shares)
    return {name: mean(shares[name] for shares in judged if name in shares) for name in names}
