"""What tests of the visual tokenizer share: recorded values under our names, and small tokenizers."""

from functools import partial

import torch

from alignlab.modules import LearnedSelection, VisualTokenizer
from alignlab.modules.quantizers import VectorQuantizer

ATTENTION = {"query": "query", "key": "key", "value": "value", "proj": "out"}
MERGER_BLOCK = {
    "norm0": "kept_norm", "norm1": "dropped_norm", "norm2": "mlp_norm", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    "token_causal_attn": "kept", "token_cross_attn": "dropped",
}  # fmt: skip
DECODER_BLOCK = {
    "norm0": "self_norm", "norm1": "cross_norm", "norm2": "mlp_norm", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.2",
    "self_attn": "self_attention", "cross_attn": "cross_attention",
}  # fmt: skip
PREDICTOR = {"in_conv.0": "norm", "in_conv.1": "linears.0", "out_conv.0": "linears.1", "out_conv.2": "linears.2",
             "out_conv.4": "linears.3"}  # fmt: skip
OUTSIDE = {"ln_vision": "source_norm", "norm": "norm", "in_proj": "read", "pos_embed": "positions",
           "query_embed": "queries", "decode_task_layer": "head"}  # fmt: skip


def tensor(recorded):
    return torch.tensor(recorded["values"], dtype=getattr(torch, recorded["dtype"])).reshape(recorded["shape"])


def tensors(recorded):
    return {name: tensor(each) for name, each in recorded.items() if "values" in each}


def attention(weights):
    """Weights of the official attentions, where queries, keys and values may be one map."""
    found = {}
    for key, value in weights.items():
        module, _, kind = key.rpartition(".")
        if module == "qkv":
            found |= {f"{name}.{kind}": part for name, part in zip(ATTENTION, value.chunk(3), strict=False)}
        else:
            found[f"{ATTENTION[module]}.{kind}"] = value
    return found


def blocks(weights, names):
    """Weights of a stack of the official blocks, under our ``names`` of what is in a block."""
    found = {}
    for key, value in weights.items():
        if not key.startswith("blocks."):
            theirs = next(name for name in OUTSIDE if key == name or key.startswith(f"{name}."))
            key = OUTSIDE[theirs] + key.removeprefix(theirs)
            found[key] = value[0] if key in ("positions", "queries") else value
            continue
        _, index, rest = key.split(".", 2)
        theirs = next(name for name in names if rest.startswith(f"{name}."))
        rest = {rest.removeprefix(f"{theirs}."): value}
        rest = attention(rest) if "attn" in theirs else rest
        found |= {f"blocks.{index}.{names[theirs]}.{kind}": each for kind, each in rest.items()}
    return found


def predictor(weights):
    """Weights of the official predictor."""
    return {f"{PREDICTOR[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in weights.items()}


def beneath(weights, prefix):
    """Those of one module."""
    return {key.removeprefix(f"{prefix}."): value for key, value in weights.items() if key.startswith(f"{prefix}.")}


def small(**settings):
    """A tokenizer of 9 patches of width 16 in float64, its weights large enough to matter."""
    settings = {
        "selection": LearnedSelection,
        "quantizer": partial(VectorQuantizer, num_codes=32),
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "code_dim": 8,
    } | settings
    torch.manual_seed(0)
    tokenizer = VisualTokenizer(16, 9, **settings).double()
    enlarge(tokenizer)
    if isinstance(tokenizer.selection, LearnedSelection):  # so that it keeps about half of the patches
        with torch.no_grad():
            keep, drop = tokenizer.selection.log_probs(features()).unbind(-1)
            tokenizer.selection.linears[-1].bias[0] -= (keep - drop).median()
    return tokenizer


def enlarge(module):
    """Draw all weights anew so that no part of a network does nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if parameter.ndim > 1 else 0.1))


def features(num_pictures=3, *, seed=1, dim=16, num_patches=9):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_pictures, num_patches, dim, dtype=torch.float64, generator=generator)
