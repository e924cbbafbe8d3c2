"""estimate: what a training will take, from a few micro-batches of it, or of the same shape with fewer layers."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from alignlab.adapters.placing import Places
from alignlab.backbones import PARTS, open_backbone
from alignlab.backbones.depth import depths, has_weights, shallow
from alignlab.batch import Example
from alignlab.data.base import AlignmentData
from alignlab.data.order import ShuffledBatches
from alignlab.experiment.config import Experiment
from alignlab.experiment.course import Course, course_of
from alignlab.experiment.extrapolating import few_layers, straight_line
from alignlab.experiment.makeup import Makeup, made_of
from alignlab.experiment.parameters import Parameters, parameters_of
from alignlab.experiment.probing import Probe, probe, step_seconds
from alignlab.experiment.training import device_of
from alignlab.experiment.units import duration, size
from alignlab.modules.parted import Part
from alignlab.objectives import Cached, Contrastive, FrozenCopy, Objective

ROOM = 0.6
"""The share of the memory at hand that weights, gradients and optimizer may fill for the whole model to be tried."""

PATIENCE = 300.0
"""Seconds of one shape of few layers after which no other is tried."""

CHUNKS = 2
"""Chunks that are tried of a batch that is computed in more of them."""

ROWS = 16
"""Samples of such a batch that are tried at most."""

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits: its own, 8 bits of scale a block of 64, and 32 bits a block of 256 of those."""


@dataclass(frozen=True)
class Memory:
    """Bytes in one process.

    Args:
        weights: By type, as ``float32``.
        others: What an objective and its backbone hold beside weights, by what it is.
        activations: Of the largest micro-batch of the sample; None: not known.
    """

    weights: Mapping[str, float]
    others: Mapping[str, float]
    gradients: float
    optimizer: float
    activations: float | None

    @property
    def fixed(self) -> float:
        """What is there whatever the batch."""
        return sum((*self.weights.values(), *self.others.values())) + self.gradients + self.optimizer


@dataclass(frozen=True)
class Estimate:
    """What one stage of an experiment will take.

    Args:
        parameters: None: the objective's constructor reads weights, and there are none.
        probe: Of one micro-batch; None: nothing could be tried.
        notes: How it was found, and what it does not say.
    """

    course: Course
    makeup: Makeup
    parameters: Parameters | None
    memory: Memory
    probe: Probe | None
    device: torch.device
    notes: tuple[str, ...]


def estimate(experiment: Experiment, examples: Sequence[Example], *, in_4_bits: Sequence[Part] = ()) -> Estimate:
    """Estimate an experiment that trains; nothing is written.

    Args:
        experiment: Its backbone's directories exist, with weights or without.
        examples: The training data, in place of what an earlier stage has yet to make of them.
        in_4_bits: Parts whose linear maps will be quantised, which here they are not.
    """
    asked = experiment.backbone
    # Nothing is to be written, and a compiler would take longer than all that is tried.
    experiment = replace(experiment, backbone={**asked, "features": None, "compile": False})
    device = device_of(experiment)
    with torch.device("meta"):
        outline = open_backbone(**_outlined(experiment.backbone))
        full = _on_meta(experiment)
    batch_size, chunk = experiment.data.batch_size, _chunk_of(full)
    tried = batch_size if chunk is None else min(batch_size, CHUNKS * chunk, ROWS)
    makeup = made_of(
        examples,
        _order(experiment.data, len(examples)),
        outline.encoder,
        experiment.requires if full is None else full.requires,  # which may depend on its settings
        batch_size=batch_size,
        tried=tried,
    )
    subject = outline if full is None else full
    found, *notes = _tried(experiment, makeup, subject, device)
    quantized = _quantized(full, in_4_bits)
    memory = _fixed(subject, quantized)
    if found is not None:
        if chunk is not None:
            found = _of_all_chunks(found, batch_size, tried, chunk, memory.gradients)
        # What is computed again in chunks is not kept, and gradients are counted already.
        activations = max(found.activations, found.live - memory.gradients)
        memory = replace(memory, activations=activations * makeup.longest)
    course = course_of(experiment, len(examples))
    return Estimate(
        course=course,
        makeup=makeup,
        parameters=None if full is None else parameters_of(full),
        memory=memory,
        probe=found,
        device=device,
        notes=(
            *notes,
            *_chunked(batch_size, tried),
            *_set_aside(asked),
            *_held_back(full, quantized),
            *_caveats(experiment, course, found, device),
            *_copied(experiment, course, memory),
        ),
    )


def _order(data: AlignmentData, num_examples: int) -> Iterable[list[int]]:
    """The order of training; of what is read of a stream, or stands in for data that are not there, a shuffled one."""
    if data.stream() is None and len(data.examples("train")) == num_examples:
        return data.batch_order(0, 1)
    who, batch_size = type(data).__name__, max(min(data.batch_size, num_examples), 1)
    return ShuffledBatches(num_examples, batch_size, seed=data.order_seed, rank=0, processes=1, who=who)


def _chunk_of(objective: Objective | None) -> int | None:
    """Samples that are computed at a time; None: all."""
    parts = () if objective is None else objective.modules()
    sizes = [each.chunk_size for each in parts if isinstance(each, Contrastive) and each.chunk_size is not None]
    return max(sizes, default=None)


def _of_all_chunks(found: Probe, batch_size: int, tried: int, chunk: int, gradients: float) -> Probe:
    """A whole batch of which a few samples were tried; what lives at a time, beside gradients, is one chunk's."""
    all_of, one_of = batch_size / tried, min(chunk, batch_size) / min(chunk, tried)
    return replace(
        found,
        seconds=found.seconds * all_of,
        flops=found.flops * all_of,
        activations=found.activations * all_of,
        live=gradients + max(found.live - gradients, 0.0) * one_of,
    )


def _chunked(batch_size: int, tried: int) -> Iterator[str]:
    if tried < batch_size:
        yield (
            f"chunk_size: {tried} of the {batch_size:,} samples of a micro-batch were tried; time, FLOPs and memory "
            "are in proportion to samples, and what compares all of them with all is left out"
        )


def _outlined(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "fresh": PARTS, "take": None}


def _on_meta(experiment: Experiment) -> Objective | None:
    try:
        return replace(experiment, backbone=_outlined(experiment.backbone)).assemble()
    except (NotImplementedError, RuntimeError):
        return None  # its constructor reads weights


def _fixed(subject: nn.Module, quantized: Set[int] = frozenset()) -> Memory:
    """What is there whatever the batch, by the types on the meta device; the optimizer is AdamW, with two averages."""
    weights: dict[str, float] = {}
    gradients = 0.0
    for parameter in subject.parameters():
        num_bytes = parameter.numel() * parameter.element_size()
        kind = str(parameter.dtype).removeprefix("torch.")
        if id(parameter) in quantized:
            kind, num_bytes = "4 bits", parameter.numel() * NF4
        weights[kind] = weights.get(kind, 0.0) + num_bytes
        gradients += num_bytes if parameter.requires_grad else 0.0
    copies = [kept for each in subject.modules() if isinstance(each, FrozenCopy) for _, kept in each.kept]
    others = {"the reference's copies": _size(copies), "buffers": _size(subject.buffers())}
    others = {what: num_bytes for what, num_bytes in others.items() if num_bytes}
    return Memory(weights, others, gradients, 2 * gradients, None)


def _size(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _tried(
    experiment: Experiment, makeup: Makeup, subject: nn.Module, device: torch.device
) -> tuple[Probe | None, str]:
    """What was measured, and how."""
    here, there = has_weights(experiment.backbone), _fixed(subject).fixed < ROOM * _at_hand(device)
    if here and there:
        found = probe(experiment, experiment.backbone, makeup.typical, steps=True, warm_up=makeup.small)
        return found, "the whole model was tried: one counted micro-batch, then three steps"
    found, note = _extrapolated(experiment, makeup, device)
    return found, f"the model is {'too large for the memory at hand' if here else 'without weights'}, so {note}"


def _quantized(objective: Objective | None, parts: Sequence[Part]) -> set[int]:
    """The weights that QLoRA will keep in 4 bits."""
    if objective is None or not parts:
        return set()
    model = objective.backbone.model
    names = Places(objective.backbone, parts, None, who="QLoRA").names
    modules = [model.get_submodule(name) for name in names]
    return {id(parameter) for module in modules for parameter in module.parameters() if not parameter.requires_grad}


def _extrapolated(experiment: Experiment, makeup: Makeup, device: torch.device) -> tuple[Probe | None, str]:
    """Try the shape with few layers; all is linear in their numbers. None: the numbers are not known."""
    settings = experiment.backbone
    whole = depths(settings["path"], settings["text_tower"])
    if whole is None:
        return None, "nothing was tried: the configs do not say how many layers there are"
    few, probes = few_layers(whole), []
    shown = ", ".join(f"{text}+{vision}" for text, vision in few)
    try:
        for layers in few:
            started = time.perf_counter()
            probes.append(_shallow_probe(experiment, makeup, layers))
            took = time.perf_counter() - started
            if took > PATIENCE and len(probes) < len(few):
                return None, f"its shape was to be tried with few layers, which took {duration(took)} for one of three"
    except (RuntimeError, IndexError, KeyError) as error:  # of a family whose configs say more by number
        return None, f"its shape was to be tried with few layers, which failed ({error!r})"
    found, note = straight_line(probes, whole)
    found = replace(found, step_seconds=step_seconds(round(found.trained), device), peak=0.0)
    return found, (
        f"random ones of {shown} layers (language model + vision tower) were tried, and all that is measured is a "
        f"straight line to {whole.text}+{whole.vision}" + ("" if note is None else f"; but {note}")
    )


def _shallow_probe(experiment: Experiment, makeup: Makeup, layers: tuple[int, int]) -> Probe:
    settings = experiment.backbone
    with TemporaryDirectory() as folder:
        names = shallow(
            settings["path"], settings["text_tower"], Path(folder), text_layers=layers[0], vision_layers=layers[1]
        )
        backbone = {**_outlined(settings), **names}
        return probe(experiment, backbone, makeup.typical, steps=False, warm_up=makeup.small)


def _at_hand(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _set_aside(backbone: Mapping[str, Any]) -> Iterator[str]:
    """Settings that a training heeds, and what was tried does not."""
    if backbone["features"] is not None:
        yield "backbone.features: neither read nor written here; all pictures are computed, as the first time"
    if backbone["compile"]:
        yield "backbone.compile: tried uncompiled; compiled layers are faster, after the time that compiling takes"


def _held_back(objective: Objective | None, quantized: Set[int]) -> Iterator[str]:
    """What a training does that was not tried."""
    if objective is not None and any(isinstance(each, Cached) for each in objective.modules()):
        yield "Cached: the pass over all pairs before the first step, where its file is not there, is not counted"
    if quantized:
        yield f"weights in 4 bits are predicted at {NF4:.3f} bytes each; the time is LoRA's, without unpacking them"


def _caveats(experiment: Experiment, course: Course, found: Probe | None, device: torch.device) -> Iterator[str]:
    if found is not None and device.type != "cuda":
        yield "activations are what is kept for the backward pass; what is made and freed on the way comes on top"
    if course.processes > 1 or experiment.trainer["strategy"] != "auto":
        yield (
            "tried in one process: the memory is that of a device with the whole model, as each is with ddp; with "
            f"fsdp2 each has about 1/{course.processes} of weights, gradients and optimizer"
        )


def _copied(experiment: Experiment, course: Course, memory: Memory) -> Iterator[str]:
    strategy = experiment.trainer["strategy"]
    if course.processes > 1 and (strategy == "auto" or str(strategy).startswith("ddp")):
        yield f"ddp keeps one more copy of the trained gradients, to send them: {size(memory.gradients)} on top"
