"""TextAdapter: from a language model's embedding of a text to the width that pictures are embedded in."""

from torch import Tensor, nn
from torch.nn import functional as F

from alignlab.functional import upcast


class TextAdapter(nn.Module):
    """A few residual blocks, a norm and a linear map: (..., in) -> (..., out).

        x = e / |e|;   then for every block  x = x + W2 gelu(W1 norm(x));   then  W norm(x)

    LLM2CLIP, Huang et al. 2024, https://arxiv.org/abs/2411.04997, section 3.2; microsoft/LLM2CLIP,
    ``llm2clip/eva_clip/model.py``, ``TextProj``. The official code divides by the length where it reads embeddings from
    a file, and not where it computes them; here both are the same by default, so that one may stand for the other.

    Args:
        in_dim: Width of the language model.
        out_dim: Width of the result.
        num_blocks: Residual blocks.
        expansion: Width inside a block, in multiples of ``in_dim``.
        normalized: Divide by the length first.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, num_blocks: int = 4, expansion: int = 2, normalized: bool = True
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.normalized = in_dim, out_dim, normalized
        inner = expansion * in_dim
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, inner), nn.GELU(), nn.Linear(inner, in_dim))
            for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(in_dim)
        self.linear = nn.Linear(in_dim, out_dim)

    def forward(self, embeddings: Tensor) -> Tensor:
        x = embeddings
        if self.normalized:
            x = F.normalize(upcast(x), dim=-1, eps=1e-12)
        x = x.to(self.linear.weight.dtype)
        for block in self.blocks:
            x = x + block(x)
        return self.linear(self.norm(x))
