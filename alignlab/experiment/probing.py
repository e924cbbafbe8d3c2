"""probing: a few micro-batches of a training that is thrown away, and what each takes."""

import random
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from alignlab.batch import Batch
from alignlab.experiment.config import Experiment
from alignlab.experiment.parameters import parameters_of
from alignlab.experiment.throughput import FlopCount
from alignlab.objectives import Cached, Free, Objective

STEPS = 3
"""Micro-batches that are timed, after one that is counted; the fastest tells."""

LONG = 10.0
"""Seconds of all micro-batches from which on it is enough: counting is nothing beside them."""

ALONE = {
    "devices": 1, "num_nodes": 1, "strategy": "auto", "max_epochs": 1, "max_steps": -1, "max_time": None,
    "limit_train_batches": None, "limit_val_batches": 0, "num_sanity_val_steps": 0, "val_check_interval": None,
    "check_val_every_n_epoch": 1, "overfit_batches": 0.0, "callbacks": None, "profiler": None,
    "reload_dataloaders_every_n_epochs": 0, "log_every_n_steps": 1000,
}  # fmt: skip
"""Settings of the Trainer that make it one process that only trains; the others are the experiment's."""

NEVER = 10**6
"""Micro-batches of a step, where none is taken."""


@dataclass(frozen=True)
class Probe:
    """What one micro-batch takes.

    Args:
        seconds: Forward and backward.
        step_seconds: The optimizer's step, clipping included.
        flops: Of matrix products, convolutions and attentions, forward and backward.
        activations: Bytes that are kept for the backward pass, without weights.
        live: Most bytes at a time of all that was made meanwhile, gradients included; of what is computed again in the
            backward pass, it alone tells.
        peak: Most bytes allocated on a GPU at any time; 0 on CPUs, where nobody counts.
        parameters: All weights.
        trained: Those that train.
    """

    seconds: float
    step_seconds: float
    flops: float
    activations: float
    live: float
    peak: float
    parameters: float
    trained: float

    def __add__(self, other: "Probe") -> "Probe":
        return Probe(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, factor: float) -> "Probe":
        return Probe(**{f.name: getattr(self, f.name) * factor for f in fields(self)})

    def __sub__(self, other: "Probe") -> "Probe":
        return self + other * -1


def probe(
    experiment: Experiment,
    backbone: Mapping[str, Any],
    batch: Batch,
    *,
    steps: bool,
    count: int = STEPS,
    warm_up: Batch | None = None,
) -> Probe:
    """Train an experiment's objective on one batch, a few times; nothing is written, and no random number is missed.

    What ``Cached`` would compute before the first step is left out.

    Args:
        backbone: Arguments of open_backbone, in place of the experiment's.
        batch: Encoded, of one process and micro-batch.
        steps: Take optimizer steps; else gradients are computed and left.
        count: Micro-batches that are timed; fewer where they are long and there is a warm-up, or no step.
        warm_up: A small batch that comes before all others, neither counted nor timed.
    """
    with _randomness_kept():
        objective = replace(experiment, backbone=backbone).assemble()
        _without_tables(objective)
        counts = parameters_of(objective)
        watch = _Watch(count, warm_ups=int(warm_up is not None), ends_early=warm_up is not None or not steps)
        accumulated = 1 if steps else NEVER
        settings = {**experiment.trainer, **ALONE, "accumulate_grad_batches": accumulated, "callbacks": [watch]}
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        data = experiment.data
        # More than are used, since Lightning takes a step at the end of an epoch.
        batches = [*([] if warm_up is None else [warm_up]), *[batch] * (count + 2)]
        data.train_dataloader = lambda: DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
        try:
            Trainer(**settings, **quiet).fit(objective, datamodule=data)
        except _Enough:
            pass
        finally:
            del data.train_dataloader
        return watch.found(counts["total"], counts["trained"])


def _without_tables(objective: Objective) -> None:
    """Compare with nothing in place of what is computed first and kept in a file, which costs a step as little."""
    for module in objective.modules():
        for name, child in module.named_children():
            if isinstance(child, Cached):
                setattr(module, name, Free())


def step_seconds(num_parameters: int, device: torch.device) -> float:
    """Seconds of AdamW over so many float32 weights, from a step over some of them."""
    some = nn.Parameter(torch.zeros(max(min(num_parameters, 2**23), 1), device=device))
    some.grad = torch.zeros_like(some)
    optimizer = torch.optim.AdamW([some], foreach=True)
    optimizer.step()
    started = _now(device)
    optimizer.step()
    return (_now(device) - started) * num_parameters / len(some)


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, and takes them off again when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {_place(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and _place(made) not in given:
                self._add(made.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place == 0 or place in self._known:
            return

        def forget(reference: weakref.ref) -> None:
            self.now -= size
            del self._known[place]

        self._known[place] = weakref.ref(storage, forget)
        self.now += size
        self.most = max(self.most, self.now)


class _Enough(Exception):
    """Ends a training that has shown what was asked."""


class _Watch(Callback):
    """Counts the first micro-batch after those that warm up, and times the following ones."""

    def __init__(self, count: int, *, warm_ups: int, ends_early: bool) -> None:
        self.count, self.warm_ups, self.ends_early = count, warm_ups, ends_early
        self.micro: list[float] = []
        self.step: list[float] = []
        self.kept: dict[int, int] = {}
        self.counter, self.live = FlopCount(), LiveBytes()
        self._watching = ExitStack()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._weights = {_place(each) for each in (*module.parameters(), *module.buffers())}
        self._number = -self.warm_ups
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self._number == 0:
            self._watching.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))
            self._watching.enter_context(self.counter)
            self._watching.enter_context(self.live)
        self._started = _now(module.device)
        self._computed: float | None = None

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._computed = _now(module.device)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *arguments: Any) -> None:
        now = _now(module.device)
        self._watching.close()
        self._number += 1
        if self._number <= 0:
            return
        computed = now if self._computed is None else self._computed
        self.micro.append(computed - self._started)
        self.step.append(now - computed)
        self.peak = torch.cuda.max_memory_allocated(module.device) if module.device.type == "cuda" else 0
        if self._number > self.count or (self.ends_early and sum(self.micro) > LONG):
            raise _Enough

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._watching.close()

    def found(self, parameters: int, trained: int) -> Probe:
        micro, step = (values[1:] or values for values in (self.micro, self.step))
        return Probe(
            seconds=min(micro),
            step_seconds=min(step),
            flops=self.counter.total,
            activations=sum(self.kept.values()),
            live=self.live.most,
            peak=self.peak,
            parameters=parameters,
            trained=trained,
        )

    def _keep(self, tensor: Tensor) -> Tensor:
        place = _place(tensor)
        if place not in self._weights:  # each storage once, however many views of it are kept
            self.kept[place] = tensor.untyped_storage().nbytes()
        return tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """All generators go on as if nothing had been drawn."""
    python, arrays = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
