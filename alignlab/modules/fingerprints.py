"""fingerprints: short hashes of weights."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn


def weights_fingerprint(module: nn.Module, *, but: Sequence[nn.Parameter] = ()) -> str:
    """16 hexadecimal characters of a module's structure and weights, wherever they lie, but for some of them."""
    left_out = {id(parameter) for parameter in but}
    kept = ((name, tensor) for name, tensor in module.state_dict(keep_vars=True).items() if id(tensor) not in left_out)
    return _digest(repr(module), kept)


def files_fingerprint(files: Iterable[Path]) -> str:
    """16 hexadecimal characters of the weights that safetensors files hold, however they are divided among them."""
    where = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            where |= dict.fromkeys(stored.keys(), file)
    return _digest("", ((name, _stored(where[name], name)) for name in sorted(where)))


def _stored(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as stored:
        return stored.get_tensor(name)


def _digest(first: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(first.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
