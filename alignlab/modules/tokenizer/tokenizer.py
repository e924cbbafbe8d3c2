"""tokenizer: a picture's patch features as a few rows or codes, and back."""

import copy
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.functional import normalize
from alignlab.modules.parted import evaluating
from alignlab.modules.quantizers import Quantizer
from alignlab.modules.tokenizer.attention import start_weights
from alignlab.modules.tokenizer.base import PictureTokenizer
from alignlab.modules.tokenizer.decoding import FeatureDecoder
from alignlab.modules.tokenizer.merger import Merger
from alignlab.modules.tokenizer.packing import is_kept
from alignlab.modules.tokenizer.pixels import PixelDecoder
from alignlab.modules.tokenizer.selection import Selection
from alignlab.modules.tokenizer.storing import maker, recipe
from alignlab.modules.tokenizer.tokens import VisualInputs, VisualTokens


class VisualTokenizer(PictureTokenizer):
    """LaVIT's dynamic visual tokenizer: select patches, merge the others into them, quantize, and decode.

        F (P, N, C) -> keep (P, N) -> merged (M, C) -> W2 tanh(W1 .) (M, d) -> codes (M,), vectors (M, d)
        vectors -> F' (P, N, C) -> pixels (P, 3, H, W)

    Jin et al. 2023, https://arxiv.org/abs/2309.04669, section 3.1. Written from the equations, not from the released
    code; ``LearnedSelection`` and ``Merger`` say where they depart from it.

    Args:
        dim: Width C of the patch features.
        num_patches: Patches N of a picture.
        selection: Makes the selection for a width, such as ``LearnedSelection``.
        quantizer: Makes the quantizer for a width; None: vectors are the rows divided by their length, not quantized.
        depth: Blocks of the merger, and of the decoder.
        num_heads: Heads of their attentions.
        mlp_ratio: Width inside their MLPs over C, cut to a whole number.
        code_dim: Width d of what is quantized.
        exact_masking: Of the merger.
        positions: The merger tells patches by a learned vector for their place.
    """

    writes_codes: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        num_patches: int,
        *,
        selection: Callable[[int], Selection],
        quantizer: Callable[[int], Quantizer] | None,
        depth: int = 12,
        num_heads: int = 16,
        mlp_ratio: float = 4.3637,
        code_dim: int = 32,
        exact_masking: bool = True,
        positions: bool = False,
    ) -> None:
        super().__init__()
        if min(dim, num_patches, depth, code_dim) < 1:
            raise InputError(
                "the visual tokenizer needs a width, patches, a depth and a code_dim of 1 or more, got "
                f"{dim}, {num_patches}, {depth} and {code_dim}"
            )
        sizes = {"depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}
        self.dim, self.num_patches, self.code_dim = dim, num_patches, code_dim
        self.settings = {**sizes, "code_dim": code_dim, "exact_masking": exact_masking, "positions": positions}
        self.selection = selection(dim)
        places = num_patches if positions else None
        self.merger = Merger(dim, **sizes, exact_masking=exact_masking, num_positions=places)
        self.input_merger: Merger | None = None
        self.to_codes = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, code_dim)).apply(start_weights)
        self.quantizer: Quantizer | None = None
        self.decoder = FeatureDecoder(dim, num_patches, code_dim=code_dim, **sizes)
        self.pixel_decoder: PixelDecoder | None = None
        if quantizer is not None:
            self.quantize_by(quantizer)

    @property
    def is_read(self) -> bool:
        return self.input_merger is not None or self.discrete

    @property
    def num_codes(self) -> int:
        """K; 0 without a quantizer."""
        return 0 if self.quantizer is None else self.quantizer.num_codes

    def forward(self, features: Tensor, noise: Tensor | None = None) -> VisualTokens:
        """Tokenize (P, N, C) features; ``noise`` is that of ``Selection``."""
        features = self._checked(features)
        kept = self.selection(features, noise)
        merged = self.merger(features, kept.mask)
        projected = self.to_codes(merged)
        if self.quantizer is None:
            vectors = normalize(projected)
            codes, losses = None, vectors.new_zeros(len(vectors))
        else:
            found = self.quantizer(projected)
            vectors, codes, losses = found.vectors, found.codes, found.losses
        counts = is_kept(kept.mask).sum(1)
        return VisualTokens(kept.mask, kept.log_probs, merged, counts, projected, vectors, codes, losses)

    def inputs(self, features: Tensor) -> VisualInputs:
        """What a language model reads: rows of the patches that evaluation keeps, in training, too.

        So a picture has the same rows each time; gradients reach the merger and the features, not the selection.
        """
        features = self._checked(features)
        with torch.no_grad():
            mask = self.selection.decide(features).mask
        keep = is_kept(mask)
        merger = self.merger if self.input_merger is None else self.input_merger
        return VisualInputs(merger(features, mask), keep.sum(1), keep)

    @torch.no_grad()
    def codes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The codes (M,) of the patches that evaluation keeps, whatever the mode, and their counts (P,)."""
        self._check_quantizer("codes")
        features = self._checked(features)
        mask = self.selection.decide(features).mask
        with evaluating(self.quantizer):  # which gathers no statistics then
            return self.quantizer(self.to_codes(self.merger(features, mask))).codes, is_kept(mask).sum(1)

    def decode(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """(P, N, C) features of (M, d) vectors, ``counts`` of each picture, from 1 to N; InputError for others."""
        return self.decoder(vectors, counts)

    def decode_codes(self, codes: Tensor, counts: Tensor) -> Tensor:
        """(P, N, C) features of (M,) codes."""
        self._check_quantizer("decode_codes")
        return self.decode(self.quantizer.lookup(codes), counts)

    def quantize_by(self, make: Callable[[int], Quantizer]) -> None:
        """Quantize from now on, by what ``make`` makes for the width of the rows."""
        weight = self.to_codes[0].weight
        dtype = torch.promote_types(weight.dtype, torch.float32)  # its averages would not move in half precision
        self.quantizer = make(self.code_dim).to(weight.device, dtype).train(self.training)

    def split(self) -> None:
        """Give the language model a merger of its own, a copy, unless it has one."""
        if self.input_merger is None:
            self.input_merger = copy.deepcopy(self.merger)

    def config(self) -> dict[str, Any]:
        return {
            "dim": self.dim,
            "num_patches": self.num_patches,
            **self.settings,
            "selection": recipe(self.selection),
            "quantizer": recipe(self.quantizer),
            "pixel_decoder": recipe(self.pixel_decoder),
            "split": self.input_merger is not None,
            "discrete": self.discrete,
        }

    @classmethod
    def made(cls, config: dict[str, Any]) -> Self:
        split, discrete, painter = (config.pop(name) for name in ("split", "discrete", "pixel_decoder"))
        parts = {"selection": Selection, "quantizer": Quantizer}
        tokenizer = cls(**config | {name: maker(base, config[name]) for name, base in parts.items()})
        tokenizer.discrete = discrete
        if painter is not None:
            tokenizer.pixel_decoder = maker(PixelDecoder, painter)(tokenizer.dim)
        if split:
            tokenizer.split()
        return tokenizer

    def extra_repr(self) -> str:
        settings = {**self.settings, "discrete": self.discrete}
        return ", ".join(f"{name}={value}" for name, value in settings.items())

    def _checked(self, features: Tensor) -> Tensor:
        self.check_features(features)
        return features.to(self.to_codes[0].weight.dtype)

    def _check_quantizer(self, who: str) -> None:
        if self.quantizer is None:
            raise InputError(f"VisualTokenizer.{who} needs a quantizer, and there is none yet: quantize_by gives one")
