"""pixels: from decoded features to a picture."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.errors import InputError
from alignlab.functional import upcast


class PixelDecoder(nn.Module, ABC):
    """Base of what paints pictures, made by ``cls(dim, **settings)``; a diffusion model may stand behind it."""

    dim: int
    settings: dict[str, int | list[int]]
    """Keyword arguments that make it again besides ``dim``, plain values of JSON."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """(P, N, C) decoded features -> (P, 3, H, W) in [0, 1], float32 or wider."""


class PatchPixels(PixelDecoder):
    """Each patch is painted from its features and those of the eight around it: convolution, MLP, sigmoid.

    Small and without any loss of its own; the papers paint with a diffusion model.

    Args:
        dim: Width C of the features.
        grid: Patches of a picture, (down, across); their product is N.
        patch_size: Pixels of a patch's side.
        hidden: Width between the maps.
    """

    def __init__(self, dim: int, *, grid: Sequence[int], patch_size: int, hidden: int = 128) -> None:
        super().__init__()
        if len(grid) != 2 or min(*grid, patch_size, hidden) < 1:
            raise InputError(
                "PatchPixels needs a grid of two numbers, a patch_size and a hidden width, all 1 or more, got "
                f"{list(grid)}, {patch_size} and {hidden}"
            )
        self.dim, self.grid, self.patch_size = dim, tuple(grid), patch_size
        self.settings = {"grid": list(grid), "patch_size": patch_size, "hidden": hidden}
        # A convolution as a linear map of what lies around: several times faster on a CPU.
        self.paint = nn.Sequential(
            nn.Linear(9 * dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, 3 * patch_size**2),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        down, across = self.grid
        if features.shape[1:] != (down * across, self.dim):
            raise InputError(
                f"PatchPixels paints {down} x {across} patches of width {self.dim}, got features of "
                f"{features.shape[1]} patches of width {features.shape[2]}"
            )
        features = features.to(self.paint[0].weight.dtype).unflatten(1, self.grid)
        padded = F.pad(features, (0, 0, 1, 1, 1, 1))  # by nothing, around the picture
        around = [padded[:, y : y + down, x : x + across] for y in range(3) for x in range(3)]
        painted = upcast(self.paint(torch.cat(around, -1))).sigmoid()  # (P, down, across, 3 p p)
        painted = painted.unflatten(-1, (3, self.patch_size, self.patch_size)).permute(0, 3, 1, 4, 2, 5)
        return painted.flatten(4).flatten(2, 3)
