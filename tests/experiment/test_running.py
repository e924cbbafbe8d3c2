"""Runs by precision, recomputed and compiled layers: what each changes, and what is refused before work begins."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import alignlab
from alignlab import InputError
from alignlab.adapters import Full, LoRA
from alignlab.backbones import open_backbone
from alignlab.experiment.config import digest, resolve
from alignlab.experiment.run import run
from alignlab.objectives import MLE, InfoNCE


@pytest.fixture
def config(tiny_path):
    data = {"num_train": 24, "num_val": 4, "num_test": 4, "batch_size": 4}
    return {
        "objective": "MLE",
        "backbone": {"path": str(tiny_path)},
        "data": {"class_path": "Scenes", "init_args": data},
        "trainer": {"max_steps": 2, "log_every_n_steps": 1, "limit_val_batches": 1, "accelerator": "cpu"},
        "wandb": {"mode": "disabled"},
    }


def weights(folder):
    return load_file(folder / "backbone" / "model.safetensors")


def losses(folder):
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("objective", ["MLE", "InfoNCE"])
def test_mixed_precision_keeps_weights_in_full_and_half_weights_stay_half(config, tmp_path, objective):
    config["objective"] = objective
    config["trainer"]["max_steps"] = 1
    halves = {**config, "backbone": {**config["backbone"], "dtype": "bfloat16"}}
    mixed = {**config, "trainer": {**config["trainer"], "precision": "bf16-mixed"}}
    for name, each in {"full": config, "mixed": mixed, "halves": halves}.items():
        run(resolve(each), tmp_path / name)
    full, *others = (losses(tmp_path / name)[0] for name in ("full", "mixed", "halves"))
    assert all(other != full and other == pytest.approx(full, rel=3e-2) for other in others)
    types = [{each.dtype for each in weights(tmp_path / name).values()} for name in ("full", "mixed", "halves")]
    assert types == [{torch.float32}, {torch.float32}, {torch.bfloat16}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": {"precision": "bf16-true"}}, "for weights of another type backbone.dtype"),
        ({"trainer": {"strategy": "fsdp"}}, "fsdp is PyTorch's first kind of FSDP.*use fsdp2"),
        ({"trainer": {"strategy": "deepspeed_stage_3"}}, "deepspeed_stage_3: .*use fsdp2"),
        ({"backbone": {"attention": "flash_attention_2"}}, "flash_attention_2 needs a GPU and the package flash-attn"),
        ({"backbone": {"attention": "flex_attention"}}, "flex_attention has no backward pass on a CPU"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_made(config, tmp_path, changes, message):
    config = {key: {**value, **changes.get(key, {})} if key in changes else value for key, value in config.items()}
    with pytest.raises(InputError, match=message):
        run(resolve(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compiling_without_a_compiler_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config["backbone"]["compile"] = True
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler, and there is no no-such-compiler"):
        run(resolve(config), tmp_path / "run")


def test_a_strategy_named_by_its_class_trains(config, tmp_path):
    settings = {"find_unused_parameters": True, "process_group_backend": "gloo"}
    config["trainer"]["strategy"] = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": settings}
    config["trainer"] |= {"max_steps": 1, "devices": 1}
    assert run(resolve(config), tmp_path / "run")["steps"] == 1


@pytest.mark.parametrize("make", [MLE, InfoNCE])
@pytest.mark.parametrize("adapter", [Full(parts=["projector"]), LoRA(rank=2, dropout=0.1), None])
def test_recomputed_layers_have_the_same_gradients(tiny_path, examples, make, adapter):
    found = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        backbone = open_backbone(str(tiny_path), dtype="float64", gradient_checkpointing=recomputed)
        if adapter is not None:
            adapter.apply(backbone)
        calls = []
        mlp = backbone.model.get_decoder().layers[0].mlp
        mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        objective = make(backbone)
        torch.manual_seed(1)
        batch = backbone.encoder.batch(examples[:4], make.requires)
        objective.loss(batch).mean.backward()
        found.append(({n: p.grad for n, p in objective.named_parameters() if p.grad is not None}, len(calls)))
    (expected, once), (seen, twice) = found
    assert twice > once and seen.keys() == expected.keys()
    assert all(torch.equal(value, seen[name]) for name, value in expected.items())


def test_recomputing_lets_frozen_towers_be(tiny_path, examples):
    backbone = open_backbone(str(tiny_path), gradient_checkpointing=True)
    Full(parts=["projector"]).apply(backbone)
    tokens = backbone.encoder.batch(examples[:2], ("conversation",)).conversation
    seen = []
    backbone.model.get_encoder(modality="image").register_forward_hook(lambda m, a, out: seen.append(out))
    backbone(tokens)
    assert not seen[0].last_hidden_state.requires_grad


def test_a_run_that_recomputes_is_another_run_with_the_same_weights(config, tmp_path):
    other = {**config, "backbone": {**config["backbone"], "gradient_checkpointing": True}}
    assert digest(resolve(config)) != digest(resolve(other))
    for name, each in {"plain": config, "recomputed": other}.items():
        run(resolve(each), tmp_path / name)
    expected = weights(tmp_path / "plain")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "recomputed").items())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_run_is_the_plain_one_with_plain_names(config, tmp_path):
    config["backbone"]["dtype"] = "float64"
    other = {**config, "backbone": {**config["backbone"], "compile": True}}
    for name, each in {"plain": config, "compiled": other}.items():
        run(resolve(each), tmp_path / name)
    expected, found = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)
    checkpoints = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"].keys()
        for name in ("plain", "compiled")
    ]
    assert checkpoints[0] == checkpoints[1]
    alignlab.load(tmp_path / "compiled")
