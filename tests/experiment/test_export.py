"""What is exported computes the same in plain transformers and peft, in a process without alignlab."""

import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignlab import InputError
from alignlab.adapters import DoRA, LoRA
from alignlab.backbones import Backbone
from alignlab.cli import main
from alignlab.experiment.export import export

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


@pytest.fixture
def tokens(tiny_backbone, examples):
    return tiny_backbone.encoder.batch(examples[:3], ("conversation",)).conversation


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
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=200)
    return load_file(logits)["logits"]


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_lora_and_dora_are_merged_into_plain_weights(tiny_path, tmp_path, tokens, kind):
    saved = trained(tiny_path, kind(rank=2, parts=["vision_tower", "language_model"], train=["projector"]))
    saved.save(tmp_path / "a")
    assert export(tmp_path / "a", tmp_path / "out") is None
    assert not (tmp_path / "out" / "adapter").exists()
    assert torch.allclose(plain_logits(tmp_path / "out", tokens), saved(tokens).logits, atol=1e-5)
    again = Backbone(str(tmp_path / "out")).eval()
    assert torch.allclose(again(tokens).logits, saved(tokens).logits, atol=1e-5)


def test_two_sets_are_merged_one_after_the_other(tiny_path, tmp_path, tokens):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    trained(tmp_path / "a", LoRA(rank=3, modules=["v_proj", "up_proj"])).save(tmp_path / "b")
    export(tmp_path / "b", tmp_path / "out")
    wanted = Backbone(str(tmp_path / "b")).eval()(tokens).logits
    assert torch.allclose(Backbone(str(tmp_path / "out")).eval()(tokens).logits, wanted, atol=1e-5)


def test_the_type_is_that_asked_for(tiny_path, tmp_path):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    export(tmp_path / "a", tmp_path / "out", dtype="bfloat16")
    assert {each.dtype for each in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_what_is_there_is_not_overwritten_and_nothing_half_is_left(tiny_path, tmp_path, capsys):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(InputError, match="nowhere"):
        export(tmp_path / "nowhere", tmp_path / "other")
    (tmp_path / "other").mkdir()
    assert main(["export", str(tmp_path / "a"), str(tmp_path / "other")]) == 0
    assert (tmp_path / "other" / "model.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_export_leaves_nothing(tiny_path, tmp_path, monkeypatch):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")

    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "a", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_a_backbone_without_adapters_is_written_as_it_is(tiny_path, tmp_path):
    assert export(tiny_path, tmp_path / "out") is None
    first, second = (load_file(folder / "model.safetensors") for folder in (tiny_path, tmp_path / "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)
