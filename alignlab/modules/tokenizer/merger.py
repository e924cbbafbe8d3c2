"""merger: kept patches take in what the dropped ones hold."""

import torch
from torch import Tensor, nn

from alignlab.modules.tokenizer.attention import Attend, Attention, attending, mlp, start_weights, weighing
from alignlab.modules.tokenizer.packing import is_kept, padded


class MergerBlock(nn.Module):
    """x + kept(norm x), then x + dropped(norm x, source), then x + mlp(norm x): (P, Q, C) -> (P, Q, C)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.kept_norm, self.dropped_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.kept, self.dropped = Attention(dim, num_heads), Attention(dim, num_heads)
        self.mlp = mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, source: Tensor, kept: Attend, dropped: Attend, some: Tensor | float) -> Tensor:
        y = self.kept_norm(x)
        x = x + self.kept(y, y, kept)
        x = x + some * self.dropped(self.dropped_norm(x), source, dropped)
        return x + self.mlp(self.mlp_norm(x))


class Merger(nn.Module):
    """Blocks in which kept patches read the kept ones before them and all dropped ones: (P, N, C) -> (M, C).

        x <- x + attention over j <= i, of kept j and j = i;   x <- x + attention over dropped j, of K = norm(F);
        x <- x + MLP(norm x);   after the last block norm(x), of which the kept rows remain, in raster order

    Jin et al. 2023, https://arxiv.org/abs/2309.04669, section 3.1, with details as in the released code. A departure,
    undone by ``exact_masking=False``: attention is a softmax over the visible keys alone, where the official one leaves
    a share to hidden keys (see ``visible_softmax``), and an empty set of dropped patches adds nothing, where the
    official one adds the mean of the kept ones.

    Where the mask needs a gradient all N positions are computed, as the official code does. Where it needs none and
    masking is exact, kept queries and dropped keys are gathered first, which is the same for the kept rows, as they
    never read what becomes of a dropped one, and takes about a quarter of the time where a third of 256 is kept.

    Args:
        dim: Width C.
        depth: Blocks.
        num_heads: Heads of each attention.
        mlp_ratio: Width inside the MLP over C, cut to a whole number.
        exact_masking: See above.
    """

    def __init__(self, dim: int, *, depth: int, num_heads: int, mlp_ratio: float, exact_masking: bool = True) -> None:
        super().__init__()
        self.exact_masking = exact_masking
        self.source_norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(MergerBlock(dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.apply(start_weights)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Merge.

        Args:
            features: (P, N, C).
            mask: (P, N) float of 0 and 1, 1 where kept.
        """
        if self.exact_masking and not (mask.requires_grad and torch.is_grad_enabled()):
            return self._gathered(features, is_kept(mask))
        return self.dense(features, mask)[is_kept(mask)]

    def dense(self, features: Tensor, mask: Tensor) -> Tensor:
        """(P, N, C) of all positions; the mask may need a gradient, which comes from both attentions."""
        exact, hidden = self.exact_masking, 1 - mask[:, None, None]
        some = (hidden > 0.5).any(-1).to(features.dtype) if exact else 1.0  # (P, 1, 1)
        kept, dropped = weighing(earlier(mask), exact=exact), weighing(hidden, exact=exact)
        return self._blocks(features, self.source_norm(features), kept, dropped, some)

    def _gathered(self, features: Tensor, keep: Tensor) -> Tensor:
        counts = keep.sum(1)
        x, present = padded(features[keep], counts)
        normed = self.source_norm(features)
        source, visible = padded(normed[~keep], keep.shape[1] - counts)
        if source.shape[1] == 0:  # nothing is dropped of any picture: any one key, which counts for nothing
            source, visible = normed[:, :1], visible.new_zeros(len(x), 1)  # but whose weights have a gradient, of 0
        some = visible.any(1)[:, None, None]
        dropped = attending((visible[:, None] | ~some)[:, None])
        # Padding comes behind a picture's rows, so none of them reads it.
        return self._blocks(x, source, attending(causal=True), dropped, some.to(features.dtype))[present]

    def _blocks(self, x: Tensor, source: Tensor, kept: Attend, dropped: Attend, some: Tensor | float) -> Tensor:
        for block in self.blocks:
            x = block(x, source, kept, dropped, some)
        return self.norm(x)


def earlier(mask: Tensor) -> Tensor:
    """(P, 1, N, N): position i sees itself, and j before it as far as (P, N) ``mask`` keeps j."""
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, None, None].masked_fill(itself, 1.0).tril()
