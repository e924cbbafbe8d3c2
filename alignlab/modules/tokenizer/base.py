"""base: what backbones, evaluators and objectives ask of anything that makes visual tokens of a picture."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.modules.tokenizer.pixels import PixelDecoder
from alignlab.modules.tokenizer.storing import load_tokenizer, save_tokenizer
from alignlab.modules.tokenizer.tokens import VisualInputs, VisualTokens


class PictureTokenizer(nn.Module, ABC):
    """Base of visual tokenizers: from a picture's patch features (P, N, C) to visual tokens, and back."""

    dim: int
    """Width C of the patch features."""

    num_patches: int
    """Patches N of a picture."""

    writes_codes: ClassVar[bool]
    """Whether a picture is drawn as codes, which need words of their own; else as features."""

    width: int | None = None
    """Width D of the states from which features are predicted; None: none are."""

    discrete: bool = False
    """Whether a language model reads codes, not rows."""

    pixel_decoder: PixelDecoder | None

    @property
    @abstractmethod
    def is_read(self) -> bool:
        """Whether a language model reads pictures through it, and not all patches as they are."""

    @property
    def num_codes(self) -> int:
        """K; 0 without codes."""
        return 0

    @property
    def bits(self) -> float:
        """What one code can say, log2 K; 0 without codes."""
        return math.log2(self.num_codes) if self.num_codes else 0.0

    @abstractmethod
    def forward(self, features: Tensor) -> VisualTokens:
        """Tokenize (P, N, C) features."""

    @abstractmethod
    def inputs(self, features: Tensor) -> VisualInputs:
        """What a language model reads of (P, N, C) features, the same in training as in evaluation."""

    @abstractmethod
    def decode(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """(P, N, C) features of (M, d) vectors, ``counts`` (P,) of each picture; InputError for impossible ones."""

    def pixels(self, features: Tensor) -> Tensor:
        """(P, 3, H, W) in [0, 1] of (P, N, C) decoded features."""
        if self.pixel_decoder is None:
            raise InputError("the visual tokenizer paints no pictures: it has no pixel decoder, such as PatchPixels")
        return self.pixel_decoder(features)

    def save(self, folder: Path | str) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a directory."""
        save_tokenizer(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read what ``save`` wrote, of this class or one beneath it, in the type of its weights.

        Raises:
            InputError: A file is missing or damaged, or names a class that is not known.
        """
        return load_tokenizer(cls, Path(folder))

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What ``made`` makes it of again, plain values of JSON."""

    @classmethod
    @abstractmethod
    def made(cls, config: dict[str, Any]) -> Self:
        """One of this form, with weights that are to be read."""

    def check_features(self, features: Tensor) -> None:
        """Raise InputError unless they are (P, N, C)."""
        if features.dim() != 3 or features.shape[1:] != (self.num_patches, self.dim):
            raise InputError(
                f"the visual tokenizer reads (P, {self.num_patches}, {self.dim}) patch features, got "
                f"{tuple(features.shape)}"
            )
