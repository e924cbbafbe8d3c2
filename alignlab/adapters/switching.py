"""switching: adapters of peft inside a model, turned off for a while."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


def has_adapters(module: nn.Module) -> bool:
    """Whether peft has put an adapter into any layer."""
    return any(True for _ in tuner_layers(module))


def adapter_parameters(module: nn.Module, adapter: str | None = None) -> Iterator[nn.Parameter]:
    """The weights that adapters, or the one of a name, add to a module."""
    for layer in tuner_layers(module):
        for name in layer.adapter_layer_names:
            added = getattr(layer, name)
            if adapter is None:
                yield from added.parameters()
            elif adapter in added:
                yield from added[adapter].parameters()


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The module computes what it would without its adapters; which weights train stays as it is."""
    trained = [(parameter, parameter.requires_grad) for parameter in adapter_parameters(module)]
    were_on = [layer for layer in tuner_layers(module) if not layer.disable_adapters]
    try:
        for layer in were_on:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in were_on:
            layer.enable_adapters(True)
        for parameter, requires_grad in trained:  # peft takes adapters that are off for frozen
            parameter.requires_grad_(requires_grad)


def tuner_layers(module: nn.Module) -> "Iterator[BaseTunerLayer]":
    """The layers that adapters were put into, each with what it was before as its base layer."""
    if "peft" not in sys.modules:  # whoever adds an adapter has imported it, which takes its time
        return iter(())
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (layer for layer in module.modules() if isinstance(layer, BaseTunerLayer))
