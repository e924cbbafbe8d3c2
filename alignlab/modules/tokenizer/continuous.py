"""continuous: a picture's patch features themselves are its visual tokens, and are predicted by a linear map."""

from math import isqrt
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.modules.tokenizer.base import PictureTokenizer
from alignlab.modules.tokenizer.decoding import check_counts
from alignlab.modules.tokenizer.pixels import PixelDecoder
from alignlab.modules.tokenizer.storing import maker, recipe
from alignlab.modules.tokenizer.tokens import VisualInputs, VisualTokens


class ContinuousTokenizer(PictureTokenizer):
    """Emu2's visual tokens: patch features, averaged over squares of patches, that states of a language model predict.

        F (P, N, C) -> means over squares (P, n, C);   state h (D,) -> W h (C,), the next token's features

    Sun et al. 2023, https://arxiv.org/abs/2312.13286, section 2, and Emu2/emu/emu.py (baaivision/Emu), where W is
    ``project_down``, without bias. Nothing is quantized or learned of the tokens. A number of tokens that does not
    divide the patches into squares is refused; there it silently becomes another one.

    Args:
        dim: Width C of the patch features.
        num_patches: Patches N of a picture.
        width: Width D of the states.
        num_tokens: Tokens n of a picture; None: N.
    """

    writes_codes: ClassVar[bool] = False

    def __init__(self, dim: int, num_patches: int, width: int, *, num_tokens: int | None = None) -> None:
        super().__init__()
        num_tokens = num_patches if num_tokens is None else num_tokens
        if min(dim, num_patches, width) < 1:
            raise InputError(
                f"the visual tokenizer needs widths and patches of 1 or more, got {dim}, {width} and {num_patches}"
            )
        self.dim, self.num_patches, self.width, self.num_tokens = dim, num_patches, width, num_tokens
        self.side = _side(num_patches, num_tokens)
        self.predict = nn.Linear(width, dim, bias=False)
        self.pixel_decoder: PixelDecoder | None = None

    @property
    def is_read(self) -> bool:
        return self.num_tokens < self.num_patches

    def tokens(self, features: Tensor) -> Tensor:
        """(P, n, C) of (P, N, C)."""
        self.check_features(features)
        features = features.to(self.predict.weight.dtype)
        if not self.is_read:
            return features
        across = isqrt(self.num_tokens)
        return features.unflatten(1, (across, self.side, across, self.side)).mean((2, 4)).flatten(1, 2)

    def forward(self, features: Tensor) -> VisualTokens:
        """Tokenize (P, N, C) features; every patch has a part in them, so none is dropped."""
        rows = self.tokens(features).flatten(0, 1)
        keep, losses = rows.new_ones(features.shape[:2]), rows.new_zeros(len(rows))
        return VisualTokens(keep, None, rows, self._counts(features), rows, rows, None, losses)

    def inputs(self, features: Tensor) -> VisualInputs:
        """What a language model reads: the tokens, in the places of a picture's first patches."""
        keep = torch.arange(self.num_patches, device=features.device) < self.num_tokens
        rows = self.tokens(features).flatten(0, 1)
        return VisualInputs(rows, self._counts(features), keep.expand(len(features), -1))

    def decode(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """(P, N, C): each token's features at all patches of its square; InputError unless each picture has n."""
        check_counts(counts, len(vectors), self.num_tokens, fewest=self.num_tokens)
        features = vectors.unflatten(0, (-1, self.num_tokens))
        if not self.is_read:
            return features
        across = isqrt(self.num_tokens)
        squares = features.unflatten(1, (across, 1, across, 1))
        return squares.expand(-1, -1, self.side, -1, self.side, -1).flatten(3, 4).flatten(1, 3)

    def pixels(self, features: Tensor) -> Tensor:
        """(P, 3, H, W) in [0, 1] of (P, N, C) features, of which the pixel decoder is given the tokens (P, n, C)."""
        return super().pixels(self.tokens(features))

    def config(self) -> dict[str, Any]:
        sizes = {name: getattr(self, name) for name in ("dim", "num_patches", "width", "num_tokens")}
        return sizes | {"pixel_decoder": recipe(self.pixel_decoder)}

    @classmethod
    def made(cls, config: dict[str, Any]) -> Self:
        painter = config.pop("pixel_decoder")
        tokenizer = cls(**config)
        if painter is not None:
            tokenizer.pixel_decoder = maker(PixelDecoder, painter)(tokenizer.dim)
        return tokenizer

    def extra_repr(self) -> str:
        return f"num_patches={self.num_patches}, num_tokens={self.num_tokens}"

    def _counts(self, features: Tensor) -> Tensor:
        return torch.full((len(features),), self.num_tokens, device=features.device)


def _side(num_patches: int, num_tokens: int) -> int:
    """Patches along a side of the squares that are averaged."""
    if num_tokens == num_patches:
        return 1
    grid, across = isqrt(num_patches), isqrt(max(num_tokens, 0))
    if grid**2 != num_patches or across**2 != num_tokens or across < 1 or grid % across:
        fitting = [str((grid // side) ** 2) for side in range(grid, 0, -1) if grid % side == 0]
        may = f"{', '.join(fitting)}" if grid**2 == num_patches else f"{num_patches} alone, which are no square"
        raise InputError(f"num_tokens of {num_patches} patches, averaged over squares, may be {may}, not {num_tokens}")
    return grid // across
