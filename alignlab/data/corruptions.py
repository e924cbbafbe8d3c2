"""corruptions: what makes a picture less telling, as settings of a config; one seed and one id, one corruption."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from PIL import Image
from torch import Tensor

from alignlab.batch import Tokens
from alignlab.data.identity import seed_of
from alignlab.errors import InputError
from alignlab.functional import (
    adjust_contrast,
    adjust_gamma,
    diffusion_noise,
    flip,
    gaussian_blur,
    mask_patches,
    moco,
    random_crop,
)

PADDED = ("image_sizes", "pixel_attention_mask", "aspect_ratio_ids")
"""Vision inputs beside which a picture's pixels are filled up to the largest of the batch."""


class Corruption:
    """Makes a picture less telling: the picture itself, or what the processor made of it; a subclass writes either.

    All that is drawn for a sample comes from one generator, for its pictures in order and then for their pixels.
    """

    def before(self, picture: Image.Image, generator: torch.Generator) -> Image.Image:
        """Another picture in place of an upright RGB one, before the processor."""
        return picture

    def after(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Other pixels in place of a sample's own, of the same shape: its rows of a vision input, normalised."""
        return pixels

    @property
    def is_after(self) -> bool:
        """Whether it changes what the processor makes."""
        return type(self).after is not Corruption.after


@dataclass(frozen=True)
class DiffusionNoise(Corruption):
    """The noise of a diffusion model's forward process, on the normalised pixels: SeVa's.

    Source: Zhu et al. 2024 (SeVa), https://arxiv.org/abs/2404.10501, and data/step2/generate_with_aug.py of its code,
    whose noise has no seed. Of a processor that flattens pictures to patches (Qwen-VL's), which has each patch twice,
    both get noise of their own.

    Args:
        step: How far, 0 <= step < num_steps; SeVa has 500 and 800.
        num_steps: Length of the schedule.
    """

    step: int = 500
    num_steps: int = 1000

    def __post_init__(self) -> None:
        _check(self, self.num_steps >= 2 and 0 <= self.step < self.num_steps, "0 <= step < num_steps, num_steps >= 2")

    def after(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return diffusion_noise(pixels, self.step, num_steps=self.num_steps, generator=generator)


class _Repainting(Corruption, ABC):
    """Changes the picture itself; a subclass writes ``paint``."""

    @abstractmethod
    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Other pixels (3, H', W') in place of (3, H, W), in [0, 1]."""

    def before(self, picture: Image.Image, generator: torch.Generator) -> Image.Image:
        pixels = torch.from_numpy(numpy.array(picture)).movedim(-1, 0).float() / 255
        painted = (self.paint(pixels, generator) * 255).round().clamp(0, 255).byte()
        return Image.fromarray(painted.movedim(0, -1).numpy())


@dataclass(frozen=True)
class MoCo(_Repainting):
    """MoCo-v2's augmentation, see ``functional.moco``: SeVa's other one, of which no code was published.

    Args:
        size: Height and width of the result in pixels, which also says how much a blur of up to 2 pixels takes away:
            224 as in MoCo, or what the vision tower sees; None: the picture's own.
    """

    size: int | None = 224

    def __post_init__(self) -> None:
        _check(self, self.size is None or self.size >= 1, "size >= 1, or none")

    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return moco(pixels, size=self.size, generator=generator)


@dataclass(frozen=True)
class Flip(_Repainting):
    """The picture, mirrored left to right."""

    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return flip(pixels)


@dataclass(frozen=True)
class Crop(_Repainting):
    """A random part of the picture, brought to its size.

    Args:
        least: The smallest share of the picture's area, in (0, most].
        most: The largest share, at most 1.
    """

    least: float = 0.2
    most: float = 1.0

    def __post_init__(self) -> None:
        _check(self, 0 < self.least <= self.most <= 1, "0 < least <= most <= 1")

    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return random_crop(pixels, (self.least, self.most), generator=generator)


@dataclass(frozen=True)
class ContrastChange(_Repainting):
    """More or less contrast.

    Args:
        factor: At least 0; below 1 there is less, at 0 one grey is left.
    """

    factor: float = 0.3

    def __post_init__(self) -> None:
        _check(self, self.factor >= 0, "factor >= 0")

    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return adjust_contrast(pixels, self.factor)


@dataclass(frozen=True)
class Gamma(_Repainting):
    """Darker or lighter shadows.

    Args:
        gamma: The exponent, > 0; above 1 it gets darker.
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        _check(self, self.gamma > 0, "gamma > 0")

    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return adjust_gamma(pixels, self.gamma)


@dataclass(frozen=True)
class Blur(_Repainting):
    """The picture, blurred.

    Args:
        sigma: Standard deviation of the blur, > 0, in shares of the picture's shorter side.
    """

    sigma: float = 0.03

    def __post_init__(self) -> None:
        _check(self, self.sigma > 0, "sigma > 0")

    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return gaussian_blur(pixels, self.sigma * min(pixels.shape[-2:]))


@dataclass(frozen=True)
class PatchMask(_Repainting):
    """A random share of the picture's patches in its mean colour.

    Args:
        share: In [0, 1].
        grid: How many patches the picture's shorter side has.
    """

    share: float = 0.5
    grid: int = 8

    def __post_init__(self) -> None:
        _check(self, 0 <= self.share <= 1 and self.grid >= 1, "share in [0, 1] and grid >= 1")

    def paint(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        return mask_patches(pixels, self.share, max(1, min(pixels.shape[-2:]) // self.grid), generator)


def generator_for(seed: int, id: str) -> torch.Generator:
    """What draws all that is drawn for one sample."""
    return torch.Generator().manual_seed(seed_of(seed, id))


def can_corrupt(tokens: Tokens) -> bool:
    """Whether ``corrupted`` can tell whose pixels are whose, and they are what they would be in any other batch."""
    everyone = torch.arange(len(tokens))
    known = all(tokens.rows_of(key, everyone) is not None for key in _pixels(tokens))
    return len(tokens) == 1 or (known and not any(key in tokens.vision for key in PADDED))


def corrupted(tokens: Tokens, corruption: Corruption, generators: Sequence[torch.Generator]) -> Tokens:
    """The same sequences with other pixels, each sample's by its own generator.

    Args:
        tokens: B sequences on the CPU, of which ``can_corrupt`` holds.
        generators: B.
    """
    vision = dict(tokens.vision)
    for key in _pixels(tokens):
        vision[key] = tokens.vision[key].clone()
        for sample, generator in enumerate(generators):
            rows = tokens.rows_of(key, torch.tensor([sample])) if len(tokens) > 1 else slice(None)
            if len(vision[key][rows]):
                vision[key][rows] = corruption.after(vision[key][rows], generator)
    return replace(tokens, vision=vision)


def _pixels(tokens: Tokens) -> list[str]:
    keys = [key for key in tokens.vision if key.startswith("pixel_values")]
    if not keys or not all(isinstance(tokens.vision[key], Tensor) for key in keys):
        raise InputError(
            f"pixels can be changed where the processor returns tensors called pixel_values, but it returned "
            f"{', '.join(tokens.vision) or 'nothing'}; use a corruption of the picture itself, such as MoCo"
        )
    return keys


def _check(corruption: Corruption, holds: bool, needed: str) -> None:
    if not holds:
        raise InputError(f"{type(corruption).__name__} needs {needed}, got {corruption}")
