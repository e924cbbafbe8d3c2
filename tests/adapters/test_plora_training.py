"""PLoRA in training: gradients, checkpointing, several processes, low precision, Lightning."""

import copy
import os

import pytest
import torch
from families import make, sequences
from lightning.pytorch import Trainer
from peft import LoraModel, get_peft_model
from peft.tuners.lora.awq import AwqLoraLinear
from test_plora_method import adapted, config, trained
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from alignlab import Backbone
from alignlab.adapters import PLoraModel, adapter_parameters, adapters_off
from alignlab.certificate.children import run_children
from alignlab.data import Scenes
from alignlab.objectives import MLE


@pytest.fixture
def backbone():
    return make("Llama")


def gradients(backbone):
    return {name: each.grad for name, each in backbone.model.named_parameters() if each.requires_grad}


def loss_of(backbone, tokens):
    return backbone(tokens).logits[tokens.attention_mask.bool()].square().mean()


def test_text_alone_leaves_gradients_of_zeros_and_the_base_as_it_was(backbone):
    adapted(backbone)
    picture, text = sequences(backbone), sequences(backbone, text_only=True)
    with torch.no_grad():
        before = copy.deepcopy(backbone)(text).logits
    optimizer = torch.optim.SGD(adapter_parameters(backbone.model), lr=1.0)
    backbone.model.train()
    loss_of(backbone, text).backward()
    found = gradients(backbone)
    assert len(found) == 28 and all(each is not None and not each.any() for each in found.values())
    optimizer.zero_grad()
    changed = loss_of(backbone, picture)
    changed.backward()
    assert all(each.any() for each in gradients(backbone).values())
    optimizer.step()
    backbone.model.eval()
    assert not torch.equal(loss_of(backbone, picture), changed)
    assert torch.equal(backbone(text).logits, before)


def test_tokens_outside_the_scope_may_hold_anything():
    layer = nn.Sequential(nn.Linear(4, 3))
    PLoraModel(layer, config(target_modules=["0"], visual_token_ids=[]), "a")
    trained(layer)
    x = torch.randn(1, 4, 4)
    x[0, 0], x[0, 1] = float("inf"), float("nan")
    x.requires_grad_()
    mask = torch.tensor([[False, False, True, False]])
    y = layer(x, visual_token_mask=mask)
    assert y[0, 2:].isfinite().all()
    y[0, 2:].sum().backward()
    assert x.grad.isfinite().all()
    assert all(each.grad.isfinite().all() and each.grad.any() for each in adapter_parameters(layer))
    assert torch.equal(layer(x, visual_token_mask=torch.zeros_like(mask))[0, 2:], layer[0].base_layer(x)[0, 2:])


def test_dropout_is_of_the_branch_alone(backbone):
    tuner = adapted(backbone, lora_dropout=0.5)
    picture, text = sequences(backbone), sequences(backbone, text_only=True)
    tuner.train()
    assert not torch.equal(backbone(picture).logits, backbone(picture).logits)
    assert torch.equal(backbone(text).logits, backbone(text).logits)
    tuner.eval()
    assert torch.equal(backbone(picture).logits, backbone(picture).logits)


@pytest.mark.parametrize("scope", ["visual", "text"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_passes_have_their_own_masks(backbone, scope, reentrant, dropout):
    tuner = adapted(backbone, scope, lora_dropout=dropout)
    batches = [sequences(backbone), sequences(backbone, side="left"), sequences(backbone, text_only=True)]
    backbone.model.enable_input_require_grads()
    backbone.model.train()

    def step():
        """Two passes before their gradients, with others in between that are none of theirs."""
        backbone.model.zero_grad()
        torch.manual_seed(3)
        losses = [loss_of(backbone, tokens) for tokens in batches]
        with torch.no_grad():
            backbone(batches[2])
        tuner.disable_adapter_layers()
        with torch.no_grad():
            backbone(batches[1])
        tuner.enable_adapter_layers()
        sum(losses).backward()
        return {key: value.clone() for key, value in gradients(backbone).items() if value is not None}

    expected = step()
    backbone.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls = []
    hook = backbone.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = step()
    hook.remove()
    assert len(calls) == 3 + 2 + 3 and len(expected) == 28 and found.keys() == expected.keys()  # 3 recomputed
    for name, value in expected.items():
        assert value.any() and torch.equal(found[name], value), name
    tuner.unload()
    backbone(batches[0])


def test_other_wrappers_take_the_context(backbone):
    tuner, tokens = adapted(backbone), [sequences(backbone), sequences(backbone, side="left")]
    backbone.model.train()
    sum(loss_of(backbone, each) for each in tokens).backward()
    expected = {key: value.clone() for key, value in gradients(backbone).items()}
    backbone.model.zero_grad()
    for layer in backbone.model.get_decoder().layers:
        forward = layer.forward
        layer.forward = lambda *given, forward=forward, **named: checkpoint(
            forward, *given, use_reentrant=False, context_fn=tuner.checkpoint_contexts, **named
        )
    sum(loss_of(backbone, each) for each in tokens).backward()
    assert all(torch.equal(value, expected[name]) for name, value in gradients(backbone).items())


def test_copies_of_checkpointed_models_are_on_their_own(backbone):
    adapted(backbone)
    tokens = sequences(backbone)
    backbone.model.enable_input_require_grads()
    backbone.model.gradient_checkpointing_enable()
    backbone.model.train()
    loss_of(backbone, tokens).backward()
    twin = copy.deepcopy(backbone)
    twin.model.zero_grad()
    loss = loss_of(twin, tokens)
    backbone.model._plora_tokens.now = None
    loss.backward()
    for name, value in gradients(backbone).items():
        assert torch.equal(gradients(twin)[name], value)


def share(rank, folder):
    """One of two processes, of which one has text only."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    backbone = make("Llama")
    adapted(backbone)
    backbone.model.train()
    replica = DistributedDataParallel(backbone.model)  # without find_unused_parameters
    optimizer = torch.optim.SGD(list(adapter_parameters(backbone.model)), lr=0.1)
    for step in range(3):
        tokens = sequences(backbone, text_only=rank == step % 2)
        optimizer.zero_grad()
        output = replica(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **tokens.vision)
        output.logits.square().mean().backward()
        optimizer.step()
    weights = torch.cat([each.detach().flatten() for each in adapter_parameters(backbone.model)])
    return {"weights": weights}


def test_processes_of_which_one_has_text_alone_stay_in_step(tmp_path):
    one, other = run_children(share, [(rank, tmp_path) for rank in range(2)])
    assert torch.equal(one["weights"], other["weights"])
    backbone = make("Llama")
    adapted(backbone)
    start = torch.cat([each.detach().flatten() for each in adapter_parameters(backbone.model)])
    assert not torch.allclose(one["weights"], start)


def test_low_precision(backbone):
    tokens = sequences(backbone)
    adapted(backbone)
    exact = backbone(tokens).logits
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone(tokens).logits
        rounded.float().square().mean().backward()
    assert all(each.dtype == torch.float32 and each.any() for each in gradients(backbone).values())
    assert (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()
    half = make("Llama")
    half.model.bfloat16()
    text = sequences(half, text_only=True)
    base = half.hidden(text)
    get_peft_model(half.model, config(), "v")  # which makes adapters float32
    trained(half.model)
    assert {each.dtype for each in adapter_parameters(half.model)} == {torch.float32}
    assert torch.equal(half.hidden(text), base) and base.dtype == torch.bfloat16
    logits = half(tokens_as(tokens, torch.bfloat16)).logits
    assert logits.dtype == torch.bfloat16 and (logits - exact).abs().mean() < 0.1 * exact.abs().mean()
    logits.float().square().mean().backward()
    assert all(each.any() for each in gradients(half).values())


def tokens_as(tokens, dtype):
    tokens = copy.copy(tokens)
    vision = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tokens.vision.items()}
    object.__setattr__(tokens, "vision", vision)
    return tokens


def test_layers_that_know_no_variants_are_masked_all_the_same(backbone, monkeypatch):
    tokens, twin = sequences(backbone), copy.deepcopy(backbone)
    adapted(backbone, "text")

    def create(config, name, target, *, r, lora_alpha, **_):
        return AwqLoraLinear(target, name, config=config, r=r, lora_alpha=lora_alpha)

    monkeypatch.setattr(LoraModel, "_create_new_module", staticmethod(create))
    tuner = adapted(twin, "text")
    for name, layer in twin.model.named_modules():
        if isinstance(layer, AwqLoraLinear):
            layer.load_state_dict(backbone.model.get_submodule(name).state_dict(), strict=False)
            assert not layer.lora_variant
    for side in ("left", "right"):
        tokens = sequences(backbone, side=side)
        torch.testing.assert_close(twin(tokens).logits, backbone(tokens).logits)
    tuner.unload()
    with adapters_off(backbone):
        torch.testing.assert_close(twin(tokens).logits, backbone(tokens).logits)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_the_adapter_alone(tiny_path, precision):
    objective = MLE(Backbone(str(tiny_path)))
    PLoraModel(objective.backbone.model, {"visual": config()}, "visual")
    objective.backbone.model.enable_input_require_grads()
    objective.backbone.model.gradient_checkpointing_enable()
    before = copy.deepcopy(objective.backbone.model.state_dict())
    trainer = Trainer(max_steps=2, accumulate_grad_batches=2, precision=precision, logger=False, accelerator="cpu",
                      enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                      limit_val_batches=1)  # fmt: skip
    trainer.fit(objective, datamodule=Scenes(num_train=24, num_val=8, batch_size=4))
    changed = {
        key for key, value in objective.backbone.model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert all("lora_" in key for key in changed)
    # Of the only layer's maps, those of keys and values alone reach text from visual tokens.
    for name in ("k_proj", "v_proj"):
        assert f"model.language_model.layers.0.self_attn.{name}.lora_B.visual.weight" in changed
