"""What ``--dry-run`` prints and leaves alone, and that a training's speed is counted without changing it."""

import gc
import random
from dataclasses import replace

import numpy
import pytest
import torch
from families import CONFIGS
from test_estimate import DATA, experiment_of, shape
from torch.utils.flop_counter import FlopCounterMode

from alignlab.backbones.depth import Depths, depths, has_weights, shallow
from alignlab.cli import main
from alignlab.experiment.config import resolve
from alignlab.experiment.dryrun import dry_run
from alignlab.experiment.estimate import NF4, estimate
from alignlab.experiment.fitting import fit
from alignlab.experiment.probing import LiveBytes
from alignlab.experiment.run import run
from alignlab.experiment.throughput import PEAKS, FlopCount, Pace, in_words
from alignlab.experiment.units import scaled

QLORA = {"class_path": "QLoRA", "init_args": {"rank": 2}}


def config_of(path, **changes):
    trainer = {"max_steps": 6, "accelerator": "cpu", "log_every_n_steps": 1, "limit_val_batches": 1}
    config = {"objective": "MLE", "backbone": {"path": str(path)}, "data": DATA, "trainer": trainer}
    return resolve({**config, "evaluators": [], "wandb": {"mode": "disabled"}, **changes})


def test_a_dry_run_writes_nothing_and_draws_no_random_number(tiny_path, tmp_path, monkeypatch, write, capsys):
    file = write(
        f"objective: MLE\nbackbone: {{path: {tiny_path}, features: kept}}\ndata: Scenes\ntrainer: {{max_steps: 4}}\n"
        "adapter: {class_path: Full, init_args: {parts: [projector]}}\n"
    )
    monkeypatch.chdir(tmp_path)
    states = torch.get_rng_state(), numpy.random.get_state()[1].copy(), random.getstate()
    options = [
        "--dry-run",
        "--data.num_train",
        "80",
        "--data.batch_size",
        "8",
        "--trainer.accumulate_grad_batches",
        "2",
    ]
    assert main(["fit", "--config", str(file), *options]) == 0
    assert torch.equal(states[0], torch.get_rng_state()) and states[2] == random.getstate()
    assert (states[1] == numpy.random.get_state()[1]).all()
    assert list(tmp_path.iterdir()) == [file]
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "neither read nor written here; all pictures are computed" in said
    for fragment in (
        "train 80, val 512", "16 = 1 process(es) x 2 micro-batch(es) x 8", "steps, epochs 4, 0.80",
        "the whole model was tried", "MFU not known of this device", "trained weights, of all weights",
    ):  # fmt: skip
        assert fragment in said


def test_a_stage_whose_pairs_are_not_there_is_tried_with_the_data_s_own_answers(tiny_path, capsys):
    pairs = {"data": DATA, "pairs": {"num_examples": 24, "max_new_tokens": 4}}
    config = config_of(
        tiny_path,
        stages={"pairs": pairs},
        objective="SeVa",
        data={"class_path": "Preferences", "init_args": {"path": "stage:pairs", "batch_size": 4}},
    )
    told = dry_run(config)
    assert list(told) == ["main"] and told["main"].course.splits["train"] == 24
    conversation, rejected = told["main"].makeup.rows
    assert conversation.supervised == rejected.supervised and len(told["main"].makeup.typical) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert "It builds pairs" in said and "answers of the data they will be made of stand in" in said


def test_a_stage_that_needs_an_earlier_one_s_visual_tokenizer_is_told_of_by_a_line(tiny_path, capsys):
    codes = {"class_path": "VectorQuantizer", "init_args": {"num_codes": 8}}
    objective = {"class_path": "LaVITTokenizer", "init_args": {"quantizer": codes}}
    first = {"objective": objective, "backbone": {"path": str(tiny_path)}, "adapter": None}
    data = {**DATA, "init_args": {**DATA["init_args"], "instructions": False}}
    told = dry_run(config_of("stage:tokenizer", stages={"tokenizer": first}, objective="LaVIT", data=data))
    assert list(told) == ["tokenizer"]
    assert "It needs the visual tokenizer of an earlier stage" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_leaves_the_folders_of_features_and_cached_references_alone(tiny_path, tmp_path, capsys):
    reference = {"class_path": "Cached", "init_args": {"folder": str(tmp_path / "references")}}
    config = config_of(
        tiny_path,
        stages={"pairs": {"data": DATA, "pairs": {"num_examples": 24, "max_new_tokens": 4}}},
        objective={"class_path": "SeVa", "init_args": {"reference": reference}},
        backbone={"path": str(tiny_path), "features": str(tmp_path / "features")},
        adapter={"class_path": "Full", "init_args": {"parts": ["projector"]}},
        data={"class_path": "Preferences", "init_args": {"path": "stage:pairs", "batch_size": 4}},
        trainer={"max_steps": 4, "accelerator": "cpu", "devices": 2, "strategy": "fsdp2"},
    )
    told = dry_run(config)["main"]
    gc.collect()  # features that wait would be written as their backbone goes
    assert not list(tmp_path.iterdir())
    assert told.probe.flops > 0 and "the reference's copies" not in told.memory.others
    said = " ".join(capsys.readouterr().out.split())
    for note in ("backbone.features: neither read nor written", "the pass over all pairs", "each has about 1/2 of"):
        assert note in said


ALL = {"class_path": "Full", "init_args": {"parts": ["vision_tower", "projector", "language_model"]}}
BESIDE = {"class_path": "LoRA", "init_args": {"rank": 2, "train": ["projector"]}}


@pytest.mark.parametrize(("adapter", "copied"), [(ALL, "total"), (BESIDE, "projector")])
def test_memory_counts_a_reference_s_copies_and_buffers(tiny_path, adapter, copied):
    experiment = experiment_of(tiny_path, objective="SeVa", adapter=adapter)
    examples = experiment.data.filled("train")
    experiment.data.supplies = (*experiment.data.supplies, "rejected")
    told = estimate(experiment, [replace(examples[index], rejected=("a circle .",)) for index in range(16)])
    objective = experiment.assemble()
    copies = sum(kept.nbytes for _, kept in objective.reference.kept)
    buffers = sum(buffer.nbytes for buffer in objective.buffers())
    assert told.memory.others == {"the reference's copies": copies, "buffers": buffers}
    count = told.parameters["total"] if copied == "total" else told.parameters["parts"][copied]["total"]
    assert copies == 4 * count and buffers > 0
    assert told.memory.fixed == sum(told.memory.weights.values()) + copies + buffers + 12 * told.parameters["trained"]


def test_4_bits_are_predicted_where_nothing_can_be_quantised(tmp_path):
    path = shape(tmp_path, text=2, vision=2)
    told = dry_run(config_of(path, adapter=QLORA))["main"]
    text = told.parameters["parts"]["language_model"]["total"]
    linear = 2 * (4 * 64 * 64 + 3 * 64 * 160)
    assert told.memory.weights["4 bits"] == pytest.approx(linear * NF4)
    everything = sum(count["total"] for count in told.parameters["parts"].values())
    assert told.memory.weights["float32"] == 4 * (everything - linear) and text > linear
    trained = told.parameters["trained"]
    assert (told.memory.gradients, told.memory.optimizer) == (4 * trained, 8 * trained)


def test_makeup_counts_every_token_once(tiny_path):
    experiment = experiment_of(tiny_path)
    examples = experiment.data.filled("train")
    told = estimate(experiment, examples)
    encoder = experiment.assemble().backbone.encoder
    # 80 examples, of which 64 are looked at: the first 8 batches of training
    some = [examples[index] for batch in list(experiment.data.batch_order(0, 1))[:8] for index in batch]
    tokens = [encoder.batch([each], ("conversation",)).conversation for each in some]
    lengths, supervised = ([int(value) for value in values] for values in zip(*map(_counts, tokens), strict=True))
    (row,) = told.makeup.rows
    assert row.visual == (36, 36) and row.text == (sum(lengths) / 64 - 36, max(lengths) - 36)
    assert row.supervised == (sum(supervised) / 64, max(supervised))
    padded = sum(8 * max(lengths[start : start + 8]) for start in range(0, 64, 8))
    assert row.padding == pytest.approx(1 - sum(lengths) / padded)


def _counts(tokens):
    return tokens.attention_mask.sum(), (tokens.labels != -100).sum()


def test_chunks_keep_little_and_are_counted_by_what_lives_at_a_time(tiny_path):
    found = {}
    for chunk in (None, 2):
        experiment = experiment_of(tiny_path, objective={"class_path": "InfoNCE", "init_args": {"chunk_size": chunk}})
        found[chunk] = estimate(experiment, experiment.data.filled("train"))
    whole, chunked = found[None], found[2]
    assert chunked.probe.activations < 0.02 * whole.probe.activations
    assert 0.1 * whole.memory.activations < chunked.memory.activations < 0.6 * whole.memory.activations


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_layers_are_found_in_every_family_s_config(family, tmp_path):
    CONFIGS[family]().save_pretrained(tmp_path)
    found = depths(str(tmp_path))
    assert found.text == 2 and found.vision == (1 if family == "Qwen2-VL" else 2)
    assert found.least_vision == 1  # Qwen3-VL reads the first of its layers beside the last


def test_named_layers_stay_and_a_text_tower_has_its_own_depth(tmp_path):
    path = shape(tmp_path / "a", text=6, vision=4, feature_layer=-2)
    assert depths(str(path)) == Depths(text=6, vision=4, least_vision=2)
    other = shape(tmp_path / "b", text=5, vision=3)
    assert depths(str(path), str(other)) == Depths(text=5, vision=4, least_vision=2)
    names = shallow(str(path), str(other), tmp_path / "few", text_layers=2, vision_layers=3)
    assert depths(**names) == Depths(text=2, vision=3, least_vision=2)
    assert not has_weights(names) and has_weights({"path": "scenes-parts", "text_tower": None})


def test_operations_are_torch_s_count_and_those_of_attention_on_cpus():
    x, weight = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    with FlopCount() as ours, FlopCounterMode(display=False) as theirs:
        (x @ weight).sum().backward()
    assert ours.total == theirs.get_total_flops() == 3 * 2 * 5 * 7 * 3
    assert ours.backward == 2 * 2 * 5 * 7 * 3
    query = torch.randn(2, 4, 6, 8)
    with FlopCount() as ours:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert ours.total == 2 * (2 * 2 * 4 * 6 * 6 * 8)  # two products for each of 2 x 4 heads


def test_live_bytes_are_given_back_when_tensors_are_freed():
    with LiveBytes() as live:
        first = torch.zeros(1000)
        view, second = first.view(10, 100), first + 1
        assert live.now == live.most == 8000
        del first, view
        assert live.now == 4000
        second += 1
    assert (live.now, live.most) == (4000, 8000)


def test_pace_changes_no_bit_of_a_training(tiny_path, tmp_path):
    weights = []
    for pace in ((), (Pace(),)):
        torch.manual_seed(0)
        experiment = experiment_of(tiny_path, adapter={"class_path": "LoRA", "init_args": {"rank": 2, "dropout": 0.3}})
        objective = experiment.assemble()
        settings = {**experiment.trainer, "limit_val_batches": 0}
        folder = tmp_path / str(len(pace))
        folder.mkdir()
        fit(objective, experiment.data, settings, folder, callbacks=pace)
        weights.append(objective.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_run_says_how_fast_it_trained_and_invents_no_peak(tiny_path, tmp_path):
    metrics = run(config_of(tiny_path), tmp_path / "run")
    told = metrics["throughput"]
    assert told["samples_per_second"] > 8 / metrics["seconds"]["fit"]
    assert told["tokens_per_second"] == pytest.approx(
        told["samples_per_second"] * metrics["tokens"] / metrics["samples"]
    )
    assert told["mfu"] is told["peak_flops"] is told["peak_source"] is None
    experiment = experiment_of(tiny_path)
    counted = estimate(experiment, experiment.data.filled("train")).probe.flops / 8
    assert told["flops_per_second"] / told["samples_per_second"] == pytest.approx(counted, rel=0.1)
    assert in_words(told).count(",") == 2 and "FLOP/s" in in_words(told)


def test_a_few_steps_are_not_timed(tiny_path, tmp_path):
    metrics = run(config_of(tiny_path, trainer={"max_steps": 3, "accelerator": "cpu"}), tmp_path / "run")
    assert metrics["throughput"]["samples_per_second"] is None and in_words(metrics["throughput"]) == ""


def test_no_device_s_name_hides_a_longer_one():
    names = list(PEAKS)
    assert not [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a in b]
    assert (scaled(989e12), scaled(12.0)) == ("989 T", "12 ")
