"""PLoRA as a method of peft: its arithmetic, its recorded values, and what peft does with adapters."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from families import IMAGE, make, sequences
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model, inject_adapter_in_model
from plain import run_plain
from torch import nn
from torch.nn import functional as F

import alignlab.adapters.registering as registering
from alignlab import InputError
from alignlab.adapters import PLoraConfig, PLoraModel, adapters_off
from alignlab.functional import partial_lora

MLP = ["gate_proj", "up_proj", "down_proj"]


def config(scope="visual", **settings):
    return PLoraConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "token_scope": scope} | settings)


def trained(model, name="", seed=1):
    """Give an adapter weights that matter."""
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_B" in key and name in key:
            nn.init.normal_(parameter.data, std=0.3)


@pytest.fixture
def backbone():
    backbone = make("Llama")
    backbone.model.eval()
    return backbone


def adapted(backbone, scope="visual", name="a", **settings):
    tuner = PLoraModel(backbone.model, {name: config(scope, **settings)}, name)
    trained(backbone.model, f".{name}.")
    backbone.model.eval()
    return tuner


class Official(nn.Module):
    """The released class: it gathers by a boolean mask, and adds in place."""

    def __init__(self, layer, name, masks):
        super().__init__()
        self.base, self.masks, self.scaling = layer.base_layer, masks, layer.scaling[name]
        self.a, self.b = layer.lora_A[name], layer.lora_B[name]

    def forward(self, x):
        out, mask = self.base(x), self.masks[-1].reshape(-1)
        flat = out.reshape(-1, out.shape[-1])
        flat[mask] += self.b(self.a(x.reshape(-1, x.shape[-1])[mask])) * self.scaling
        return flat.view_as(out)


def test_all_layers_of_a_decoder_are_the_official_class(backbone):
    tuner, tokens = adapted(backbone), sequences(backbone)
    other, masks = copy.deepcopy(backbone), [tokens.image_mask]
    for name in tuner.targeted_module_names:
        parent, _, end = name.rpartition(".")
        layer = other.model.get_submodule(name)
        setattr(other.model.get_submodule(parent), end, Official(layer, "a", masks))
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **tokens.vision}
    ours, theirs = backbone.model(**inputs), other.model(**inputs)
    assert len(tuner.targeted_module_names) == 14 and tokens.image_mask.any()
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    for output in (ours, theirs):
        output.logits.square().mean().backward()
    expected = dict(other.model.named_parameters())
    for name, parameter in backbone.model.named_parameters():
        if "lora_" in name:
            start, end = name.rsplit(".lora_", 1)
            found = expected[f"{start}.{end[0].lower()}.weight"].grad
            assert parameter.grad.any()
            torch.testing.assert_close(parameter.grad, found, rtol=1e-4, atol=1e-5)


class Linears(nn.Module):
    """The modules of a recorded case."""

    def __init__(self, shapes, bias):
        super().__init__()
        for name, (width, out) in shapes.items():
            self.add_module(name, nn.Linear(width, out, bias=bias))


class One(Linears):
    def forward(self, x):
        return self.w(x)


class SwiGLU(Linears):
    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


@pytest.mark.parametrize(("file", "cls", "num_cases"), [("plora_linear", One, 12), ("plora_swiglu_mlp", SwiGLU, 2)])
def test_layers_of_peft_give_the_recorded_values(golden, file, cls, num_cases):
    cases = golden(f"adapters_tokenizer/{file}")["cases"]
    assert len(cases) == num_cases
    for case in cases:
        weights = {name if cls is SwiGLU else f"w.{name}": tensor(value) for name, value in case["weights"].items()}
        shapes = {name[:-7]: value.shape[::-1] for name, value in weights.items() if name.count(".") == 1
                  and name.endswith("weight")}  # fmt: skip
        model = cls(shapes, bias="w.bias" in weights)
        settings = {"r": case["config"]["lora_r"], "lora_alpha": case["config"]["lora_alpha"]}
        PLoraModel(model, config(visual_token_ids=[], target_modules=list(shapes), **settings), "a")
        model.requires_grad_(True)
        ours = {name: model.get_parameter(renamed(name)) for name in weights}
        with torch.no_grad():
            for name, value in weights.items():
                ours[name].copy_(value)
        x = tensor(case["inputs"]["x"]).requires_grad_()
        y = model(x, visual_token_mask=tensor(case["inputs"]["im_mask"]).bool().reshape(x.shape[:2]))
        torch.testing.assert_close(y, tensor(case["expected"]["y"]), rtol=1e-4, atol=1e-5)
        (y * tensor(case["inputs"]["cotangent"])).sum().backward()
        for name, value in case["expected_grads"].items():
            found = x if name == "x" else ours[name if cls is SwiGLU else f"w.{name}"]
            torch.testing.assert_close(found.grad, tensor(value), rtol=1e-4, atol=1e-5)


def tensor(recorded):
    return torch.tensor(recorded["values"])


def renamed(name):
    layer, rest = name.split(".", 1)
    if rest.startswith("Plora_"):
        return f"{layer}.lora_{rest[6]}.a.weight"
    return f"{layer}.base_layer.{rest}"


def test_a_fresh_b_is_zero_where_the_official_one_is_not(golden):
    recorded = golden("adapters_tokenizer/plora_init_quirk")["cases"][0]
    shape = recorded["config"]
    torch.manual_seed(shape["seed"])
    model = One({"w": (shape["in_features"], shape["out_features"])}, bias=False)
    PLoraModel(model, config(visual_token_ids=[], target_modules=["w"], r=shape["lora_r"]), "a")
    assert not recorded["expected"]["Plora_B_is_all_zero"] and not model.w.lora_B["a"].weight.any()
    largest = model.w.lora_A["a"].weight.abs().max()
    assert 0 < largest <= recorded["expected"]["kaiming_bound_A"]  # uniform, a = sqrt(5)


@pytest.mark.parametrize("scope", ["visual", "text", "all"])
def test_a_fresh_adapter_changes_no_bit(backbone, scope):
    tokens = sequences(backbone)
    before = backbone(tokens).logits
    PLoraModel(backbone.model, config(scope), "a")
    assert torch.equal(backbone(tokens).logits, before)


def test_scopes_change_what_they_name(backbone):
    picture, text = sequences(backbone), sequences(backbone, text_only=True)
    base = {"picture": backbone.hidden(picture), "text": backbone.hidden(text)}
    first = {}
    layer = backbone.model.get_decoder().layers[0].self_attn.q_proj
    for scope in ("visual", "text", "all"):
        tuner = adapted(backbone, scope)
        seen = []
        hook = (
            backbone.model.get_decoder()
            .layers[0]
            .self_attn.q_proj.register_forward_hook(
                lambda module, given, out, seen=seen: seen.append(out - module.base_layer(given[0]))
            )
        )
        backbone.hidden(picture)
        hook.remove()
        first[scope] = seen[0].abs().sum(-1) > 0
        assert torch.equal(backbone.hidden(text), base["text"]) == (scope == "visual")
        assert not torch.allclose(backbone.hidden(picture)[0], base["picture"][0])
        with adapters_off(backbone):
            assert torch.equal(backbone.hidden(picture), base["picture"])
        assert tuner.unload() is backbone.model
        assert torch.equal(backbone.hidden(picture), base["picture"])
    assert torch.equal(first["visual"], picture.image_mask) and torch.equal(first["text"], ~picture.image_mask)
    assert first["all"].all() and backbone.model.get_decoder().layers[0].self_attn.q_proj is layer


def test_all_is_lora_of_peft(backbone):
    other = copy.deepcopy(backbone)
    adapted(backbone, "all", target_modules=MLP)
    LoraModel(other.model, LoraConfig(r=4, lora_alpha=8, target_modules=MLP), "a")
    trained(other.model)
    other.model.eval()
    missing, unexpected = other.model.load_state_dict(backbone.model.state_dict())
    assert not missing and not unexpected
    tokens = sequences(backbone)
    assert torch.equal(backbone(tokens).logits, other(tokens).logits)


def test_one_layer_is_partial_lora(backbone):
    adapted(backbone)
    layer = backbone.model.get_decoder().layers[0].mlp.up_proj
    seen = {}
    layer.register_forward_hook(lambda module, given, out: seen.update(x=given[0], y=out))
    tokens = sequences(backbone)
    backbone.hidden(tokens)
    branch = partial_lora(seen["x"], tokens.image_mask, layer.lora_A["a"].weight, layer.lora_B["a"].weight, scaling=2.0)
    torch.testing.assert_close(seen["y"], layer.base_layer(seen["x"]) + branch)


def test_several_adapters_side_by_side(backbone):
    tokens = sequences(backbone)
    tuner = adapted(backbone, "visual", "v")
    for name in ("text", "all"):
        tuner.peft_config[name] = config(name)
        tuner.inject_adapter(backbone.model, name)
    state = backbone.model.state_dict()
    for key in state:
        for name in ("text", "all"):
            if f".{name}." in key:
                state[key] = state[key.replace(f".{name}.", ".v.")]
    backbone.model.load_state_dict(state)
    backbone.model.eval()
    alone = {}
    for name in ("v", "text", "all"):
        tuner.set_adapter(name)
        alone[name] = backbone(tokens).logits
    tuner.set_adapter(["v", "text"])
    torch.testing.assert_close(backbone(tokens).logits, alone["all"], rtol=1e-5, atol=1e-4)
    assert not torch.allclose(alone["v"], alone["all"]) and not torch.allclose(alone["text"], alone["all"])
    tuner.set_adapter("v")
    tuner.delete_adapter("text")
    tuner.delete_adapter("all")
    assert torch.equal(backbone(tokens).logits, alone["v"])
    assert not any(".text." in name for name, _ in backbone.model.named_parameters())


@pytest.mark.parametrize("beams", [1, 2])
def test_rows_may_have_different_adapters(backbone, beams):
    tokens = sequences(backbone, side="left")
    peft = get_peft_model(backbone.model, config(), "v")
    peft.add_adapter("t", config("text"))
    trained(backbone.model)
    peft.eval()
    inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **tokens.vision}
    ways = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    ways |= {"output_logits": True, "return_dict_in_generate": True}
    alone = {}
    for name in ("v", "t"):
        peft.set_adapter(name)
        with torch.no_grad():
            alone[name] = peft(**inputs).logits, peft.generate(**inputs, **ways).logits[0]
    with peft.disable_adapter(), torch.no_grad():
        alone["__base__"] = peft(**inputs).logits, peft.generate(**inputs, **ways).logits[0]
    names = ["t", "v", "__base__"]
    with torch.no_grad():
        mixed = peft(**inputs, adapter_names=names).logits
        generated = peft.generate(**inputs, **ways, adapter_names=names).logits[0]
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][0][row])
        at = slice(row * beams, (row + 1) * beams)
        torch.testing.assert_close(generated[at], alone[name][1][at])


def test_other_methods_are_kept_apart(backbone):
    plain = copy.deepcopy(backbone.model)
    peft = get_peft_model(backbone.model, config(), "v")
    with pytest.raises(ValueError, match="type"):
        peft.add_adapter("plain", LoraConfig(target_modules=MLP))
    with pytest.raises(InputError, match="cannot share a layer with other methods, got plain"):
        LoraModel(backbone.model, {"plain": LoraConfig(target_modules=MLP)}, "plain")
    LoraModel(plain, {"plain": LoraConfig(target_modules=MLP)}, "plain")
    with pytest.warns(UserWarning, match="Already found"), pytest.raises(InputError, match="other methods, got plain"):
        PLoraModel(plain, {"v": config()}, "v")


def test_only_adapters_of_all_tokens_merge(backbone):
    tokens = sequences(backbone)
    peft = get_peft_model(backbone.model, config(), "v")
    trained(backbone.model)
    peft.eval()
    before = copy.deepcopy(backbone.model.state_dict())
    layer = backbone.model.get_decoder().layers[0].mlp.up_proj
    for work in (
        peft.merge_adapter, peft.merge_and_unload, lambda: peft.merge_and_unload(safe_merge=True), layer.merge,
        lambda: layer.merge(safe_merge=True),
    ):  # fmt: skip
        with pytest.raises(InputError, match="cannot merge v"):
            work()
    assert all(torch.equal(value, before[key]) for key, value in backbone.model.state_dict().items())
    peft.add_adapter("all", config("all"))
    trained(backbone.model, ".all.", seed=2)
    peft.set_adapter("all")
    peft.eval()
    logits = backbone(tokens).logits
    merged = peft.merge_and_unload()
    assert merged is backbone.model and not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(backbone(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    assert not {"generate", "_plora_tokens"} & set(vars(merged))
    assert not merged._forward_pre_hooks and not merged.base_model._forward_hooks


def test_added_adapters_keep_their_scope(backbone):
    tokens = sequences(backbone)
    peft = get_peft_model(backbone.model, config(), "v")
    peft.add_adapter("w", config())
    peft.add_adapter("t", config("text"))
    trained(backbone.model)
    peft.base_model.add_weighted_adapter(["v", "w"], [1.0, 1.0], "sum", combination_type="cat")
    peft.eval()
    assert peft.peft_config["sum"].token_scope == "visual"
    peft.base_model.set_adapter(["v", "w"])
    both = backbone(tokens).logits
    peft.set_adapter("sum")
    torch.testing.assert_close(backbone(tokens).logits, both, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="of one token_scope, got text, visual"):
        peft.base_model.add_weighted_adapter(["v", "t"], [1.0, 1.0], "mixed", combination_type="cat")


@pytest.mark.parametrize("low", [False, True])
def test_saved_adapters_come_back_bit_for_bit(backbone, tmp_path, low):
    base = copy.deepcopy(backbone)
    tokens = sequences(backbone)
    peft = get_peft_model(backbone.model, config("text", visual_token_ids=[IMAGE, 7]), "default")
    trained(backbone.model)
    peft.eval()
    peft.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "PLORA" and written["token_scope"] == "text"
    again = PeftModel.from_pretrained(base.model, tmp_path, low_cpu_mem_usage=low)
    assert type(again.base_model) is PLoraModel and again.peft_config["default"].visual_token_ids == [IMAGE, 7]
    assert torch.equal(base(tokens).logits, backbone(tokens).logits)


def test_a_process_without_alignlab_does_not_take_it_for_lora(backbone, tmp_path):
    get_peft_model(backbone.model, config()).save_pretrained(tmp_path)
    code = (
        "import peft, sys\n"
        "assert not [name for name in sys.modules if name.startswith('alignlab')]\n"
        f"try: peft.PeftConfig.from_pretrained({str(tmp_path)!r})\n"
        "except KeyError as error: sys.exit(0 if 'PLORA' in str(error) else 3)\n"
        "sys.exit(4)"
    )
    assert run_plain(code).returncode == 0


def test_the_other_ways_in(backbone, tmp_path):
    tokens, copies = sequences(backbone), [copy.deepcopy(backbone) for _ in range(3)]
    adapted(backbone, "visual", "default")
    expected = backbone(tokens).logits
    inject_adapter_in_model(config(), copies[0].model, "default")
    copies[1].model.add_adapter(config(), "default")
    for each in copies[:2]:
        trained(each.model)
        each.model.load_state_dict(backbone.model.state_dict())
        each.model.eval()
        assert torch.equal(each(tokens).logits, expected)
    copies[1].model.save_pretrained(tmp_path)
    copies[2].model.load_adapter(str(tmp_path), "default")
    copies[2].model.eval()
    assert torch.equal(copies[2](tokens).logits, expected)


def test_copies_are_on_their_own_and_nothing_is_in_the_state_dict(backbone):
    tokens = sequences(backbone)
    adapted(backbone)
    keys = backbone.model.state_dict().keys()
    assert all("lora_" in key or "base_layer" in key or "tokens" not in key.split(".")[-1] for key in keys)
    expected = backbone(tokens).logits
    twin = copy.deepcopy(backbone)
    backbone.model._plora_tokens.ids = (39,)
    assert torch.equal(twin(tokens).logits, expected) and not torch.equal(backbone(tokens).logits, expected)
    layer = twin.model.get_decoder().layers[0].mlp.up_proj
    assert layer.tokens is twin.model._plora_tokens is layer.lora_variant["a"].tokens
    assert layer.tokens is not backbone.model._plora_tokens
    twin.model._plora_tokens.remove(twin.model)
    assert not twin.model._forward_pre_hooks and backbone.model._forward_pre_hooks


def test_a_model_with_adapters_is_pickled():
    backbone = make("Llama")
    adapted(backbone)
    again = copy.copy(backbone)
    again.model = pickle.loads(pickle.dumps(backbone.model))
    tokens = sequences(backbone)
    assert torch.equal(again(tokens).logits, backbone(tokens).logits)


def test_what_it_adapts(backbone):
    before = copy.deepcopy(backbone.model)
    whole = {"up_proj", "down_proj", "gate_proj", "q_proj", "k_proj", "v_proj", "o_proj"}
    tuner = PLoraModel(backbone.model, PLoraConfig(), "a")
    names = tuner.targeted_module_names
    assert len(names) == 2 * len(whole) and {name.rsplit(".", 1)[-1] for name in names} == whole
    assert all(name.startswith("model.language_model.layers.") for name in names)
    layer = backbone.model.get_submodule(names[0])
    assert (layer.r["a"], layer.scaling["a"], layer.lora_dropout["a"].p) == (256, 1.0, 0.05)
    assert {name for name, each in backbone.model.named_parameters() if each.requires_grad} == {
        name for name, _ in backbone.model.named_parameters() if "lora_" in name
    }
    for targets, named in (
        (["q_proj"], "model.vision_tower.*q_proj outside"), (["lm_head"], "lm_head outside"),
        (["linear_1", "up_proj"], "model.multi_modal_projector.linear_1 outside"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"decoder alone, but target_modules name {named} of it"):
            PLoraModel(before, config(target_modules=targets), "a")
    with pytest.raises(InputError, match="linear maps, got model.language_model.embed_tokens, a Embedding"):
        PLoraModel(before, config(target_modules=["embed_tokens"]), "a")
    assert not before._forward_pre_hooks and "generate" not in vars(before)


@pytest.mark.parametrize("settings", [
    {"use_dora": True}, {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}, {"lora_bias": True},
    {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"bias": "all"}, {"token_scope": "vision"},
    {"target_parameters": ["mlp.weight"]}, {"use_qalora": True}, {"layers_to_transform": [0]},
    {"layer_replication": [[0, 1]]}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1]},
    {"task_type": "SEQ_CLS"}, {"task_type": "TOKEN_CLS"}, {"task_type": "QUESTION_ANS"},
])  # fmt: skip
def test_what_it_refuses(settings):
    with pytest.raises(InputError, match=f"PLoraConfig.*{next(iter(settings))}"):
        PLoraConfig(**settings)


def test_placeholders_have_to_be_known_and_the_same(backbone):
    tuner = adapted(backbone)
    assert tuner._tokens().ids == (IMAGE,)
    with pytest.raises(InputError, match=r"same visual_token_ids, got \[3\] after \[1\]"):
        tuner.peft_config["b"] = config(visual_token_ids=[3])
        tuner.inject_adapter(backbone.model, "b")
    text = make("Llama").model.get_decoder()
    with pytest.raises(InputError, match="the config of LlamaModel names no placeholder; set visual_token_ids"):
        PLoraModel(text, config(), "a")


def test_another_peft_is_refused(monkeypatch):
    monkeypatch.setattr(registering.peft, "__version__", "0.23.0")
    with pytest.raises(InputError, match=r'peft >=0.21,<0.23.*0.23.0 is installed; .*pip install "peft>=0.21,<0.23"'):
        registering.add_type("PLORA")
    monkeypatch.undo()
    with pytest.raises(InputError, match="has a method PLORA already"):
        registering.add_type("PLORA")
    with pytest.raises(InputError, match="peft >=0.21,<0.23.*already"):
        registering.register("PLORA", PLoraConfig, PLoraModel)


def test_peft_and_bitsandbytes_are_imported_by_what_uses_them_alone():
    code = (
        "import sys, alignlab.adapters as adapters, alignlab.backbones\n"
        "assert not {'peft', 'bitsandbytes'} & set(sys.modules)\n"
        "from alignlab.adapters import PLoraConfig, PLoraModel; assert PLoraConfig.__module__.endswith('plora')\n"
        "assert not {'PLoraConfig', 'PLoraModel'} & set(adapters.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
