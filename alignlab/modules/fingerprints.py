"""fingerprints: short hashes of weights."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

BLOCK = 2**14
"""Bytes of a tensor in a file that are read at a time."""


def weights_fingerprint(module: nn.Module, *, but: Sequence[nn.Parameter] = ()) -> str:
    """16 hexadecimal characters of a module's structure and weights, wherever they lie, but for some of them."""
    left_out = {id(parameter) for parameter in but}
    kept = ((name, tensor) for name, tensor in module.state_dict(keep_vars=True).items() if id(tensor) not in left_out)
    return _digest(repr(module), kept)


def files_fingerprint(files: Iterable[Path]) -> str:
    """16 hexadecimal characters of the weights that safetensors files hold, however they are divided among them.

    Cheap: of each tensor its name, type and shape, and its first, middle and last 16 KiB, or all of a smaller one.
    Tensors that trained differ there; a change of some rows of a large one, as of some embeddings, is missed.

    Raises:
        ValueError: A file is damaged.
    """
    found = {}
    for file in files:
        with file.open("rb") as stored:
            length = min(int.from_bytes(stored.read(8), "little"), file.stat().st_size)
            header = json.loads(stored.read(length))
            for name in header.keys() - {"__metadata__"}:
                found[name] = hashlib.sha256(f"{name} {header[name]['dtype']} {header[name]['shape']}".encode())
                begin, end = header[name]["data_offsets"]
                last = max(end - BLOCK, begin)
                for start in (begin, (begin + last) // 2, last):
                    stored.seek(8 + length + start)
                    found[name].update(stored.read(min(BLOCK, end - start)))
    return hashlib.sha256(b"".join(found[name].digest() for name in sorted(found))).hexdigest()[:16]


def _digest(first: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256(first.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
