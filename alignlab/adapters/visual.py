"""visual: which tokens of a forward pass are visual; found once, for all layers that treat them differently."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from inspect import signature
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alignlab.errors import InputError

Scope = Literal["visual", "text", "all"]

PLACEHOLDERS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
"""What configs of transformers call the tokens that stand for patches."""


def placeholders(config: Any) -> tuple[int, ...]:
    """The ids that a model's config names for patches of pictures and videos, in ascending order; may be none."""
    named = (getattr(config, name, None) for name in PLACEHOLDERS)
    return tuple(sorted({each for each in named if isinstance(each, int)}))


class Selection:
    """The visual tokens of one forward pass.

    Args:
        mask: (B, T) bool, True at visual tokens.
        names: The adapter of each of B rows, where they differ.
        idle: No adapter of the model has anything to do in this pass.
    """

    def __init__(self, mask: Tensor, names: Sequence[str] | None, *, idle: bool = False) -> None:
        self.mask, self.names, self.idle = mask, names, idle
        self._rows: dict[tuple[Scope, str | None], Tensor] = {}

    def rows(self, scope: Scope, adapter: str) -> Tensor:
        """The tokens that an adapter acts on, (M,) long, in its rows laid end to end; found once for all layers."""
        key = scope, adapter if self.names is not None else None
        if key not in self._rows:
            self._rows[key] = self.chosen(scope, adapter).flatten().nonzero().squeeze(1)
        return self._rows[key]

    def chosen(self, scope: Scope, adapter: str) -> Tensor:
        """The same as a mask of the adapter's rows, (b, T) bool."""
        mask = self.mask
        if self.names is not None:
            mask = mask[[row for row, name in enumerate(self.names) if name == adapter]]
        return mask if scope == "visual" else ~mask


class VisualTokens:
    """Finds the visual tokens of each forward pass of a model; its layers ask ``selection``.

    Hooks on the model, and on its base model, which may be called directly, look in this order for a mask: the keyword
    ``visual_token_mask``, the mask of ``given``, the placeholders in ``input_ids``. The call that is entered first
    decides; when it ends all is forgotten, so parts of the model that are called by themselves raise an error. It is no
    part of the state dict, and is copied and pickled with the model, without the pass that is going on.

    The model's ``generate`` never chooses a placeholder, which would count as visual when it is read.

    Args:
        model: Any module, whose base model is the attribute of that name, if it has one.
        ids: The placeholders.
    """

    def __init__(self, model: nn.Module, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self.scopes: dict[str, Scope] = {}
        self.names: Sequence[str] | None = None
        self.now: Selection | None = None
        self._inside: nn.Module | None = None
        self._frame: FrameType | None = None
        self._given: Tensor | None = None
        self._handles = []
        for module in {id(each): each for each in (model, getattr(model, "base_model", model))}.values():
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        if ids and getattr(model, "generation_config", None) is not None:
            model.generate = partial(_without, ids, model)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"now": None, "_inside": None, "_frame": None}

    def selection(self, layer: str, shape: Sequence[int], adapter: str) -> Selection:
        """The visual tokens of this pass, for a layer whose input has some shape, (..., in).

        Raises:
            InputError: It is unknown which are visual, or the layer sees other tokens than the model was given.
        """
        now = self.now
        if now is None:
            raise InputError(
                f"PLoRA at {layer} needs to know which tokens are visual, but the model was called with inputs_embeds "
                "alone, or a part of it by itself; call the whole model with input_ids, with visual_token_mask=(B, T) "
                "bool, or inside `with tuner.visual_tokens(mask):`"
            )
        rows = len(now.mask) if now.names is None else now.names.count(adapter)
        came = 1
        for size in shape[:-1]:
            came *= size
        if came != rows * now.mask.shape[1]:
            raise InputError(
                f"PLoRA at {layer} sees {came} tokens where the model was given {rows} x {now.mask.shape[1]}; adapt "
                "layers only that see every token of the decoder, or leave this one out of target_modules"
            )
        return now

    @contextmanager
    def given(self, mask: Tensor) -> Iterator[None]:
        """Use a mask (B, T) bool in all passes of a while.

        Passes that begin with a filled cache take their part of it; what is generated behind its end is text; rows that
        are there several times, as beams are, have one mask.
        """
        _check(mask)
        before, self._given = self._given, mask
        try:
            yield
        finally:
            self._given = before

    @contextmanager
    def recall(self, selection: Selection | None) -> Iterator[None]:
        """Be in another pass again for a while, to compute a part of it once more."""
        before, self.now = self.now, selection
        try:
            yield
        finally:
            self.now = before

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """The ``context_fn`` of torch's checkpoint, for wrappers that transformers does not know."""
        return nullcontext(), self.recall(self.now)

    def remove(self, model: nn.Module) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for module in model.modules():
            if isinstance(checkpoint := vars(module).get("_gradient_checkpointing_func"), Remembering):
                module._gradient_checkpointing_func = checkpoint.checkpoint
        vars(model).pop("generate", None)

    def _enter(self, module: nn.Module, arguments: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        mask = named.pop("visual_token_mask", None)
        if self._inside is None or self._inside is module or not self._running():
            self._inside, self.now = module, None
            self._frame = None if torch.compiler.is_compiling() else sys._getframe(1)
            self.now = self._found(module, arguments, named, mask)
            if module.training and torch.is_grad_enabled():
                self._remember(module)
        return arguments, named

    def _running(self) -> bool:
        """Whether the call that was entered first goes on: nobody tells of the end of one that the user interrupts."""
        if self._frame is None or torch.compiler.is_compiling():
            return True
        frame = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if self._inside is module:
            self._inside = self.now = self._frame = None

    def _found(
        self, module: nn.Module, arguments: tuple, named: dict[str, Any], mask: Tensor | None
    ) -> Selection | None:
        if arguments:
            named = dict(zip(signature(module.forward).parameters, arguments, strict=False)) | named
        ids, embeddings = named.get("input_ids"), named.get("inputs_embeds")
        shape = ids.shape if ids is not None else None if embeddings is None else embeddings.shape[:2]
        if mask is not None:
            _check(mask, shape)
        elif self._given is not None and shape is not None:
            mask = _part(self._given, shape, named.get("past_key_values"))
        elif ids is not None:
            mask = ids == (self.ids[0] if self.ids else -1)
            for each in self.ids[1:]:  # one by one, as a tensor of them would have to be brought to the device
                mask |= ids == each
        else:
            return None
        found = Selection(mask, self.names)
        if not torch.is_grad_enabled() and all(scope == "visual" for scope in self.scopes.values()):
            found.idle = not mask.any()
        return found

    def _remember(self, model: nn.Module) -> None:
        for module in model.modules():
            checkpoint = vars(module).get("_gradient_checkpointing_func")
            if checkpoint is not None and not isinstance(checkpoint, Remembering):
                module._gradient_checkpointing_func = Remembering(checkpoint, self)


def told(model: nn.Module, mask: Tensor) -> AbstractContextManager[None]:
    """Tell a model's adapters for a while, if they ask, which tokens are visual; see ``VisualTokens.given``."""
    tokens: VisualTokens | None = vars(model).get("_plora_tokens")
    return nullcontext() if tokens is None else tokens.given(mask)


class Remembering:
    """A checkpoint function of transformers whose recomputations know the visual tokens of their own pass.

    Not a ContextVar: for tensors on a GPU, autograd recomputes in a thread of its own.
    """

    def __init__(self, checkpoint: Callable[..., Any], tokens: VisualTokens) -> None:
        self.checkpoint, self.tokens = checkpoint, tokens

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        selection = self.tokens.now

        def again(*given: Any) -> Any:
            with self.tokens.recall(selection):
                return function(*given)

        return self.checkpoint(again, *arguments)


def _without(ids: Sequence[int], model: nn.Module, *arguments: Any, **named: Any) -> Any:
    """The model's ``generate`` without some tokens; what its generation_config says of others is kept, and stays."""
    config = model.generation_config
    before = config.suppress_tokens
    config.suppress_tokens = sorted({*ids, *(before or ())})
    try:
        return type(model).generate(model, *arguments, **named)
    finally:
        config.suppress_tokens = before


def _check(mask: Tensor, shape: Sequence[int] | None = None) -> None:
    if mask.dtype != torch.bool or mask.dim() != 2 or (shape is not None and mask.shape != tuple(shape)):
        tokens = "" if shape is None else f" of the {' x '.join(map(str, shape))} tokens"
        raise InputError(f"PLoRA needs a mask (B, T) bool{tokens}, got {tuple(mask.shape)} {mask.dtype}")


def _part(mask: Tensor, shape: Sequence[int], cache: Any) -> Tensor:
    """The columns of a mask behind a cache, each row as often as it is there."""
    rows, width = shape
    if rows % len(mask):
        raise InputError(f"PLoRA needs a mask with a row for each of {rows} sequences, got {len(mask)}")
    seen = 0 if cache is None else int(cache.get_seq_length())
    part = mask[:, seen : seen + width].repeat_interleave(rows // len(mask), 0)
    return nn.functional.pad(part, (0, width - part.shape[1]))
