"""What tests of adapters share: a backbone whose adapters count, and logits from a process without alignlab."""

import re

import torch
from plain import run_plain
from safetensors.torch import load_file, save_file

from alignlab.backbones import Backbone

JUDGE = """
import sys
import torch
from safetensors.torch import load_file, save_file
{before}
model = AutoModelForImageTextToText.from_pretrained(folder) if "model" not in globals() else model
with torch.no_grad():
    save_file({{"logits": model.eval()(**load_file({inputs!r})).logits}}, {logits!r})
assert {alignlab} or not [name for name in sys.modules if name.startswith("alignlab")]
"""


def disturb(backbone):
    """As training would, so that all that trains counts."""
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return backbone.eval()


def trained(path, adapter, **settings):
    backbone = Backbone(str(path), **settings)
    adapter.apply(backbone)
    return disturb(backbone)


def plain_logits(folder, tokens, *, alignlab=False):
    """The logits of what a README's lines load, or plain transformers where there is none."""
    inputs, logits = folder.parent / "inputs.safetensors", folder.parent / "logits.safetensors"
    given = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **tokens.vision}
    save_file({name: each.contiguous() for name, each in given.items()}, inputs)
    before = f"from transformers import AutoModelForImageTextToText\nfolder = {str(folder)!r}"
    if (folder / "README.md").exists():
        lines = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
        before = lines.replace('folder = "."', f"folder = {str(folder)!r}")
    code = JUDGE.format(before=before, inputs=str(inputs), logits=str(logits), alignlab=alignlab)
    done = run_plain(code)
    assert done.returncode == 0, done.stderr
    return load_file(logits)["logits"]
