"""contrasts: what is seen instead of an image, to find out which tokens need it."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from alignlab.backbones import Backbone
from alignlab.backbones.dynamic import check_hides
from alignlab.batch import Tokens
from alignlab.errors import InputError
from alignlab.functional import gaussian_blur


class Contrast(ABC):
    """Changes sequences so that they show less of their pictures."""

    @abstractmethod
    def __call__(self, backbone: Backbone, tokens: Tokens, features: Any, ids: Sequence[str], *, whole: bool) -> Tokens:
        """The sequences for the other pass; labels are predicted in the same order.

        Args:
            tokens: B sequences.
            features: Of their pictures.
            ids: B example ids, by which chance is drawn.
            whole: Keep all positions, so that each has a state.
        """

    def check(self, backbone: Backbone) -> None:  # noqa: B027  # most have nothing to check
        """Raise InputError if the backbone's pictures cannot be changed this way; by default any can."""


class _Hidden(Contrast):
    """Pictures of which some positions are hidden."""

    def check(self, backbone: Backbone) -> None:
        if isinstance(backbone, Backbone):  # others are refused for what they cannot read
            check_hides(backbone, type(self).__name__)


class NoImage(_Hidden):
    """No picture at all."""

    def __call__(self, backbone: Backbone, tokens: Tokens, features: Any, ids: Sequence[str], *, whole: bool) -> Tokens:
        return backbone.without_images(tokens, features=features, whole=whole)


class MaskedPatches(_Hidden):
    """The picture without some of its patches, the same ones of an example each time.

    Args:
        share: Of each example's patches that are hidden, in (0, 1]; at least one.
    """

    def __init__(self, share: float = 0.7) -> None:
        if not 0 < share <= 1:
            raise InputError(f"MaskedPatches needs 0 < share <= 1, got {share = }")
        self.share = share

    def __call__(self, backbone: Backbone, tokens: Tokens, features: Any, ids: Sequence[str], *, whole: bool) -> Tokens:
        counts = tokens.image_mask.sum(1).tolist()
        drawn = torch.cat([self._drawn(id, count) for id, count in zip(ids, counts, strict=True)])
        hidden = torch.zeros_like(tokens.image_mask).masked_scatter(tokens.image_mask, drawn.to(tokens.image_mask))
        return backbone.without_images(tokens, features=features, hidden=hidden, whole=whole)

    def _drawn(self, id: str, count: int) -> Tensor:
        lots = torch.randperm(count, generator=torch.Generator().manual_seed(zlib.crc32(id.encode())))
        return lots < max(1, round(self.share * count))


class _Repainted(Contrast):
    """Another picture in place of each, which the model then sees as it sees any."""

    @abstractmethod
    def paint(self, pixels: Tensor) -> Tensor:
        """Other pixels (B, C, H, W) in place of these."""

    def __call__(self, backbone: Backbone, tokens: Tokens, features: Any, ids: Sequence[str], *, whole: bool) -> Tokens:
        if "pixel_values" not in tokens.vision:  # texts alone
            return tokens
        return replace(tokens, vision={**tokens.vision, "pixel_values": self.paint(tokens.vision["pixel_values"])})

    def check(self, backbone: Backbone) -> None:
        blank = backbone.encoder.image_processor(images=[Image.new("RGB", (64, 64))], return_tensors="pt")
        if "pixel_values" not in blank or blank["pixel_values"].ndim != 4:
            raise InputError(
                f"{type(self).__name__} changes pictures of (channels, height, width), but the processor of "
                f"{backbone.path} cuts them into patches or crops first; use NoImage or MaskedPatches"
            )


class BlurredImage(_Repainted):
    """The picture, blurred; it takes a pass of its own through the vision tower.

    Args:
        sigma: Standard deviation of the blur, in pixels of what the vision tower sees.
    """

    def __init__(self, sigma: float = 10.0) -> None:
        if sigma <= 0:
            raise InputError(f"BlurredImage needs sigma > 0, got {sigma = }")
        self.sigma = sigma

    def paint(self, pixels: Tensor) -> Tensor:
        return gaussian_blur(pixels, self.sigma)


class MeanColor(_Repainted):
    """A picture of the mean colour of the picture; it takes a pass of its own through the vision tower."""

    def paint(self, pixels: Tensor) -> Tensor:
        return pixels.mean((-2, -1), keepdim=True).expand_as(pixels)
