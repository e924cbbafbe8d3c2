"""Runs that train adapters: load, evaluate, stages, and parts taken from them."""

import pytest
import torch
from adapting import trained

import alignlab
from alignlab import InputError
from alignlab.adapters import LoRA, has_adapters
from alignlab.backbones import PARTS, Backbone, DualEncoder
from alignlab.experiment.config import resolve
from alignlab.experiment.export import export
from alignlab.experiment.run import evaluate_run, run


@pytest.fixture
def config(tiny_path):
    return {
        "objective": "MLE",
        "backbone": {"path": str(tiny_path)},
        "adapter": {"class_path": "LoRA", "init_args": {"rank": 2, "train": ["projector"]}},
        "data": {"class_path": "Scenes", "init_args": {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8}},
        "trainer": {"max_steps": 3, "log_every_n_steps": 1, "limit_val_batches": 1},
        "optimization": {"lr": 1e-2},
        "evaluators": [{"class_path": "Retrieval", "init_args": {"num_examples": 8}}],
        "wandb": {"mode": "disabled"},
    }


def logits(backbone, examples):
    return backbone.eval()(backbone.encoder.batch(examples[:3], ("conversation",)).conversation).logits


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA"])
def test_a_run_is_small_and_loaded_evaluated_and_exported_as_it_was_trained(config, tmp_path, examples, adapter):
    config["adapter"]["class_path"] = adapter
    metrics = run(resolve(config), tmp_path / "run")
    assert metrics["parameters"]["trained"] < 0.5 * metrics["parameters"]["total"]
    assert (tmp_path / "run" / "backbone" / "adapter" / "adapter_config.json").exists()
    assert not (tmp_path / "run" / "backbone" / "model.safetensors").exists()
    assert evaluate_run(tmp_path / "run") == metrics["scores"]
    backbone = alignlab.load(tmp_path / "run")
    start = logits(Backbone(config["backbone"]["path"]), examples)
    assert not torch.allclose(logits(backbone, examples), start, atol=1e-2)
    export(tmp_path / "run", tmp_path / "out")
    assert torch.allclose(logits(Backbone(str(tmp_path / "out")), examples), logits(backbone, examples), atol=1e-5)


def test_a_run_by_plora_is_loaded_evaluated_and_built_on(config, tmp_path, examples):
    config["adapter"] = {
        "class_path": "PLoRA",
        "init_args": {"ranks": {"visual": 3, "all": 2}},
    }  # a stage starts with these
    config |= {"stages": {"first": {"evaluators": []}}, "backbone": {"path": "stage:first"}}
    config["stages"]["first"] |= {
        "backbone": {"path": "scenes-vlm"},
        "objective": "InfoNCE",
        "adapter": {"class_path": "PLoRA", "init_args": {"ranks": {"visual": 4}, "train": ["projector"]}},
    }
    metrics = run(resolve(config), tmp_path / "run")
    assert evaluate_run(tmp_path / "run") == metrics["scores"]
    backbone = alignlab.load(tmp_path / "run")
    scopes = {name: (each.token_scope, each.r) for name, each in backbone.model.peft_config.items()}
    assert scopes == {
        "visual": ("visual", 4),
        "all": ("all", 2),
        "visual-2": ("visual", 3),
        "all-2": ("all", 2),
    }
    # The branch of the first stage, and its projector, stayed as they were.
    first = alignlab.load(tmp_path / "run" / "stages" / "first").model.state_dict()
    last = backbone.model.state_dict()
    assert all(torch.equal(value, last[name]) for name, value in first.items())


def test_a_stage_goes_on_from_the_adapters_of_the_one_before(config, tmp_path, examples):
    config |= {"backbone": {"path": "stage:first"}, "stages": {"first": {"evaluators": []}}}
    config["stages"]["first"]["backbone"] = config["backbone"] | {"path": "scenes-vlm"}
    run(resolve(config), tmp_path / "run")
    first, last = alignlab.load(tmp_path / "run" / "stages" / "first"), alignlab.load(tmp_path / "run")
    assert list(first.model.peft_config) == ["lora"] and list(last.model.peft_config) == ["lora", "lora-2"]
    before, after = first.model.state_dict(), last.model.state_dict()
    same = {name: torch.equal(value, after[name]) for name, value in before.items()}
    # The first stage's branches stayed, the projector, which trains in both, went on.
    assert {name for name, equal in same.items() if not equal} == {name for name in same if "projector" in name}
    assert any("lora-2" in name and "lora_B" in name and value.any() for name, value in after.items())


def test_parts_and_a_text_tower_are_taken_from_a_stage_with_adapters(config, tmp_path, examples):
    stage = {"backbone": {"path": config["backbone"]["path"], "take": None}, "evaluators": []}
    config["backbone"] |= {"take": {"language_model": "stage:words"}}
    config |= {"stages": {"words": stage}, "adapter": {"class_path": "Full", "init_args": {"parts": ["projector"]}}}
    stage["adapter"] = {"class_path": "LoRA", "init_args": {"rank": 2}}
    run(resolve(config), tmp_path / "run")
    first, last = alignlab.load(tmp_path / "run" / "stages" / "words"), alignlab.load(tmp_path / "run")
    assert has_adapters(first) and not has_adapters(last)
    texts = first.encoder.contents([("a red square",), ("two blue circles",)])
    assert torch.allclose(first.embed(texts), last.embed(texts), atol=1e-5)
    dual = DualEncoder("scenes-vlm", text_tower=str(tmp_path / "run" / "stages" / "words" / "backbone")).eval()
    assert torch.allclose(dual.read(texts), first.embed(texts), atol=1e-5)


def test_without_an_adapter_the_parts_that_have_none_train(config, tmp_path, tiny_path):
    first = trained(tiny_path, LoRA(rank=2))
    first.save(tmp_path / "first")
    config |= {"backbone": {"path": str(tmp_path / "first")}, "adapter": None}
    run(resolve(config), tmp_path / "run")
    before, after = first.parts, alignlab.load(tmp_path / "run").parts
    for part in PARTS:
        now = after[part].state_dict()
        same = all(torch.equal(value, now[name]) for name, value in before[part].state_dict().items())
        assert same == (part == "language_model")
    trained(tiny_path, LoRA(rank=2, parts=PARTS)).save(tmp_path / "all")
    config["backbone"]["path"] = str(tmp_path / "all")
    with pytest.raises(InputError, match="has nothing to train"):
        run(resolve(config), tmp_path / "none")


def test_a_command_starts_from_merged_weights_of_a_stage(config, tmp_path, examples):
    (tmp_path / "copy_it.py").write_text("import shutil, sys\nshutil.copytree(*sys.argv[1:], dirs_exist_ok=True)\n")
    stage = {name: config.pop(name) for name in ("objective", "adapter", "optimization")}
    stage |= {"backbone": config["backbone"], "trainer": config.pop("trainer"), "evaluators": [], "command": None}
    config |= {"backbone": {"path": "stage:first"}, "stages": {"first": stage}, "trainer": {"max_steps": 1}}
    config |= {"command": "python copy_it.py {backbone} {output}", "python_path": [str(tmp_path)]}
    run(resolve(config), tmp_path / "run")
    first, last = alignlab.load(tmp_path / "run" / "stages" / "first"), alignlab.load(tmp_path / "run")
    assert torch.allclose(logits(first, examples), logits(last, examples), atol=1e-5)


def test_what_an_adapter_refuses_is_known_before_anything_is_made(config, tmp_path):
    config["adapter"] = {"class_path": "LoRA", "init_args": {"modules": ["query"]}}
    with pytest.raises(InputError, match="LoRA needs linear maps named query"):
        run(resolve(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dual_encoder_trains_by_lora_and_is_saved_merged(config, tmp_path, tiny_path):
    config |= {"objective": "CLIP", "backbone": {"path": str(tiny_path), "text_tower": str(tiny_path)}}
    config["adapter"]["init_args"]["parts"] = ["vision_tower", "language_model"]
    metrics = run(resolve(config), tmp_path / "run")
    assert not has_adapters(alignlab.load(tmp_path / "run"))
    assert evaluate_run(tmp_path / "run") == pytest.approx(metrics["scores"])
