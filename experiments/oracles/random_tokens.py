"""RandomTokens: PLoRA's branches at tokens that chance chooses: the placebo of which tokens are visual."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from alignlab.adapters import PLoRA
from alignlab.modules.parted import Part

CHANCE = torch.rand(4096, generator=torch.Generator().manual_seed(7))
"""A number for each place in a sequence; of this seed, low ones are as frequent among visual tokens as among others."""


class RandomTokens(PLoRA):
    """PLoRA with branches at a share of all places, the same ones in every sequence, whatever stands there.

    A run is judged so; its folder is one of PLoRA, whose branches, read again, act at visual tokens.

    Args:
        share: Of the places; see ``PLoRA`` for the others.
    """

    def __init__(self, *, share: float, rank: int, dropout: float = 0.05, train: Sequence[Part] = ()) -> None:
        super().__init__(ranks={"visual": rank}, dropout=dropout, train=train)
        self.share = share

    def apply(self, backbone) -> None:
        super().apply(backbone)
        for module in {backbone.model, backbone.model.base_model}:
            module.register_forward_pre_hook(self.choose, with_kwargs=True, prepend=True)

    def choose(self, module: nn.Module, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids, mask, cache = named["input_ids"], named.get("attention_mask"), named.get("past_key_values")
        if mask is None:  # where nothing is padded, generation leaves it out
            mask = ids.new_ones(len(ids), (0 if cache is None else cache.get_seq_length()) + ids.shape[1])
        places = mask.cumsum(1)[:, -ids.shape[1] :]  # behind a cache the last ones
        return arguments, {"visual_token_mask": CHANCE.to(ids.device)[places] < self.share, **named}
