"""RandomTokens: PLoRA's branches at tokens that chance chooses: the placebo of which tokens are visual."""

from typing import Any

import torch
from torch import Tensor, nn

from alignlab.adapters import PLoRA


class RandomTokens(PLoRA):
    """PLoRA with branches at a share of all places, the same ones in every sequence, whatever stands there.

    Args:
        share: Of the places; that of visual tokens in the lab's captions and questions is about 0.6.
    """

    def __init__(
        self, *, share: float = 0.6, rank: int = 16, scaling: float = 1.0, dropout: float = 0.05, train: tuple[str, ...] = ()
    ) -> None:
        super().__init__(ranks={"visual": rank}, scaling=scaling, dropout=dropout, train=train)
        self.share = share

    def apply(self, backbone) -> None:
        super().apply(backbone)
        for module in {backbone.model, backbone.model.base_model}:
            module.register_forward_pre_hook(self.choose, with_kwargs=True, prepend=True)

    def choose(self, module: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        places = named["attention_mask"].cumsum(1)[:, -named["input_ids"].shape[1] :]
        return arguments, {"visual_token_mask": chance(places) < self.share, **named}


def chance(places: Tensor) -> Tensor:
    """A number in [0, 1) for each place, of the same shape, which looks like chance and is always the same."""
    return torch.frac(torch.sin(places.double() * 12.9898) * 43758.5453).abs()
