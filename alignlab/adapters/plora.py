"""plora: Partial LoRA as a method of peft, whose low-rank branches some tokens alone take."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn

from alignlab.adapters.registering import add_type, register
from alignlab.adapters.visual import Scope, VisualTokens, placeholders
from alignlab.errors import InputError

PLORA = add_type("PLORA")

OTHERS = (
    "use_dora", "alora_invocation_tokens", "arrow_config", "use_bdlora", "velora_config", "kasa_config",
    "monteclora_config", "use_qalora", "lora_bias", "target_parameters", "layer_replication",
    "modules_to_save", "trainable_token_indices",
)  # fmt: skip
"""What peft can do to LoRA and PLoRA cannot."""

HEADS = "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"
"""Tasks for which peft sets modules_to_save by itself, after the config was checked."""

OTHER_MAPS = nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention
"""What LoRA adapts besides linear maps of tokens."""


@dataclass
class PLoraConfig(LoraConfig):
    """LoRA for some tokens: y = W x + b, and + (alpha / r) B A dropout(x) at tokens in scope.

    Source: PLoRA of InternLM-XComposer2, Dong et al. 2024, https://arxiv.org/abs/2401.16420 (build_mlp.py), whose rank,
    alpha and dropout are the defaults. As was meant there, and not as its code does, A is Kaiming-uniform and B zero,
    so that nothing changes at first. Fields that are not listed are those of LoraConfig.

    Args:
        token_scope: Which tokens take the branch: the visual ones, all others (text and padding), or all.
        visual_token_ids: The placeholders of patches; None: those that the model's config names.
        target_modules: As LoraConfig's; None: every linear map of the decoder (not the head).

    Raises:
        InputError: Something of LoRA is asked for that would change what other tokens see.
    """

    r: int = 256
    lora_alpha: int = 256
    lora_dropout: float = 0.05
    token_scope: Literal["visual", "text", "all"] = field(default="visual")
    visual_token_ids: list[int] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PLORA
        if self.token_scope not in ("visual", "text", "all"):
            raise InputError(f"PLoraConfig: token_scope is one of visual, text, all, got {self.token_scope!r}")
        if others := [name for name in OTHERS if getattr(self, name)]:
            raise InputError(f"PLoraConfig does not go together with {', '.join(others)}; leave that out")
        if self.task_type in HEADS:
            raise InputError(f"PLoraConfig: for task_type {self.task_type} peft trains a head that text sees, too")
        if self.init_lora_weights not in (True, False, "gaussian"):
            raise InputError(
                "PLoraConfig: init_lora_weights is one of true, false, gaussian, since others change the weights that "
                f"text sees, too; got {self.init_lora_weights!r}"
            )
        if self.bias != "none":
            raise InputError(f"PLoraConfig: bias is none, since text would see others trained; got {self.bias!r}")
        if self.target_modules is None and self.layers_to_transform is not None:
            raise InputError("PLoraConfig: layers_to_transform needs target_modules, got none")


class PLoraModel(LoraModel):
    """LoRA whose adapters act on the tokens of their scope; otherwise as LoraModel.

    Which tokens are visual is found once for each call of the model, of its base model too, in this order: its keyword
    ``visual_token_mask``, (B, T) bool; ``visual_tokens``; the placeholders in ``input_ids``. ``generate`` of the
    model chooses no placeholder until the adapters are unloaded.
    """

    def visual_tokens(self, mask: Tensor) -> AbstractContextManager[None]:
        """Say which tokens are visual, for calls without ``input_ids`` and for ``generate``.

        Args:
            mask: (B, T) bool, of whole sequences; later tokens are text, beams have the mask of their row.
        """
        return self._tokens().given(mask)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """The ``context_fn`` for torch's checkpoint wrappers; transformers' own checkpointing needs none."""
        return self._tokens().checkpoint_contexts()

    def _tokens(self) -> VisualTokens:
        return self.model._plora_tokens

    def _check_new_adapter_config(self, config: LoraConfig) -> None:
        super()._check_new_adapter_config(config)
        if others := [name for name, each in self.peft_config.items() if not isinstance(each, PLoraConfig)]:
            raise InputError(
                f"PLoRA cannot share a model with other methods, got {', '.join(others)}; plain LoRA beside it is a "
                'PLoraConfig with token_scope="all"'
            )

    def _prepare_adapter_config(self, peft_config: PLoraConfig, model_config: dict) -> PLoraConfig:
        if peft_config.target_modules is None or peft_config.target_modules == "all-linear":
            peft_config.target_modules = _linear_maps(self.model)
        return peft_config

    def _prepare_model(self, peft_config: PLoraConfig, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        begin, modules = _decoder(model), dict(model.named_modules())
        targets = [name for name in modules if self._check_target_module_exists(peft_config, name)]
        if outside := [name for name in targets if not name.startswith(begin)]:
            raise InputError(
                f"PLoRA adapts the decoder alone, but target_modules name {', '.join(outside[:3])}"
                f"{f' and {len(outside) - 3} more' if len(outside) > 3 else ''} outside of it; None are all of its "
                "linear maps, a text is a regular expression for whole names"
            )
        if others := [name for name in targets if isinstance(modules[name], OTHER_MAPS)]:
            raise InputError(f"PLoRA adapts linear maps, got {others[0]}, a {type(modules[others[0]]).__name__}")
        ids = peft_config.visual_token_ids
        ids = placeholders(getattr(model, "config", None)) if ids is None else tuple(sorted(ids))
        known: VisualTokens | None = vars(model).get("_plora_tokens")
        if known is not None and known.ids != ids:
            raise InputError(
                f"PLoRA: all adapters of a model need the same visual_token_ids, got {list(ids)} after "
                f"{list(known.ids)}"
            )
        if not ids and peft_config.visual_token_ids is None and peft_config.token_scope != "all":
            raise InputError(
                f"PLoRA needs to know which tokens are visual, and the config of {type(model).__name__} names no "
                "placeholder; set visual_token_ids, to [] where every call has a mask"
            )
        if known is None:
            model._plora_tokens = VisualTokens(model, ids)

    def _create_and_replace(
        self,
        lora_config: PLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key, parameter_name=parameter_name
        )
        layer, tokens, scope = getattr(parent, target_name), self._tokens(), lora_config.token_scope
        tokens.scopes[adapter_name] = scope
        if type(layer) is Linear:
            layer.__class__, layer.tokens = PartialLinear, tokens
        if scope == "all":
            return
        branch = Partial(tokens, scope, adapter_name, current_key)
        if isinstance(layer, Linear) or "lora_variant" in type(layer).forward.__code__.co_names:
            layer.lora_variant[adapter_name] = branch
        else:  # such as AWQ's
            layer.lora_B[adapter_name].register_forward_hook(branch.only)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        tokens, names = self._tokens(), kwargs.get("adapter_names")
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            try:
                tokens.names = None if names is None else _repeated(names, kwargs.get("num_beams"))
                yield
            finally:
                tokens.names = None

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        if partial := [name for name in self.active_adapters if self.peft_config[name].token_scope != "all"]:
            raise InputError(
                f"PLoRA cannot merge {', '.join(partial)}: weights act on every token, the adapter on some; unload it, "
                'or merge adapters with token_scope="all"'
            )

    def _check_add_weighted_adapter(self, adapters: list[str], *args: Any, **kwargs: Any) -> tuple[str, int, Any]:
        found = super()._check_add_weighted_adapter(adapters, *args, **kwargs)
        if len(scopes := {self.peft_config[name].token_scope for name in adapters}) > 1:
            raise InputError(f"PLoRA adds adapters of one token_scope, got {', '.join(sorted(scopes))}")
        return found

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        self._tokens().remove(model)
        del model._plora_tokens
        return model


class Partial(LoraVariant):
    """What an adapter does in one layer: its branch is computed for the tokens in scope, and added to theirs.

    Args:
        tokens: Knows which tokens are visual.
        scope: visual or text.
        adapter: Its name.
        layer: The layer's.
    """

    def __init__(self, tokens: VisualTokens, scope: Scope, adapter: str, layer: str) -> None:
        self.tokens, self.scope, self.adapter, self.layer = tokens, scope, adapter, layer

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """The layer's output (..., out) with the branch of x (..., in) added where the scope is."""
        rows = self.tokens.selection(self.layer, x.shape, self.adapter).rows(self.scope, self.adapter).to(x.device)
        if not len(rows) and not torch.is_grad_enabled():
            return result
        # No row is no special case where gradients are needed: those of A and B are zeros then, and processes of which
        # some have no picture stay in step. Others than the chosen rows are not read, so they may hold anything.
        weight_a, weight_b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        chosen = x.reshape(-1, x.shape[-1]).index_select(0, rows)
        low = weight_a(module.lora_dropout[active_adapter](chosen)) * module.scaling[active_adapter]
        branch = weight_b(low).to(result.dtype)
        return result.reshape(-1, result.shape[-1]).index_add(0, rows, branch).view(result.shape)

    def only(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        """A forward hook of B, for layers that know nothing of variants: zeros outside the scope."""
        chosen = self.tokens.selection(self.layer, output.shape, self.adapter).chosen(self.scope, self.adapter)
        return torch.where(chosen.to(output.device).reshape(*output.shape[:-1], 1), output, 0)

    def supports_lora_conversion(self) -> bool:
        return False

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        raise InputError(f"PLoRA cannot merge {self.adapter}: it acts on some tokens, weights on all")

    merge_unsafe = unmerge = merge_safe


class PartialLinear(Linear):
    """peft's layer, out of the way where a pass has nothing for it to do: a step of generation, most of all."""

    tokens: VisualTokens

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        now = self.tokens.now
        if now is not None and now.idle and not kwargs and not self.merged_adapters:
            return self._modules["base_layer"](x, *args)  # as self.base_layer, which takes a while to find
        return super().forward(x, *args, **kwargs)

    def update_layer(self, adapter_name: str, *args: Any, config: LoraConfig, **kwargs: Any) -> None:
        if not isinstance(config, PLoraConfig):
            raise InputError(f"PLoRA cannot share a layer with other methods, got {adapter_name}, {config.peft_type}")
        super().update_layer(adapter_name, *args, config=config, **kwargs)


def _decoder(model: nn.Module) -> str:
    """What the names of the decoder's modules begin with; a model without a decoder is one."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    name = next(name for name, module in model.named_modules() if module is decoder)
    return f"{name}." if name else ""


def _linear_maps(model: nn.Module) -> str:
    """A regular expression for the linear maps of the decoder, by what they are called in its blocks."""
    begin, inside = _decoder(model), {name for name, each in model.named_modules() if isinstance(each, LoraLayer)}
    names = {
        name
        for name, module in model.named_modules()
        if name.startswith(begin)
        and isinstance(module, nn.Linear | LoraLayer)
        and not any(name.startswith(f"{layer}.") for layer in inside)
    }
    if not names:
        raise InputError(f"PLoRA found no linear map in the decoder of {type(model).__name__}; set target_modules")
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    return rf"{re.escape(begin)}(.*\.)?({'|'.join(map(re.escape, ends))})"


def _repeated(names: Sequence[str], num_beams: int | None) -> list[str]:
    return [name for name in names for _ in range(num_beams or 1)]


register("PLORA", PLoraConfig, PLoraModel)
