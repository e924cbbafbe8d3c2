"""Reconstruction: how compact, lossless and discrete the pictures of a visual tokenizer are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional import spearman_corrcoef

from alignlab.backbones import Backbone, DualEncoder
from alignlab.backbones.patches import check_patchwise
from alignlab.backbones.pictures import open_image
from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.errors import InputError
from alignlab.evaluation.base import Evaluation, Evaluator, OnBatch, mean
from alignlab.evaluation.panels import beside, code_bars, kept_alone, picture_of
from alignlab.evaluation.triangle import (
    code_bits,
    compression,
    continuous_bits,
    feature_cosines,
    psnr,
    quantization_error,
    ssim,
)
from alignlab.functional import code_usage

SHIFT = 1
"""Pixels by which pictures are shifted, to the right and down, to see which codes stay."""


@dataclass
class _Found:
    """What is gathered over the batches, picture by picture but for codes and errors."""

    tokens: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[Image.Image] = field(default_factory=list)
    panels: list[str] = field(default_factory=lambda: ["picture"])
    codes: list[Tensor] = field(default_factory=list)
    directions: list[Tensor] = field(default_factory=list)
    sums: Tensor | int = 0
    unit_sums: Tensor | int = 0

    def add_features(self, features: Tensor) -> None:
        """Sum the features (P, N, C), and those divided by their length."""
        features = features.cpu().double()
        self.sums = self.sums + features.sum(0)
        self.unit_sums = self.unit_sums + F.normalize(features, dim=-1).sum(0)

    def add(self, name: str, values: Sequence[float]) -> None:
        self.values.setdefault(name, []).extend(values)


class Reconstruction(Evaluator):
    """What a picture's tokens cost and what is left of it: the three corners of a visual tokenizer.

    Compact: ``tokens`` a picture and ``tokens_std``, the standard deviation over pictures; ``bits`` a picture, log2 of
    the number of codes a token; ``bits_entropy``, the same of an ideal code for how often each code comes; ``ratio``,
    how many times as many bits the picture has that the vision tower sees, at 24 a pixel. ``objects_correlation`` is
    Spearman's, of tokens with how much the data say there is to see; left out where either is the same everywhere.

    Lossless: ``cosine`` of the decoded patch features with those of the vision tower, beside ``cosine_constant``, that
    of the mean features over the examples, which a decoder reaches that heeds no code. With a pixel decoder ``psnr`` in
    dB and ``ssim``, means over pictures, and ``read_<name>`` as data that can read pictures judge the decoded ones
    (``data.drawn``); ``read_exact`` is what drawing from captions can reach at best.

    Discrete: ``usage``, the share of the codes that come up, and ``code_perplexity``, how many of them are in use in
    effect, both over all tokens of the examples, so compare them at equal ``num_examples`` alone;
    ``quantization_error``, the squared distance of vectors of length 1 from their codes', made as long; ``stability``,
    of the patches kept of a picture or of the same shifted by one pixel the share that are kept of both and have the
    same code.

    A tokenizer that does not quantize has none of the third corner, and ``bits`` as its vectors are kept, in their
    type. A backbone without a tokenizer stands for the vision tower's features as they are: all patches, cosine 1.

    The score of an item is its cosine; its picture shows what ``panels`` names, from left to right:
    the original, what is kept, and the reconstruction. One item
    more, ``codebook``, shows how often codes come; its score is the usage.

    Args:
        num_pictures: Items that keep their picture, for a report.
    """

    name = "reconstruction"
    requires = ()

    def __init__(
        self,
        *,
        num_examples: int = 256,
        batch_size: int = 64,
        num_pictures: int = 8,
        split: Split = "test",
        data: AlignmentData | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(num_examples=num_examples, batch_size=batch_size, split=split, data=data, label=label)
        self.num_pictures = num_pictures

    def check(self, data: AlignmentData | type[AlignmentData]) -> None:
        super().check(data)
        if not isinstance(data, type) and (examples := data.first(self.split, 1)):
            self._check_shown([examples[0]])

    def check_backbone(self, backbone: Backbone | DualEncoder) -> None:
        super().check_backbone(backbone)
        shown = backbone.encoder.image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")
        values = shown.get("pixel_values")
        if not isinstance(values, Tensor) or values.dim() != 4 or values.shape[:2] != (1, 3):
            came = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"{type(self).__name__} rebuilds pictures (3, height, width), but the processor of {backbone.path} "
                f"makes pixel values {came} of one, in patches or crops, say; leave it out"
            )
        check_patchwise(backbone)

    def _check_shown(self, examples: Sequence[Example]) -> None:
        if unseen := [example.id for example in examples if not example.images]:
            raise InputError(f"{type(self).__name__} rebuilds pictures, but example {unseen[0]!r} has none")

    def evaluate(
        self, backbone: Backbone, data: AlignmentData, examples: list[Example], on_batch: OnBatch
    ) -> Evaluation:
        self._check_shown(examples)
        found = _Found()
        for part in self.batches(examples, on_batch):
            self._rebuild(backbone, data, part, found)
        scores = _means(found, data, examples)
        items = [_item(example, found, index) for index, example in enumerate(examples)]
        if found.codes:
            codes, num_codes = torch.cat(found.codes), backbone.visual_tokenizer.num_codes
            usage, perplexity = (value.item() for value in code_usage(codes, num_codes))
            scores |= {
                "bits_entropy": code_bits(scores["tokens"], perplexity),
                "usage": usage,
                "code_perplexity": perplexity,
                "quantization_error": quantization_error(*torch.cat(found.directions, 1)).item(),
            }
            items.append(_codebook(codes, num_codes, usage, perplexity))
        return Evaluation(scores, items)

    def _rebuild(self, backbone: Backbone, data: AlignmentData, examples: Sequence[Example], found: _Found) -> None:
        tokenizer, images = backbone.visual_tokenizer, [open_image(example.images[0]) for example in examples]
        tokens = backbone.encoder.contents([(image,) for image in images]).to(backbone.device)
        features, shown = backbone.patch_features(tokens), backbone.pixels(tokens)
        found.add_features(features)
        size, wanted = shown.shape[-2:], max(self.num_pictures - len(found.pictures), 0)
        if tokenizer is None:
            count = features.shape[1]
            found.tokens += [count] * len(examples)
            found.kept += list(torch.ones(features.shape[:2], dtype=torch.bool))
            found.cosines += [1.0] * len(examples)
            bits = continuous_bits(count, features.shape[2], features.dtype)
            found.add("bits", [bits] * len(examples))
            found.add("ratio", [compression(*size, bits)] * len(examples))
            found.pictures += [beside(image) for image in images[:wanted]]
            return
        seen = tokenizer(features)
        decoded = tokenizer.decode(seen.vectors, seen.counts)
        counts, keep = seen.counts.tolist(), seen.keep > 0.5
        found.tokens += counts
        found.kept += list(keep.cpu())
        found.cosines += feature_cosines(decoded, features).tolist()
        if seen.codes is None:
            bits = [continuous_bits(count, seen.vectors.shape[1], seen.vectors.dtype) for count in counts]
        else:
            bits = [code_bits(count, tokenizer.num_codes) for count in counts]
            found.codes.append(seen.codes.cpu())
            vectors = [F.normalize(each.float(), dim=-1).cpu() for each in (seen.projected, seen.vectors)]
            found.directions.append(torch.stack(vectors))
            found.add("stability", _stability(backbone, images, keep, seen.codes))
        found.add("bits", bits)
        found.add("ratio", [compression(*size, each) for each in bits])
        painted = None if tokenizer.pixel_decoder is None else tokenizer.pixels(decoded)
        if painted is not None:
            self._compare(data, examples, painted, shown, found)
        for index, image in enumerate(images[:wanted]):
            panels = {"picture": image, "kept patches": kept_alone(image, keep[index])}
            panels["reconstruction"] = None if painted is None else picture_of(painted[index])
            panels = {name: panel for name, panel in panels.items() if panel is not None}
            found.panels = list(panels)
            found.pictures.append(beside(*panels.values()))

    def _compare(
        self, data: AlignmentData, examples: Sequence[Example], painted: Tensor, shown: Tensor, found: _Found
    ) -> None:
        if painted.shape == shown.shape:
            found.add("psnr", psnr(painted, shown).tolist())
            found.add("ssim", ssim(painted, shown).tolist())
        for example, pixels in zip(examples, painted, strict=True):
            for name, value in (data.drawn(example, picture_of(pixels)) or {}).items():
                found.add(f"read_{name}", [value])


def _means(found: _Found, data: AlignmentData, examples: Sequence[Example]) -> dict[str, float]:
    tokens = torch.tensor(found.tokens, dtype=torch.float64)
    scores = {"tokens": tokens.mean().item(), "tokens_std": tokens.std(correction=0).item()}
    # The mean of cosines with one vector is linear in the unit vectors.
    constant = (found.unit_sums / len(tokens) * F.normalize(found.sums, dim=-1)).sum(-1).mean().item()
    scores |= {"cosine": mean(found.cosines), "cosine_constant": constant} | {
        name: mean(values) for name, values in found.values.items()
    }
    known = [data.complexity(example) for example in examples]
    if None not in known and len(set(known)) > 1 and len(set(found.tokens)) > 1:
        correlation = spearman_corrcoef(tokens, torch.tensor(known, dtype=torch.float64))
        scores["objects_correlation"] = correlation.item()
    return scores


def _item(example: Example, found: _Found, index: int) -> dict[str, Any]:
    shown = index < len(found.pictures)
    return {
        "id": example.id,
        "score": found.cosines[index],
        "prompt": "",
        "output": f"{found.tokens[index]} of {len(found.kept[index])} patches",
        "reference": "",
        "picture": found.pictures[index] if shown else None,
    } | ({"panels": found.panels} if shown else {})


def _codebook(codes: Tensor, num_codes: int, usage: float, perplexity: float) -> dict[str, Any]:
    counts = torch.bincount(codes, minlength=num_codes)
    output = f"{int((counts > 0).sum())} of {num_codes} codes, perplexity {perplexity:.1f}"
    picture = code_bars(counts)
    return {"id": "codebook", "score": usage, "prompt": "", "output": output, "reference": "", "picture": picture}


def _stability(backbone: Backbone, images: Sequence[Image.Image], keep: Tensor, codes: Tensor) -> list[float]:
    """What share of the patches kept of a picture or of the same shifted have the same code in both."""
    shifted = [(ImageChops.offset(image, SHIFT, SHIFT),) for image in images]
    features = backbone.patch_features(backbone.encoder.contents(shifted).to(backbone.device))
    seen = backbone.visual_tokenizer(features)
    first, second = _placed(codes, keep), _placed(seen.codes, seen.keep > 0.5)
    either, same = (first >= 0) | (second >= 0), (first == second) & (first >= 0)
    return (same.sum(1) / either.sum(1)).tolist()


def _placed(codes: Tensor, keep: Tensor) -> Tensor:
    """Codes at their patches, (P, N) long; -1 at dropped ones."""
    return torch.full(keep.shape, -1, device=codes.device).masked_scatter(keep, codes)
