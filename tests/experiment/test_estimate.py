"""What a dry run says, against what is measured of the whole thing."""

import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from drawing_files import encoded

from alignlab.backbones import locate
from alignlab.experiment.config import instantiate, resolve
from alignlab.experiment.course import course_of
from alignlab.experiment.estimate import estimate
from alignlab.experiment.parameters import parameters_of
from alignlab.experiment.probing import made, probe
from alignlab.experiment.run import quiet_libraries

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
    counts = parameters_of(made(replace(experiment, backbone=fresh)))
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
