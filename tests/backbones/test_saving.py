"""A backbone with adapters is saved as what changed, and read as it was."""

import json
import os
import shutil

import pytest
import torch
from adapting import disturb, trained
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, SiglipConfig

from alignlab import InputError
from alignlab.adapters import DoRA, Full, LoRA, adapter_parameters, has_adapters
from alignlab.backbones import PARTS, Backbone, DualEncoder, open_backbone, open_encoder
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.modules.fingerprints import files_fingerprint


@pytest.fixture
def tokens(tiny_backbone, examples):
    return tiny_backbone.encoder.batch(examples[:3], ("conversation",)).conversation


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_what_is_read_computes_bit_for_bit_what_was_saved(tiny_path, tmp_path, tokens, kind):
    saved = trained(tiny_path, kind(rank=2, parts=["vision_tower", "language_model"], train=["projector"]))
    saved.save(tmp_path / "a")
    read = open_backbone(str(tmp_path / "a")).eval()
    assert torch.equal(read(tokens).logits, saved(tokens).logits)
    assert not torch.allclose(Backbone(str(tiny_path)).eval()(tokens).logits, saved(tokens).logits, atol=1e-2)
    assert has_adapters(read.model)
    trains = {part for parameter, part in read.part_of() if parameter.requires_grad}
    assert trains == {"projector"}  # parts with adapters are frozen
    assert size(tmp_path / "a") < 0.5 * size(tiny_path)
    assert open_encoder(str(tmp_path / "a")).image_token_id == saved.encoder.image_token_id


def test_reading_draws_nothing_from_the_global_generator(tiny_path, tmp_path):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    torch.manual_seed(3)
    Backbone(str(tmp_path / "a"))
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), after)


def test_plain_peft_puts_the_adapter_on_the_plain_base(tiny_path, tmp_path, tokens):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    saved = trained(tiny_path, LoRA(rank=2))
    saved.save(tmp_path / "a")
    plain = AutoModelForImageTextToText.from_pretrained(tiny_path)
    plain = PeftModel.from_pretrained(plain, tmp_path / "a" / "adapter").eval()
    logits = plain(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **tokens.vision).logits
    assert torch.equal(logits, saved(tokens).logits)


def test_two_sets_of_adapters_are_saved_one_folder_each(tiny_path, tmp_path, tokens):
    trained(tiny_path, LoRA(rank=2, train=["projector"])).save(tmp_path / "a")
    second = trained(tmp_path / "a", LoRA(rank=3, modules=["v_proj"]))
    second.save(tmp_path / "b")
    assert {path.name for path in (tmp_path / "b" / "adapter").iterdir()} == {"lora", "lora-2"}
    shutil.rmtree(tmp_path / "a")  # what b names is what a named
    assert torch.equal(Backbone(str(tmp_path / "b")).eval()(tokens).logits, second(tokens).logits)


def test_fresh_and_taken_parts_are_saved_with_the_adapters(tiny_path, tmp_path, tokens):
    Full(parts=["vision_tower"]).apply(donor := Backbone(str(tiny_path)))
    disturb(donor).save(tmp_path / "donor")
    torch.manual_seed(1)
    made = trained(tiny_path, LoRA(rank=2), fresh=["projector"], take={"vision_tower": str(tmp_path / "donor")})
    made.save(tmp_path / "a")
    again = Backbone(str(tmp_path / "a")).eval()
    assert torch.equal(again(tokens).logits, made(tokens).logits)
    again.save(tmp_path / "b")  # frozen by now, still others than the base's
    assert torch.equal(Backbone(str(tmp_path / "b")).eval()(tokens).logits, made(tokens).logits)


def test_where_nothing_is_left_of_the_base_it_is_not_read(tiny_path, tmp_path, tokens):
    shutil.copytree(tiny_path, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    made = trained(tmp_path / "base", LoRA(rank=2), fresh=PARTS)
    made.save(tmp_path / "a")
    shutil.rmtree(tmp_path / "base")
    assert torch.equal(Backbone(str(tmp_path / "a")).eval()(tokens).logits, made(tokens).logits)


def test_where_all_parts_changed_generation_is_as_it_was(tiny_path, tmp_path):
    shutil.copytree(tiny_path, tmp_path / "base")
    file = tmp_path / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [3, 9], "suppress_tokens": [7]}))
    shutil.copytree(tmp_path / "base", tmp_path / "donor")
    made = trained(
        tmp_path / "base",
        LoRA(rank=2, train=["vision_tower", "projector"]),
        take={"language_model": str(tmp_path / "donor")},
    )
    made.save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "base.json").read_text())["fingerprint"] is None
    read = Backbone(str(tmp_path / "a")).model.generation_config
    assert (read.eos_token_id, read.suppress_tokens) == ([3, 9], [7])
    (tmp_path / "a" / "generation_config.json").write_text("{")
    with pytest.raises(InputError, match=f"generation config in {tmp_path}/a cannot be read"):
        Backbone(str(tmp_path / "a"))


def test_running_statistics_of_a_frozen_tower_are_kept(tiny_path, tmp_path):
    from transformers import AutoConfig, AutoModelForImageTextToText, ResNetConfig

    shutil.copytree(tiny_path, tmp_path / "base")
    config = AutoConfig.from_pretrained(tiny_path)
    config.vision_config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], hidden_size=8)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "base")
    backbone = Backbone(str(tmp_path / "base"), attention="eager")
    LoRA(rank=2).apply(backbone)
    tower = backbone.model.get_encoder(modality="image")
    pictures = torch.rand(2, 3, 32, 32)
    before = tower.eval()(pictures).last_hidden_state
    for _ in range(300):  # more than bfloat16 counts to
        tower.train()(pictures)
    backbone.eval().save(tmp_path / "a", dtype="bfloat16")
    backbone.save(tmp_path / "b")
    read = Backbone(str(tmp_path / "b"), attention="eager").model.get_encoder(modality="image")
    assert all(torch.equal(each, read.state_dict()[name]) for name, each in tower.state_dict().items())
    assert not torch.allclose(read.eval()(pictures).last_hidden_state, before, atol=1e-3)
    short = Backbone(str(tmp_path / "a"), attention="eager").model.get_encoder(modality="image").state_dict()
    assert all(torch.equal(each, short[name]) for name, each in tower.state_dict().items() if "tracked" in name)


@pytest.mark.parametrize("train", [["projector"], ["vision_tower", "projector"]])
def test_trained_weights_that_are_missing_are_named(tiny_path, tmp_path, train):
    trained(tiny_path, LoRA(rank=2, train=train), fresh=["language_model"]).save(tmp_path / "a")
    weights = load_file(tmp_path / "a" / "trained.safetensors")
    name = min(name for name in weights if "projector" in name)
    del weights[name]
    save_file(weights, tmp_path / "a" / "trained.safetensors")
    with pytest.raises(InputError, match=f"{tmp_path}/a/trained.safetensors does not fit .*{name} is on one side"):
        Backbone(str(tmp_path / "a"))


def test_a_part_is_taken_with_its_adapters_merged(tiny_path, tmp_path, tokens):
    saved = trained(tiny_path, LoRA(rank=2, train=["projector"]))
    saved.save(tmp_path / "a")
    taken = Backbone(str(tiny_path), take={part: str(tmp_path / "a") for part in ("projector", "language_model")})
    assert not has_adapters(taken.model)
    assert torch.allclose(taken.eval()(tokens).logits, saved(tokens).logits, atol=1e-5)
    with pytest.raises(InputError, match="the language_model of .* has adapters"):
        Backbone(str(tmp_path / "a"), take={"language_model": str(tiny_path)})


def test_a_language_model_with_adapters_reads_texts_for_a_dual_encoder(tiny_path, tmp_path, examples):
    saved = trained(tiny_path, LoRA(rank=2))
    saved.save(tmp_path / "a")
    torch.manual_seed(0)
    dual = DualEncoder(str(tiny_path), text_tower=str(tmp_path / "a")).eval()
    contents = [("a red square",), ("two blue circles",)]
    tokens = dual.encoder.contents(contents)
    read = dual.read(tokens)
    assert torch.allclose(read, saved.embed(tokens), atol=1e-5)
    plain = DualEncoder(str(tiny_path), text_tower=str(tiny_path)).eval()
    assert not torch.allclose(read, plain.read(plain.encoder.contents(contents)), atol=1e-2)
    assert not has_adapters(dual)
    assert all(parameter.requires_grad for parameter in dual.parameters())


@pytest.mark.parametrize("kind", [CLIPConfig, SiglipConfig])
@pytest.mark.parametrize("adapter", [LoRA, DoRA])
def test_a_dual_encoder_is_saved_merged(tmp_path, examples, kind, adapter):
    torch.manual_seed(0)
    write_tiny_dual(tmp_path / "dual", kind)
    backbone = DualEncoder(str(tmp_path / "dual"))
    adapter(rank=2, parts=["vision_tower", "language_model"], train=["projector"]).apply(backbone)
    disturb(backbone).save(tmp_path / "a")
    batch = backbone.encoder.batch(examples[:3], ("query", "target"))
    read = open_backbone(str(tmp_path / "a")).eval()
    assert not has_adapters(read)
    for tokens in (batch.query, batch.target):
        assert torch.allclose(read.embed(tokens), backbone.embed(tokens), atol=1e-5)
    assert has_adapters(backbone)
    assert not any(layer.merged for layer in backbone.modules() if hasattr(layer, "merged_adapters"))


def test_a_composed_dual_encoder_is_saved_merged(tiny_path, tmp_path, examples):
    backbone = DualEncoder(str(tiny_path), text_tower=str(tiny_path))
    LoRA(rank=2, parts=["projector", "language_model"], train=["vision_tower"]).apply(backbone)
    disturb(backbone).save(tmp_path / "a")
    batch = backbone.encoder.batch(examples[:3], ("query", "target"))
    read = open_backbone(str(tmp_path / "a")).eval()
    for tokens in (batch.query, batch.target):
        assert torch.allclose(read.embed(tokens), backbone.embed(tokens), atol=1e-5)


def test_weights_are_written_in_the_type_asked_for(tiny_path, tmp_path, tokens):
    saved = trained(tiny_path, LoRA(rank=2, train=["projector"]))
    saved.save(tmp_path / "a", dtype="bfloat16")
    for file in (tmp_path / "a").rglob("*.safetensors"):
        assert {each.dtype for each in load_file(file).values()} == {torch.bfloat16}
    read = Backbone(str(tmp_path / "a")).eval()
    assert torch.allclose(read(tokens).logits, saved(tokens).logits, atol=0.1)


def test_the_type_of_the_base_is_noted_and_another_may_be_asked_for(tiny_path, tmp_path, tokens):
    saved = trained(tiny_path, LoRA(rank=2), dtype="bfloat16")
    saved.save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "base.json").read_text())["dtype"] == "bfloat16"
    read = Backbone(str(tmp_path / "a")).eval()
    assert torch.allclose(read(tokens).logits, saved(tokens).logits.float(), atol=0.1)


def test_a_missing_and_a_changed_base_are_named(tiny_path, tmp_path):
    shutil.copytree(tiny_path, tmp_path / "base")
    trained(tmp_path / "base", LoRA(rank=2)).save(tmp_path / "a")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"changed in training from {tmp_path}/base, whose weights are others by now"):
        Backbone(str(tmp_path / "a"))
    (tmp_path / "base" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=f"{tmp_path}/base, which cannot be read"):
        Backbone(str(tmp_path / "a"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InputError, match=f"{tmp_path}/base, which cannot be read .*write into .*base.json"):
        Backbone(str(tmp_path / "a"))


def test_the_fingerprint_of_files_is_of_samples_of_all_tensors_and_not_of_names_or_ages(tmp_path):
    def fingerprint(*parts):
        files = [tmp_path / f"{number}-{len(parts)}.safetensors" for number in range(len(parts))]
        for part, file in zip(parts, files, strict=True):
            save_file(part, file, metadata={"age": str(len(parts))})
        return files_fingerprint(files)

    weights = {"large": torch.zeros(2**20), "small": torch.zeros(7), "whole": torch.zeros(3, 2**10)}
    first = fingerprint(weights)
    os.utime(tmp_path / "0-1.safetensors", (1, 1))
    assert files_fingerprint([(tmp_path / "0-1.safetensors").rename(tmp_path / "other")]) == first
    assert fingerprint({"small": weights["small"]}, {name: weights[name] for name in ("whole", "large")}) == first
    for name, at in [("large", 0), ("large", 2**19), ("large", -1), ("small", 3), ("whole", 2**10)]:
        changed = weights[name].clone()
        changed.view(-1)[at] = 1
        assert fingerprint({**weights, name: changed}) != first
    assert fingerprint({**weights, "whole": weights["whole"].T.contiguous()}) != first
    assert fingerprint({**weights, "small": weights["small"].int()}) != first
    missed = weights["large"].clone()
    missed[2**18] = 1  # between its samples, as the docstring says
    assert fingerprint({**weights, "large": missed}) == first


@pytest.mark.parametrize("damage", ["trained", "adapter", "base", "names"])
def test_a_damaged_directory_gets_one_clear_message(tiny_path, tmp_path, damage):
    trained(tiny_path, LoRA(rank=2, train=["projector"])).save(tmp_path / "a")
    if damage == "trained":
        (tmp_path / "a" / "trained.safetensors").write_bytes(b"none")
    elif damage == "adapter":
        file = tmp_path / "a" / "adapter" / "adapter_model.safetensors"
        weights = load_file(file)
        weights.popitem()
        save_file(weights, file)
    elif damage == "base":
        (tmp_path / "a" / "base.json").write_text("{}")
    else:
        said = json.loads((tmp_path / "a" / "base.json").read_text())
        (tmp_path / "a" / "base.json").write_text(json.dumps({**said, "adapters": ["one", "two"]}))
    with pytest.raises(InputError, match=str(tmp_path / "a")):
        Backbone(str(tmp_path / "a"))


@pytest.mark.parametrize(
    "said",
    [
        {"path": 3},
        {"fingerprint": 3},
        {"fingerprint": None},
        {"adapters": []},
        {"adapters": "lora"},
        {"adapters": [3]},
        {"changed": ["foo"]},
        {"changed": None},
        {"quantized": "("},
        {"dtype": "float31"},
        {"dtype": []},
        {"beside": 3},
        {"more": 3},
    ],
    ids=str,
)
def test_a_damaged_base_gets_one_clear_message(tiny_path, tmp_path, said):
    trained(tiny_path, LoRA(rank=2, train=["projector"])).save(tmp_path / "a")
    file = tmp_path / "a" / "base.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    with pytest.raises(InputError, match=f"{file} cannot be read: .*{next(iter(said))}"):
        Backbone(str(tmp_path / "a"))


@pytest.mark.parametrize("said", [[], {"r": "x"}, {"r": []}, {"peft_type": 3}, {"target_modules": 3}], ids=str)
def test_a_damaged_config_of_an_adapter_gets_one_clear_message(tiny_path, tmp_path, said):
    trained(tiny_path, LoRA(rank=2)).save(tmp_path / "a")
    file = tmp_path / "a" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said} if said else said))
    with pytest.raises(InputError, match=f"the adapters in {file.parent} cannot be put into the model"):
        Backbone(str(tmp_path / "a"))


def test_a_base_that_moves_with_it_is_found(tiny_path, tmp_path, tokens):
    shutil.copytree(tiny_path, tmp_path / "run" / "stages" / "first" / "backbone")
    saved = trained(tmp_path / "run" / "stages" / "first" / "backbone", LoRA(rank=2))
    saved.save(tmp_path / "run" / "backbone")
    (tmp_path / "run").rename(tmp_path / "moved")
    read = Backbone(str(tmp_path / "moved" / "backbone")).eval()
    assert torch.equal(read(tokens).logits, saved(tokens).logits)
    read.save(tmp_path / "again")
    assert torch.equal(Backbone(str(tmp_path / "again")).eval()(tokens).logits, saved(tokens).logits)
    # Moved alone, it finds the base at its old place.
    (tmp_path / "moved" / "backbone").rename(tmp_path / "moved" / "stages" / "alone")
    (tmp_path / "moved").rename(tmp_path / "run")
    alone = Backbone(str(tmp_path / "run" / "stages" / "alone")).eval()
    assert torch.equal(alone(tokens).logits, saved(tokens).logits)


def test_without_adapters_the_whole_model_is_written(tiny_backbone, tmp_path):
    tiny_backbone.save(tmp_path)
    assert not (tmp_path / "base.json").exists()
    assert (tmp_path / "model.safetensors").exists()
    assert not list(adapter_parameters(tiny_backbone))
