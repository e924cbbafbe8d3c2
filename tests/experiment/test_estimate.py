"""What a dry run says, against what is measured of the whole thing."""

import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from drawing_files import encoded

from alignlab.backbones import locate
from alignlab.backbones.depth import Depths
from alignlab.experiment.config import instantiate, resolve
from alignlab.experiment.course import course_of
from alignlab.experiment.estimate import estimate
from alignlab.experiment.extrapolating import straight_line
from alignlab.experiment.makeup import first_batches
from alignlab.experiment.parameters import parameters_of
from alignlab.experiment.probing import Probe, probe
from alignlab.experiment.run import quiet_libraries
from alignlab.experiment.units import count, duration, scaled

DATA = {"class_path": "Scenes", "init_args": {"num_train": 80, "num_val": 8, "num_test": 8, "batch_size": 8}}


def shape(folder: Path, *, text: int, vision: int, feature_layer: int = -1) -> Path:
    """A directory of the lab's shape with so many layers, without weights."""
    from transformers import AutoConfig, AutoProcessor

    config = AutoConfig.from_pretrained(locate("scenes-parts"))
    config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers = text, vision
    config.vision_feature_layer = feature_layer
    config.save_pretrained(folder)
    AutoProcessor.from_pretrained(locate("scenes-parts")).save_pretrained(folder)
    return folder


def experiment_of(path, *, adapter=None, objective="MLE", **changes):
    quiet_libraries()
    config = {"objective": objective, "backbone": {"path": str(path)}, "adapter": adapter, "data": DATA, **changes}
    return instantiate(resolve({"trainer": {"max_steps": 2, "accelerator": "cpu"}, **config}))


ADAPTERS = {
    "everything": None,
    "projector": {"class_path": "Full", "init_args": {"parts": ["projector"]}},
    "branches": {"class_path": "LoRA", "init_args": {"rank": 4, "train": ["projector"]}},
}


@pytest.mark.parametrize(("adapter", "layer"), [("everything", -2), ("projector", -2), ("branches", -1)])
def test_few_layers_tell_of_a_deeper_model_within_two_percent(tmp_path, adapter, layer):
    experiment = experiment_of(shape(tmp_path, text=6, vision=4, feature_layer=layer), adapter=ADAPTERS[adapter])
    told = estimate(experiment, experiment.data.filled("train"))
    fresh = {**experiment.backbone, "fresh": ("vision_tower", "projector", "language_model")}
    whole = probe(experiment, fresh, told.makeup.typical, steps=False)
    assert told.probe.flops == pytest.approx(whole.flops, rel=0.02)
    assert told.probe.activations == pytest.approx(whole.activations, rel=0.02)
    assert (told.probe.parameters, told.probe.trained) == (whole.parameters, whole.trained)
    counts = parameters_of(replace(experiment, backbone=fresh).assemble())
    assert told.parameters == counts and (counts["total"], counts["trained"]) == (whole.parameters, whole.trained)
    assert "straight line to 6+4" in told.notes[0]


def test_an_epoch_of_a_mixture_is_as_long_as_it_says_and_a_stream_has_none(tiny_path, tmp_path):
    sources = {name: {"class_path": "Scenes", "init_args": {"num_train": 16, "num_val": 4}} for name in ("a", "b")}
    mixture = {"class_path": "DataMixture", "init_args": {"sources": sources, "num_samples": 8, "batch_size": 4}}
    course = course_of(experiment_of(tiny_path, data=mixture, trainer={"max_epochs": 2, "accelerator": "cpu"}), 32)
    assert (course.steps, course.epochs, course.splits["train"]) == (4, 2.0, 32)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("0.png", encoded(0)), ("0.txt", b"said")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    shards = {"class_path": "WebDataset", "init_args": {"path": str(tmp_path / "0.tar"), "batch_size": 1}}
    course = course_of(experiment_of(tiny_path, data=shards), 1)
    assert (course.steps, course.epochs) == (2, None) and "train" not in course.splits


@pytest.mark.parametrize(
    ("trainer", "steps", "batches"),
    [
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 6, 20),  # 10 batches are steps of 4, 4 and 2
        ({"max_epochs": 5, "max_steps": 4, "accumulate_grad_batches": 4}, 4, 14),
        ({"max_epochs": 2, "accumulate_grad_batches": 100}, 2, 20),
        ({"max_epochs": 2, "overfit_batches": 3}, 6, 6),
    ],
)
def test_the_last_step_of_an_epoch_has_what_is_left(tiny_path, trainer, steps, batches):
    experiment = experiment_of(tiny_path, trainer={"max_steps": -1, "accelerator": "cpu", **trainer})
    course = course_of(experiment, 80)
    assert (course.steps, course.batches) == (steps, batches)


def probed(*, seconds, flops):
    return Probe(seconds=seconds, step_seconds=0, flops=flops, activations=0, live=0, peak=0, parameters=0, trained=0)


@pytest.mark.parametrize(
    ("seconds", "flops", "expected"),
    [
        ((2.0, 3.0, 2.5), (20, 30, 25), 2 + 9 * 1 + 4 * 0.5),  # on a line: it starts at 0.5 and rises
        ((40.0, 30.0, 50.0), (20, 30, 25), (20 + 9 * 10 + 4 * 5) * 30 / 30),  # falls, as on a busy machine
        ((2.0, 4.5, 2.5), (20, 30, 25), (20 + 9 * 10 + 4 * 5) * 4.5 / 30),  # starts at 2 - 2.5 - 0.5
        ((2.0, 3.0, 1.0), (20, 30, 20), 2 + 9 * 1),  # a vision tower that no batch runs takes no time
    ],
)
def test_predicted_seconds_are_positive_whatever_a_busy_machine_times(seconds, flops, expected):
    probes = [probed(seconds=each, flops=count) for each, count in zip(seconds, flops, strict=True)]
    found, note = straight_line(probes, Depths(text=10, vision=5, least_vision=1))
    assert found.seconds == pytest.approx(expected)
    assert (note is not None) == (seconds[1] in (30.0, 4.5))


def test_the_sample_of_a_mixture_follows_its_weights_and_leaves_its_order_alone(tiny_path):
    sources = {name: {"class_path": "Scenes", "init_args": {"num_train": 40, "num_val": 4}} for name in ("a", "b")}
    settings = {"sources": sources, "weights": {"a": 1.0, "b": 0.0}, "batch_size": 4}
    data = experiment_of(tiny_path, data={"class_path": "DataMixture", "init_args": settings}).data
    examples, order = data.filled("train"), data.batch_order(0, 1)
    drawn = first_batches(examples, order, 4)
    assert len(drawn) == 16 and {example.source for batch in drawn for example in batch} == {"a"}
    assert (order.epoch, order.start) == (0, 0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(999, "16.6 min"), (1.31e7, "152 days"), (0.5, "0.5 s"), (1e-6, "less than 0.001 s"), (7200 * 3, "6 h")],
)
def test_times_are_said_without_exponents(seconds, said):
    assert duration(seconds) == said
    assert (count(1310), count(999_999_999), scaled(999_999)) == ("1,310", "1 G", "1 M")
