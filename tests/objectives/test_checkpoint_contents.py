"""Checkpoints: what of the weights they hold, and what they are refused with."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback
from peft import LoraConfig

from alignlab.adapters import Full, adapter_parameters
from alignlab.backbones import Backbone
from alignlab.data import Scenes
from alignlab.errors import InputError
from alignlab.experiment.fitting import fit
from alignlab.objectives import MLE, InfoNCE, Mixture, Optimization, SeVa
from alignlab.objectives.saving import fingerprint, leave_out


def projector(backbone):
    Full(parts=["projector"]).apply(backbone)


def lora(backbone):
    backbone.model.requires_grad_(False)
    torch.manual_seed(0)
    backbone.model.add_adapter(LoraConfig(r=2, target_modules="all-linear"))


def everything(backbone):
    Full().apply(backbone)


def mixed(backbone):
    return Mixture(backbone, parts={"words": MLE, "embeddings": InfoNCE})


class Until(Callback):
    """Ends a training as Ctrl-C does, behind a step's checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *arguments):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def train(path, folder, adapt, *, until=3, make=MLE, change=None):
    """A training of three steps, from the last checkpoint in the folder if there is one."""
    torch.manual_seed(0)
    backbone = Backbone(str(path))
    adapt(backbone)
    if change is not None:
        change(backbone)
    objective = make(backbone)
    objective.optimization = Optimization(lr=1e-2)
    data = Scenes(num_train=16, num_val=4, batch_size=4)
    settings = {"max_steps": 3, "limit_val_batches": 0, "accelerator": "cpu", "deterministic": True}
    with nullcontext() if until == 3 else pytest.raises(KeyboardInterrupt):
        fit(objective, data, settings, folder, checkpoint_every=1, callbacks=[Until(until)])
    return objective


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def numbers(node):
    """How many numbers the tensors of a checkpoint hold."""
    if isinstance(node, torch.Tensor):
        return node.numel()
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return sum(numbers(value) for value in values)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in state.items():
        same = torch.equal(value, expected[name]) if isinstance(value, torch.Tensor) else value == expected[name]
        assert same, name


@pytest.mark.parametrize("adapt", [projector, lora, everything])
def test_a_checkpoint_holds_what_trained_and_its_moments(tiny_path, tmp_path, adapt):
    objective = train(tiny_path, tmp_path, adapt, until=1)
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    size, total = sum(p.numel() for p in trained.values()), sum(p.numel() for p in objective.parameters())
    if adapt is lora:
        assert {id(p) for p in trained.values()} == {id(p) for p in adapter_parameters(objective.backbone)}
    checkpoint = last(tmp_path)
    buffers = dict(objective.named_buffers())
    kept = {name for name in checkpoint["state_dict"] if name not in buffers}
    assert kept == set(trained)
    assert numbers(checkpoint["optimizer_states"]) - 2 * size <= len(trained)  # and the count of steps of each
    assert (size < total / 5) == (adapt is not everything)


@pytest.mark.parametrize("make", [MLE, SeVa, mixed])
@pytest.mark.parametrize("adapt", [projector, lora])
def test_a_training_goes_on_bit_for_bit(tiny_path, tmp_path, adapt, make):
    whole = train(tiny_path, tmp_path / "whole", adapt, make=make)
    train(tiny_path, tmp_path / "parts", adapt, until=2, make=make)
    parts = train(tiny_path, tmp_path / "parts", adapt, make=make)
    expected = whole.state_dict()
    assert_same(parts.state_dict(), expected)
    once = {name.partition("backbone.")[2] for name in last(tmp_path / "parts")["state_dict"] if "backbone." in name}
    trained = {name for name, p in parts.backbone.named_parameters() if p.requires_grad}
    assert trained <= once and len(once - trained) <= len(list(parts.backbone.buffers()))


def test_other_frozen_weights_are_refused_before_a_step(tiny_path, tmp_path):
    def touched(backbone):
        with torch.no_grad():
            backbone.model.lm_head.weight[0, 0] += 1e-3

    train(tiny_path, tmp_path, projector, until=1)
    before = last(tmp_path)
    message = r"other frozen weights than the backbone has now \(model.lm_head.weight\); go on with .*backbone.path"
    with pytest.raises(InputError, match=message):
        train(tiny_path, tmp_path, projector, until=2, change=touched)
    assert last(tmp_path)["global_step"] == before["global_step"] == 1


def test_what_trains_beside_it_is_no_frozen_weight(tiny_path, tmp_path):
    train(tiny_path, tmp_path, projector, until=1)
    with pytest.raises(InputError, match="taken with model.* frozen, which trains now; go on with the adapter"):
        train(tiny_path, tmp_path, everything, until=2)


def test_a_checkpoint_that_lacks_what_trained_is_refused(tiny_path, tmp_path):
    train(tiny_path, tmp_path, projector, until=1)
    checkpoint = last(tmp_path)
    gone = next(name for name in checkpoint["state_dict"] if "projector" in name)
    del checkpoint["state_dict"][gone]
    torch.save(checkpoint, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(RuntimeError, match="Missing key.*projector"):
        train(tiny_path, tmp_path, projector, until=2)


def test_a_checkpoint_of_all_weights_still_loads(tiny_path, tmp_path):
    """As they were written before: frozen weights come from it, too."""
    expected = train(tiny_path, tmp_path / "whole", projector).state_dict()
    objective = train(tiny_path, tmp_path / "parts", projector, until=2)
    checkpoint = last(tmp_path / "parts")
    del checkpoint["frozen"]
    checkpoint["state_dict"] = objective.state_dict()
    torch.save(checkpoint, tmp_path / "parts" / "checkpoints" / "last.ckpt")

    def touched(backbone):
        with torch.no_grad():
            backbone.model.lm_head.weight.zero_()

    parts = train(tiny_path, tmp_path / "parts", projector, change=touched)
    assert_same(parts.state_dict(), expected)
    assert last(tmp_path / "parts")["frozen"] == fingerprint(objective.backbone)


def test_the_fingerprint_is_of_the_bits_whatever_their_type_and_place():
    def of(weight):
        holder = torch.nn.Module()
        holder.weight = torch.nn.Parameter(weight, requires_grad=False)
        return fingerprint(holder)["weight"]

    # As whole numbers 1.0 is 0x3f800000 in float32 and 0x3f80 in bfloat16; what fills no 8 bytes counts byte by byte.
    assert of(torch.ones(2)) == 0x3F8000003F800000 and of(torch.ones(3)) == 0x3F8000003F800000 + 0x3F + 0x80
    assert of(torch.ones(4, dtype=torch.bfloat16)) == 0x3F803F803F803F80
    assert of(torch.tensor([-0.0])) == 0x80 != of(torch.tensor([0.0])) == 0
    assert of(torch.tensor([[3, 4]], dtype=torch.uint8)) == 7 and of(torch.empty(0)) == 0
    weight = torch.randn(4, 6)
    rows = torch.cat([torch.zeros(1), weight.flatten()])[1:].view(4, 6)  # begins amid 8 bytes
    assert of(rows) == of(weight) == of(weight.T.contiguous().T) != of(weight.T)
    assert -(2**63) <= of(torch.ones(10_000, dtype=torch.float64)) < 2**63  # added up, they go round


def test_what_quantization_keeps_of_a_frozen_weight_goes_with_it():
    objective = torch.nn.Module()
    objective.backbone = torch.nn.Linear(2, 2)
    objective.backbone.weight.requires_grad_(False)
    names = ("weight", "weight.absmax", "weight.quant_state.nf4", "bias", "weights")  # as bitsandbytes saves them
    checkpoint = {"state_dict": {f"backbone.{name}": torch.zeros(1) for name in names}}
    leave_out(checkpoint, objective, objective.backbone, fingerprint(objective.backbone))
    assert list(checkpoint["state_dict"]) == ["backbone.bias", "backbone.weights"]
