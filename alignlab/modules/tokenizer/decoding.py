"""decoding: from the rows of the kept patches back to the features of all patches."""

import torch
from torch import Tensor, nn

from alignlab.errors import InputError
from alignlab.modules.tokenizer.attention import Attend, Attention, attending, mlp, start_weights
from alignlab.modules.tokenizer.packing import padded


class DecoderBlock(nn.Module):
    """x + self(norm x), then x + cross(norm x, source), then x + mlp(norm x): (P, N, C) -> (P, N, C)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention, self.cross_attention = Attention(dim, num_heads), Attention(dim, num_heads)
        self.mlp = mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, source: Tensor, visible: Attend) -> Tensor:
        y = self.self_norm(x)
        x = x + self.self_attention(y, y, attending())
        x = x + self.cross_attention(self.cross_norm(x), source, visible)
        return x + self.mlp(self.mlp_norm(x))


class FeatureDecoder(nn.Module):
    """N learned queries read a picture's rows: (M, d), (P,) -> (P, N, C).

        source = W v + p_rank
        every block   x <- x + self(norm x),   x <- x + cross(norm x, source),   x <- x + MLP(norm x)
        W2 tanh(W1 norm(x))

    Jin et al. 2023, https://arxiv.org/abs/2309.04669, section 3.1, with details as in the released code: rows are told
    apart by their rank among the kept ones, not by their place in the picture, and nothing is causal. Positions start
    at 0; queries too in the released code, but here they start random and ``read`` brings rows of length 1 to their
    size, so that queries can tell rows apart from the beginning.

    Args:
        dim: Width C of the features.
        num_patches: Patches N of a picture, and the most rows that it may have.
        code_dim: Width d of the rows.
        depth: Blocks.
        num_heads: Heads of each attention.
        mlp_ratio: Width inside the MLP over C, cut to a whole number.
    """

    def __init__(
        self, dim: int, num_patches: int, *, code_dim: int, depth: int, num_heads: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.read = nn.Linear(code_dim, dim)
        self.positions = nn.Parameter(torch.zeros(num_patches, dim))
        self.queries = nn.Parameter(torch.zeros(num_patches, dim))
        self.blocks = nn.ModuleList(DecoderBlock(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        self.apply(start_weights)
        nn.init.normal_(self.read.weight)
        nn.init.normal_(self.queries)

    def forward(self, vectors: Tensor, counts: Tensor) -> Tensor:
        """Decode.

        Args:
            vectors: (M, d), picture by picture.
            counts: (P,) long with sum M, each from 1 to N.

        Raises:
            InputError: There are other counts.
        """
        check_counts(counts, len(vectors), len(self.positions))
        rows, present = padded(self.read(vectors.to(self.read.weight.dtype)), counts)
        source = rows + self.positions[: rows.shape[1]].to(rows.dtype)
        x = self.queries.expand(len(counts), -1, -1)
        visible = attending(present[:, None, None])
        for block in self.blocks:
            x = block(x, source, visible)
        return self.head(self.norm(x))


def check_counts(counts: Tensor, num_rows: int, num_patches: int, *, fewest: int = 1) -> None:
    """Raise InputError unless pictures have ``fewest`` to ``num_patches`` rows each, and together ``num_rows``."""
    found = counts.tolist()
    if sum(found) != num_rows or not all(fewest <= count <= num_patches for count in found):
        raise InputError(
            f"decoding needs {fewest} to {num_patches} rows of each picture, {num_rows} together as given, got counts "
            f"{found}"
        )
