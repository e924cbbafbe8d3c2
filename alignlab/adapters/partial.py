"""PLoRA: low-rank branches that only some tokens take."""

from collections.abc import Mapping, Sequence

from alignlab.adapters.base import Adapter
from alignlab.adapters.placing import Places, add, check_numbers, check_parts
from alignlab.adapters.visual import Scope
from alignlab.errors import InputError
from alignlab.modules.parted import Part, Parted


class PLoRA(Adapter):
    """Train low-rank branches beside the language model's linear maps that only the tokens of a scope take.

        y_t = W x_t + b + [t in scope] * scaling * B A dropout(x_t)

    With the scope ``visual`` this is Partial LoRA: pictures get weights of their own, and a text without pictures is
    read as before, bit for bit. Source: Dong et al. 2024, https://arxiv.org/abs/2401.16420, and the released code, from
    which the scaling, 1, and the dropout are. Departure: B starts at zero, as LoRA's does; in that code a fresh branch
    changes the model before it is trained.

    Scopes cross: ``{visual: 12, all: 4}`` is PLoRA beside LoRA, each with its own rank and under its scope's name.

    Args:
        ranks: The rank for each scope; any of visual, text, all; 0 for none, as where a config that this one changes
            has named one.
        scaling: What the branches are multiplied by; peft's alpha is scaling * rank.
        dropout: Of the branches' input, in [0, 1).
        train: Parts that train whole beside them.
        modules: Names of linear maps, such as q_proj, that get branches; None: all.
    """

    def __init__(
        self,
        *,
        ranks: Mapping[Scope, int] = {"visual": 256},  # never written to
        scaling: float = 1.0,
        dropout: float = 0.05,
        train: Sequence[Part] = (),
        modules: Sequence[str] | None = None,
    ) -> None:
        if not any(ranks.values()) or (unknown := set(ranks) - {"visual", "text", "all"}):
            came = ", ".join(sorted(unknown)) if any(ranks.values()) else "none"
            raise InputError(f"PLoRA needs a rank for one or more of visual, text, all, got {came}")
        check_parts("PLoRA", ("language_model",), train)
        self.ranks = {scope: rank for scope, rank in ranks.items() if rank != 0}
        for rank in self.ranks.values():
            check_numbers("PLoRA", rank=rank, scaling=scaling, dropout=dropout)
        self.scaling, self.dropout = scaling, dropout
        self.train, self.modules = tuple(train), modules

    def apply(self, backbone: Parted) -> None:
        if backbone.head is None:
            raise InputError(
                f"PLoRA needs a language model that reads pictures among words, but {backbone.path} is a dual encoder, "
                "each tower of which reads one of them; use LoRA"
            )
        from alignlab.adapters.plora import PLoraConfig

        places = Places(backbone, ("language_model",), self.modules, who="PLoRA")
        configs = {
            scope: PLoraConfig(
                token_scope=scope,
                r=rank,
                lora_alpha=self.scaling * rank,
                lora_dropout=self.dropout,
                target_modules=places.pattern,
            )
            for scope, rank in self.ranks.items()
        }
        add(backbone, configs, train=self.train, who="PLoRA")
