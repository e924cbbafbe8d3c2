"""QLoRA, end to end; needs bitsandbytes, whose 4-bit maths runs on CPUs, too."""

import json
import sys

import pytest
import torch
from adapting import plain_logits, trained

import alignlab
from alignlab import InputError
from alignlab.adapters import Full, LoRA, QLoRA
from alignlab.adapters.quantizing import is_quantized
from alignlab.backbones import Backbone
from alignlab.experiment.config import resolve
from alignlab.experiment.export import export
from alignlab.experiment.run import evaluate_run, run
from alignlab.modules.fingerprints import weights_fingerprint


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def logits(backbone, examples):
    return backbone.eval()(backbone.encoder.batch(examples[:3], ("conversation",)).conversation).logits


def test_without_bitsandbytes_the_command_that_installs_it_is_named(tiny_backbone, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(InputError, match=r"pip install 'alignlab\[quantization\]'"):
        QLoRA(rank=2).apply(tiny_backbone)


def test_the_linear_maps_of_the_parts_are_in_four_bits_and_no_others(bitsandbytes, tiny_backbone, examples):
    before = logits(tiny_backbone, examples)
    QLoRA(rank=2, train=["projector"], modules=["q_proj"]).apply(tiny_backbone)
    small = {name for name, module in tiny_backbone.model.named_modules() if is_quantized(module)}
    assert len(small) == 7 and all(name.startswith("model.language_model.") for name in small)
    assert sum("base_layer" in name for name in small) == 1
    after = logits(tiny_backbone, examples)
    assert 0 < (after - before).abs().mean() < 0.2 * before.std()


def test_what_cannot_be_quantised_is_refused(bitsandbytes, tiny_path, tiny_backbone, tiny_backbone64):
    with pytest.raises(InputError, match="got torch.float64: backbone.dtype"):
        QLoRA().apply(tiny_backbone64)
    with pytest.raises(InputError, match="QLoRA quantises what lies in the files"):
        QLoRA().apply(Backbone(str(tiny_path), fresh=["language_model"]))
    LoRA(rank=2).apply(tiny_backbone)
    with pytest.raises(InputError, match="QLoRA quantises what lies in the files"):
        QLoRA().apply(tiny_backbone)
    quantized = Backbone(str(tiny_path))
    QLoRA(rank=2).apply(quantized)
    with pytest.raises(InputError, match="Full cannot train the language_model .* 4 bits"):
        Full().apply(quantized)
    with pytest.raises(InputError, match="LoRA cannot train the language_model .* 4 bits"):
        LoRA(parts=["vision_tower"], train=["language_model"]).apply(quantized)


def test_adapters_beside_weights_in_four_bits_are_read_in_the_type_they_were_trained_in(
    bitsandbytes, tiny_path, tmp_path, examples
):
    saved = trained(tiny_path, QLoRA(rank=2), dtype="bfloat16")
    saved.save(tmp_path / "a")
    again = Backbone(str(tmp_path / "a"), dtype="bfloat16")
    assert torch.equal(logits(again, examples), logits(saved, examples))
    with pytest.raises(InputError, match="quantised from bfloat16, .* from float32 .* set backbone.dtype to bfloat16"):
        Backbone(str(tmp_path / "a"))
    assert "4 bits" in export(tmp_path / "a", tmp_path / "out")
    file = tmp_path / "a" / "base.json"
    said = json.loads(file.read_text())
    del said["dtype"], said["beside"]  # as they were written once
    file.write_text(json.dumps(said))
    assert torch.equal(logits(Backbone(str(tmp_path / "a"), dtype="bfloat16"), examples), logits(saved, examples))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["MLE", "InfoNCE"])
def test_a_run_is_trained_loaded_built_on_and_exported(bitsandbytes, tiny_path, tmp_path, examples, objective):
    config = {
        "objective": objective,
        "backbone": {"path": str(tiny_path)},
        "adapter": {"class_path": "QLoRA", "init_args": {"rank": 2, "train": ["projector"]}},
        "data": {"class_path": "Scenes", "init_args": {"num_train": 24, "num_val": 8, "num_test": 8, "batch_size": 8}},
        "trainer": {"max_steps": 3, "log_every_n_steps": 1, "limit_val_batches": 1},
        "optimization": {"lr": 1e-2},
        "evaluators": [{"class_path": "Retrieval", "init_args": {"num_examples": 8}}],
        "wandb": {"mode": "disabled"},
    }
    metrics = run(resolve(config), tmp_path / "run")
    assert evaluate_run(tmp_path / "run") == metrics["scores"]
    backbone = alignlab.load(tmp_path / "run")
    assert weights_fingerprint(backbone) == weights_fingerprint(alignlab.load(tmp_path / "run"))
    start = Backbone(str(tiny_path))
    QLoRA(rank=2).apply(start)
    assert not torch.allclose(logits(backbone, examples), logits(start, examples), atol=1e-2)

    later = Backbone(str(tmp_path / "run" / "backbone"))
    LoRA(rank=2).apply(later)
    later.save(tmp_path / "later")
    assert torch.equal(logits(Backbone(str(tmp_path / "later")), examples), logits(backbone, examples))

    assert "4 bits" in export(tmp_path / "run", tmp_path / "out")
    tokens = backbone.encoder.batch(examples[:3], ("conversation",)).conversation
    loaded = plain_logits(tmp_path / "out", tokens, alignlab=True)
    assert torch.allclose(loaded, logits(backbone, examples), atol=1e-5)
    start = Backbone(str(tiny_path)).parts["language_model"].state_dict()
    whole = Backbone(str(tmp_path / "out"))
    assert all(torch.equal(start[name], each) for name, each in whole.parts["language_model"].state_dict().items())
    trained = backbone.parts["projector"].state_dict()
    assert all(torch.equal(trained[name], each) for name, each in whole.parts["projector"].state_dict().items())
