"""saving: checkpoints hold what training changes; of the backbone's frozen weights they hold a fingerprint."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignlab.errors import InputError

FROZEN = "frozen"
"""The key of the fingerprint; checkpoints without it hold all weights."""

WORD = 8
"""Bytes that are added up at once."""


def fingerprint(backbone: nn.Module) -> dict[str, int]:
    """A number for each frozen weight, the sum of its raw bits as whole numbers of 64, the same on all devices.

    It reads every weight once, on its device, and copies none but those that begin amid 8 bytes. It is blind to numbers
    that change places within one weight. Where weights are cut over processes, every process has to call it.
    """
    return {name: _sum(weight) for name, weight in backbone.named_parameters() if not weight.requires_grad}


def leave_out(checkpoint: dict[str, Any], objective: nn.Module, backbone: nn.Module, frozen: dict[str, int]) -> None:
    """Take the backbone's frozen weights out of a checkpoint of the objective, and put their fingerprint in."""
    names, state = dict(_frozen(objective, backbone)), checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not _is_of(key, names)}
    checkpoint[FROZEN] = frozen


def put_back(checkpoint: dict[str, Any], objective: nn.Module, backbone: nn.Module, frozen: dict[str, int]) -> None:
    """Put the backbone's frozen weights, as they are, into a checkpoint that was taken without them.

    Raises:
        InputError: It was taken with others.
    """
    before = checkpoint[FROZEN]
    if before.keys() != frozen.keys():
        name = sorted(before.keys() ^ frozen.keys())[0]
        was, is_now = ("frozen", "trains") if name in before else ("training", "is frozen")
        raise InputError(
            f"what is to be loaded was taken with {name} {was}, which {is_now} now; go on with the adapter that it "
            "began with, or train anew"
        )
    if other := [name for name, number in frozen.items() if before[name] != number]:
        raise InputError(
            f"what is to be loaded was trained beside other frozen weights than the backbone has now ({other[0]}"
            f"{f' and {len(other) - 1} more' if other[1:] else ''}); go on with the weights at backbone.path that it "
            "began with, or train anew"
        )
    checkpoint["state_dict"] = {**dict(_frozen(objective, backbone)), **checkpoint["state_dict"]}


def _frozen(objective: nn.Module, backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The backbone's frozen weights under every name that the objective's state has for them."""
    frozen = {id(weight) for weight in backbone.parameters() if not weight.requires_grad}
    named = objective.named_parameters(remove_duplicate=False)
    return ((name, weight) for name, weight in named if id(weight) in frozen)


def _is_of(key: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a key is one of these weights, or what quantization keeps behind its name."""
    parts = key.split(".")
    return any(".".join(parts[:count]) in weights for count in range(1, len(parts) + 1))


def _sum(weight: Tensor) -> int:
    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    raw = weight.detach().reshape(-1).view(torch.uint8)
    if raw.data_ptr() % WORD or raw.storage_offset() % WORD:  # a piece of a file, say
        raw = raw.clone()
    whole = len(raw) // WORD * WORD
    return int(raw[:whole].view(torch.int64).sum()) + int(raw[whole:].sum())  # it may go round, everywhere alike
