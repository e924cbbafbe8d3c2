"""LoRA, DoRA and QLoRA: low-rank branches beside frozen linear maps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alignlab.adapters.base import Adapter
from alignlab.adapters.placing import Places, add, check_numbers, check_parts
from alignlab.adapters.switching import has_adapters
from alignlab.errors import InputError
from alignlab.modules.parted import Part, Parted

if TYPE_CHECKING:
    from peft import LoraConfig


class LoRA(Adapter):
    """Train a low-rank branch beside each linear map of the named parts, and freeze the maps.

        y = W x + b + scaling * B A dropout(x)

    B starts at zero, so that training starts from the model as it was; A is drawn from torch's global generator.
    Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685. Embeddings and the LM head get none. Where the backbone
    has adapters already, of an earlier stage, those stay, frozen and at work, and these come beside them.

    Args:
        rank: The rows of A.
        scaling: What the branch is multiplied by; peft's alpha is scaling * rank.
        dropout: Of the branch's input, in [0, 1).
        parts: Whose linear maps get branches; any of vision_tower, projector, language_model.
        train: Parts that train whole beside them.
        modules: Names of linear maps, such as q_proj, that get branches; None: all.
    """

    def __init__(
        self,
        *,
        rank: int = 64,
        scaling: float = 2.0,
        dropout: float = 0.05,
        parts: Sequence[Part] = ("language_model",),
        train: Sequence[Part] = (),
        modules: Sequence[str] | None = None,
    ) -> None:
        who = type(self).__name__
        check_parts(who, parts, train)
        check_numbers(who, rank=rank, scaling=scaling, dropout=dropout)
        self.rank, self.scaling, self.dropout = rank, scaling, dropout
        self.parts, self.train, self.modules = tuple(parts), tuple(train), modules

    def apply(self, backbone: Parted) -> None:
        places = Places(backbone, self.parts, self.modules, who=type(self).__name__)
        add(backbone, {"lora": self.config(places)}, train=self.train, who=type(self).__name__)

    def config(self, places: Places) -> "LoraConfig":
        """What peft is told."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.scaling * self.rank,
            lora_dropout=self.dropout,
            target_modules=places.pattern,
        )


class DoRA(LoRA):
    """LoRA whose maps are split into directions, which the branch changes, and one trained length for each output.

        y = m (W x + scaling * B A x) / |W + scaling * B A|  + b,     m starts as |W|, a norm for each row

    Source: Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5. Slower than LoRA, as norms of whole matrices are
    computed in each step; no gradient goes through them (section 4.3). Arguments are LoRA's.
    """

    def config(self, places: Places) -> "LoraConfig":
        config = super().config(places)
        config.use_dora = True
        return config


class QLoRA(LoRA):
    """LoRA beside linear maps that are kept in 4 bits each, for models that would not fit otherwise.

    All linear maps of the named parts are quantised in place to nf4 with double quantisation, and computed with in the
    model's type. Source: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314. What is trained fits the quantised
    maps, so the adapter is kept beside them, never merged; a dual encoder, which is saved merged, is refused. Other
    arguments are LoRA's.

    Args:
        parts: Whose linear maps are quantised and get branches; any of vision_tower, projector, language_model.
    """

    def apply(self, backbone: Parted) -> None:
        from alignlab.adapters.quantizing import quantize

        if backbone.head is None:
            raise InputError(
                f"QLoRA needs a backbone that keeps its adapters, but {backbone.path} is a dual encoder, saved with "
                "them merged, and quantised weights cannot take them exactly; use LoRA or DoRA"
            )
        for part in self.parts:
            if part in backbone.changed or has_adapters(backbone.parts[part]):
                raise InputError(
                    f"QLoRA quantises what lies in the files of {backbone.path}, but of its {part} not all weights are "
                    "from there (backbone.fresh, backbone.take, or an earlier adapter); start from the directory of "
                    "a finished run, or from what `alignlab export` makes of it"
                )
        quantize(backbone.model, Places(backbone, self.parts, None, who="QLoRA").pattern)
        super().apply(backbone)
