"""The operations and the memory that a run records are its own, counted as a reader would count them."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from shipped import MAKERS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alignlab.backbones import open_backbone
from alignlab.backbones.tiny import give_tokenizer
from alignlab.experiment import memory
from alignlab.experiment.config import resolve
from alignlab.experiment.run import run
from alignlab.experiment.throughput import _FORMULAS, FlopCount, Pace
from alignlab.objectives import CAL, MLE, InfoNCE, SeVa


def count(work):
    """Operations (forward, backward)."""
    with FlopCount() as counter:
        work()
    return counter.total - counter.backward, counter.backward


def step(objective, batch):
    """Forward and backward of a loss on a batch, as a function to be counted."""
    return lambda: objective.loss(batch).mean.backward()


@pytest.fixture
def made(tiny_path, examples):
    """Makes an objective on an eager backbone whose parts train, and its batch of 8."""

    def make(objective, *, trained=("projector", "language_model"), attention="eager"):
        torch.manual_seed(0)
        backbone = open_backbone(str(tiny_path), attention=attention)
        for part, module in backbone.parts.items():
            module.requires_grad_(part in trained)
        return (whole := objective(backbone)), backbone.encoder.batch(examples[:8], whole.requires)

    return make


def linears(module, work):
    """Operations of the linear layers in a module's forward passes: two for each weight and row."""
    found, hooks = [], []
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            note = lambda layer, given, _: found.append(2 * layer.weight.numel() * given[0][..., 0].numel())  # noqa: E731
            hooks.append(layer.register_forward_hook(note))
    work()
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_what_is_frozen_costs_no_backward_pass_and_what_trains_costs_two(made):
    objective, batch = made(MLE)
    backbone, work = objective.backbone, step(objective, batch)
    work()  # the first one looks at small sequences as well
    text, projector = (linears(backbone.parts[part], work) for part in ("language_model", "projector"))
    rows, width = batch.conversation.input_ids.shape
    config = backbone.model.config.text_config
    # Scores and mixtures of all heads, a product each: 2 T T D operations a row.
    heads = config.num_attention_heads * config.head_dim
    attention = 2 * 2 * width * width * heads * config.num_hidden_layers * rows
    first = next(layer for layer in backbone.parts["projector"].modules() if isinstance(layer, nn.Linear))
    forward, backward = count(work)
    # Each product has two gradients, but the frozen tower's features below the projector want none.
    assert backward == 2 * (text + attention + projector) - linears(nn.ModuleList([first]), work)
    assert forward > text + projector + attention  # the tower's is in it
    everything, same = made(MLE, trained=("vision_tower", "projector", "language_model"))
    step(everything, same)()
    whole = count(step(everything, same))
    assert whole[0] == forward and whole[1] > backward + forward - text - projector - attention


def test_the_second_pass_of_cal_is_a_forward_pass_more(made):
    plain, batch = made(MLE)
    weighed, same = made(CAL)
    blind = count(lambda: weighed.blind_states(same, weighed.backbone.features(same.conversation)))[0]
    features = count(lambda: weighed.backbone.features(same.conversation))[0]
    forward, backward = count(step(plain, batch))
    assert count(step(weighed, same)) == (forward + blind - features, backward)
    assert blind - features > 0.1 * forward


def test_the_reference_of_preferences_costs_what_the_policy_s_forward_pass_costs(made):
    objective, batch = made(partial(SeVa, beta=0.1))
    step(objective, batch)()  # looks whether the answers may share their prompt
    features = count(lambda: objective.backbone.features(batch.conversation))[0]
    tower = features - linears(
        objective.backbone.parts["projector"], lambda: objective.backbone.features(batch.conversation)
    )
    answers = objective.backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
    seen = objective.backbone.features(batch.conversation)
    passed = count(lambda: objective.backbone.answer_logps(answers, features=seen))[0]
    # The frozen tower sees the pictures once for both.
    assert count(step(objective, batch))[0] == 2 * (features + passed) - tower


def test_chunks_cost_a_forward_pass_more_and_it_counts_as_backward(made):
    whole, batch = made(InfoNCE)
    chunked, same = made(partial(InfoNCE, chunk_size=4))
    forward, backward = count(step(whole, batch))
    theirs = count(step(chunked, same))
    logits = 2 * 8 * 8 * whole.backbone.model.config.text_config.hidden_size  # B x B cosines, which no chunk repeats
    assert theirs[0] == pytest.approx(forward, rel=0.04)  # a chunk has less padding
    assert theirs[1] == pytest.approx(backward + forward - logits, rel=0.04)


@pytest.mark.parametrize("name", MAKERS)
def test_no_operation_of_a_shipped_objective_is_missed(name, tiny_path, examples):
    torch.manual_seed(0)
    backbone = open_backbone(str(tiny_path), text_tower=str(tiny_path) if name == "LLM2CLIP" else None)
    if name == "LaVIT":
        give_tokenizer(backbone)
    objective = MAKERS[name](backbone)
    work = step(objective, backbone.encoder.batch(examples[:4], objective.requires))

    def attention(*args, out_shape=None, formula, **kwargs):
        return formula(*args, out_val=out_shape, **kwargs)

    ours = {op: partial(attention, formula=each) for op, each in _FORMULAS.items() if "for_cpu" in str(op)}
    with FlopCounterMode(display=False, custom_mapping=ours) as theirs, FlopCount() as counter:
        work()
    assert counter.total == theirs.get_total_flops() > 0
    assert 0.2 * counter.total < counter.backward < 0.7 * counter.total


def pace_of(*counts, samples=4):
    """A session's first micro-batches."""
    pace = Pace()
    for index, (total, backward) in enumerate(counts):
        counter = FlopCount()
        counter.total, counter.backward = total, backward
        pace._keep(counter, samples, first=index == 0)
    return pace


def test_what_only_the_first_micro_batch_does_is_not_taken_for_all():
    assert pace_of((900, 100)).work(8) == {"forward": 1600, "backward": 200}  # all there is
    assert pace_of((900, 100), (300, 200), (500, 200)).work(8) == {"forward": 400, "backward": 400}
    before = pace_of((900, 100))
    resumed = Pace()
    resumed.load_state_dict(before.state_dict())
    for first in (True, False):
        counter = FlopCount()
        counter.total, counter.backward = (7000, 0) if first else (300, 200)
        resumed._keep(counter, 4, first=first)
    assert resumed.work(4) == {"forward": 100, "backward": 200}


def config_of(path, **trainer):
    data = {"num_train": 40, "num_val": 4, "num_test": 4, "batch_size": 8, "tasks": ["caption"]}
    own = {"max_steps": 4, "accelerator": "cpu", "limit_val_batches": 0, **trainer}
    config = {"objective": "MLE", "backbone": {"path": str(path)}, "data": {"class_path": "Scenes", "init_args": data}}
    return {**config, "trainer": own, "evaluators": [], "wandb": {"mode": "disabled"}, "checkpoint_every": 2}


def test_accumulation_and_a_resume_change_little_of_a_run_s_operations(tiny_path, tmp_path):
    config = config_of(tiny_path)
    whole = run(resolve(config), tmp_path / "whole")["flops"]
    config["data"]["init_args"]["batch_size"] = 4
    halves = run(resolve(config | {"trainer": config["trainer"] | {"accumulate_grad_batches": 2}}), tmp_path / "halves")
    assert halves["samples"] == 32
    assert list(halves["flops"].values()) == pytest.approx(
        list(whole.values()), rel=0.1
    )  # padding, and which were counted

    def stop(progress):
        if progress.stage == "fit" and progress.step == 3:
            raise RuntimeError("stopped")

    config = config_of(tiny_path)
    with pytest.raises(RuntimeError, match="stopped"):
        run(resolve(config), tmp_path / "resumed", on_progress=stop)
    resumed = run(resolve(config), tmp_path / "resumed")
    assert resumed["samples"] == 32
    assert list(resumed["flops"].values()) == pytest.approx(list(whole.values()), rel=0.1)


ON_LINUX = pytest.mark.skipif(not memory._SELF.is_dir(), reason="only Linux lets a process forget its peak")
CPU = torch.device("cpu")


@ON_LINUX
def test_a_peak_is_forgotten_on_demand():
    memory.forget_peak()
    before, held = memory.peak_mib(CPU), torch.ones(300 * 2**18)
    during = memory.peak_mib(CPU)
    del held
    memory.forget_peak()
    assert before + 250 < during and memory.peak_mib(CPU) < during - 250


@ON_LINUX
def test_a_run_s_peak_is_not_that_of_what_its_process_did_before(tiny_path, tmp_path):
    much = torch.ones(700 * 2**18)
    del much
    before = memory.peak_mib(CPU)
    recorded = run(resolve(config_of(tiny_path, max_steps=1)), tmp_path / "run")["peak_memory_mib"]
    assert 100 < recorded < before - 300


@ON_LINUX
def test_a_program_s_peak_is_not_that_of_the_one_that_started_it():
    held = torch.ones(600 * 2**18)
    code = "import sys, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); "
    code += "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    inherited, own = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert float(own) / 1024 < 100 and len(held)
    assert float(inherited) > 600  # why getrusage is not asked
