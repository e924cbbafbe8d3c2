"""probes: what a part of a cell will take, from a few steps of it and one batch of each of its evaluators."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn

from alignlab.backbones.depth import has_weights
from alignlab.errors import NoTokenizer
from alignlab.evaluation import Evaluator
from alignlab.experiment.config import Experiment, instantiate
from alignlab.experiment.dryrun import in_4_bits, prepared
from alignlab.experiment.estimate import Estimate, estimate
from alignlab.experiment.pairs import SPLITS, make_pairs
from alignlab.experiment.stages import named_stages, outlined
from alignlab.experiment.training import device_of, evaluate

AROUND_SECONDS = 2.0
"""What a part takes beside training and evaluation: a process, the model, its files. As measured on the lab."""

FORWARD = 1 / 3
"""The share of forward and backward that forward alone takes, of a validation."""

RECORDS = 130_000
"""Bytes of a run's records, logs and tokenizer, as measured on the lab; with W&B about as many again."""

Source = Literal["finished", "tried", "unknown"]


@dataclass(frozen=True)
class Cost:
    """What a part of a study takes, or several of them; None: not known.

    Args:
        seconds: Of one process.
        size: Bytes on the disk.
        source: Whence: parts like it that are finished, a trial, or nothing.
        whole: Whether nothing is missing from it.
    """

    steps: float | None = None
    samples: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    size: float | None = None
    source: Source = "unknown"
    whole: bool = False


class Probes:
    """Tries parts; an evaluator that judges the same shape twice is tried once."""

    def __init__(self) -> None:
        self._judged: dict[str, tuple[float, float]] = {}

    def __call__(self, config: Mapping[str, Any], name: str | None) -> Cost:
        """Try one part of a resolved config.

        Args:
            name: The stage; None: what comes after all stages.
        """
        stages = config["stages"]
        part = config if name is None else stages[name]
        if part["pairs"] is not None:
            return _pairs(part, stages)
        if part["objective"] is None:
            return Cost()
        experiment, examples, _ = prepared(part, stages)
        bits = in_4_bits(config)["main" if name is None else name]
        try:
            told = estimate(experiment, examples, in_4_bits=bits)
        except NoTokenizer:  # that of an earlier stage, which has none to give yet
            return Cost()
        if told.probe is None or told.course.steps is None:
            return Cost()
        judging = self._judging(part, experiment)
        samples = told.course.batches * told.course.samples / told.course.accumulate
        return Cost(
            steps=told.course.steps,
            samples=samples,
            tokens=samples * told.makeup.tokens,
            seconds=AROUND_SECONDS + _training_seconds(experiment, told) + (judging or (0.0, 0.0))[0],
            size=_size(part, told) + (judging or (0.0, 0.0))[1],
            source="tried",
            whole=judging is not None,
        )

    def _judging(self, part: Mapping[str, Any], experiment: Experiment) -> tuple[float, float] | None:
        """Seconds and bytes of all evaluators of a part; None: some cannot be tried before there are weights."""
        asked = [each for each in part["evaluators"] if not any(named_stages(each))]
        if not part["evaluators"]:
            return 0.0, 0.0
        if len(asked) < len(part["evaluators"]) or not has_weights(experiment.backbone):
            return None
        evaluators = instantiate({**part, "stages": {}, "backbone": dict(experiment.backbone), **_there(part, asked)})
        backbone = experiment.assemble().backbone.eval().to(device_of(experiment))
        shape, seconds, size = _shape(backbone), 0.0, 0.0
        for settings, evaluator in zip(asked, evaluators.evaluators, strict=True):
            if evaluator.data is None and any(named_stages(part["data"])):
                return None
            known = hashlib.sha256(json.dumps([shape, settings, part["data"]], sort_keys=True).encode()).hexdigest()
            if known not in self._judged:
                self._judged[known] = _one_batch(evaluator, replace(experiment, evaluators=(evaluator,)), backbone)
            seconds, size = seconds + self._judged[known][0], size + self._judged[known][1]
        return seconds, size


def _there(part: Mapping[str, Any], evaluators: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What of a part can be made before its earlier stages are done: its evaluators, which have data of their own.

    The part's data, where a stage has yet to make them, are the lab's, which nobody reads.
    """
    data = {"class_path": "Scenes", "init_args": {}} if any(named_stages(part["data"])) else part["data"]
    return {"evaluators": list(evaluators), "data": data}


def _shape(backbone: nn.Module) -> list[Any]:
    """Types and sizes, which decide how long a model takes."""
    return [[type(backbone).__name__], *([name, list(value.shape)] for name, value in backbone.named_parameters())]


def _one_batch(evaluator: Evaluator, experiment: Experiment, backbone: nn.Module) -> tuple[float, float]:
    """Seconds and bytes of an evaluator, in proportion to the examples of one batch; pictures are of the first few."""
    judged = evaluator.judged(experiment.data)
    whole = min(evaluator.num_examples, len(judged.examples(evaluator.split)))
    evaluator.num_examples = tried = min(whole, evaluator.batch_size)
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        evaluate(backbone, experiment, Path(folder), lambda label: None)
        seconds = time.perf_counter() - started
        items, pictures = (folder_size(Path(folder, name)) for name in ("items", "pictures"))
    mirrored = 0.0 if experiment.wandb.mode == "disabled" else pictures
    return seconds * whole / tried, items * whole / tried + pictures + mirrored


def _pairs(part: Mapping[str, Any], stages: Mapping[str, Any]) -> Cost:
    """Of building pairs, from one batch of answers to each split."""
    backbone = outlined(part["backbone"], stages)
    if any(named_stages(part["data"])) or not has_weights(backbone):
        return Cost()
    experiment = instantiate({**part, "stages": {}, "backbone": backbone})
    settings, asked = experiment.pairs, 0
    lengths = [len(experiment.data.examples(split)) for split in SPLITS]
    most = settings.num_examples or max(lengths)
    whole = sum(min(most, length) for length in lengths)
    asked = sum(min(most, length, settings.batch_size) for length in lengths)
    settings = replace(settings, num_examples=min(most, settings.batch_size))
    model = experiment.make_backbone().eval().to(device_of(experiment))
    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        make_pairs(model, experiment.data, settings, Path(folder, "pairs"), provenance={})
        seconds = time.perf_counter() - started
        size = folder_size(Path(folder))
    scale = whole / asked
    seconds = AROUND_SECONDS + seconds * scale
    return Cost(steps=0, samples=0, tokens=0, seconds=seconds, size=size * scale, source="tried", whole=True)


def _training_seconds(experiment: Experiment, told: Estimate) -> float:
    """Of all micro-batches, encoding included, all steps, and the validations between them."""
    course, probe, encoding = told.course, told.probe, told.makeup.encoding
    workers = experiment.data.num_workers
    read = encoding if workers == 0 else max(encoding / workers - probe.seconds, 0.0)
    validating = _validations(experiment, told) * (probe.seconds * FORWARD + encoding / max(workers, 1))
    return course.batches * (probe.seconds + read) + course.steps * probe.step_seconds + validating


def _validations(experiment: Experiment, told: Estimate) -> float:
    """Batches of all validations."""
    settings, course = experiment.trainer, told.course
    limit, every = settings["limit_val_batches"], settings["val_check_interval"]
    batches = math.ceil(course.splits.get("val", 0) / (experiment.data.batch_size * course.processes))
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if isinstance(every, int) and settings["check_val_every_n_epoch"] is None:
        return batches * (course.batches // every)
    epochs = int(course.epochs or 0) // (settings["check_val_every_n_epoch"] or 1)
    if isinstance(every, int):
        return batches * epochs * (course.batches / max(course.epochs or 1, 1) // every)
    return batches * epochs * round(1 / (every or 1.0))


def _size(part: Mapping[str, Any], told: Estimate) -> float:
    """Bytes that training leaves: the backbone, the last checkpoints with the optimizer's averages, records."""
    weights, memory = sum(told.memory.weights.values()), told.memory
    if told.parameters is not None and any(name.startswith("adapters") for name in told.parameters["parts"]):
        weights = memory.gradients  # what does not train stays where it came from
    elif part["save_dtype"] is not None and told.parameters is not None:
        weights = told.parameters["total"] * (4 if part["save_dtype"] == "float32" else 2)
    every = part["checkpoint_every"]
    kept = 1 if every is None else min(math.ceil(told.course.steps / every), 2)
    mirrored = 1 if part["wandb"]["mode"] == "disabled" else 2
    return weights + kept * (memory.gradients + memory.optimizer) + mirrored * RECORDS


def folder_size(folder: Path) -> float:
    """Bytes of all files below a folder, but for those of runs in it."""
    return float(sum(file.stat().st_size for file in _files(folder)))


def _files(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir() and not entry.is_symlink() and not (entry / "config.yaml").is_file():
            yield from _files(entry)
        elif entry.is_file() and not entry.is_symlink():
            yield entry
