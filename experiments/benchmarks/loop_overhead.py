"""loop_overhead: what the training loop and 20 reported metrics cost, on a model so small that little else costs.

    python experiments/benchmarks/loop_overhead.py --json overhead.json

Five loops run the same computation on the same batches (three linear layers of width 64, 32 rows; AdamW, clipping,
schedule): plain PyTorch; Lightning without any logging; alignlab reporting 20 metrics every step, with the loggers
and callbacks that ``alignlab fit`` has; the same reporting 1 metric; and Lightning with ``self.log`` of 20 metrics.
All compute the 20 metrics. Blocks of steps alternate between the loops; the first steps of a block are not counted;
microseconds a step are the block's median.
"""

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from timing import finish, machine, options, ratio, show_ratio
from torch import Tensor, nn

from alignlab.batch import Batch, Example, Tokens
from alignlab.data import AlignmentData
from alignlab.experiment import record
from alignlab.objectives import Loss, Objective, Optimization

TARGET = 1.25
METRICS, WIDTH, ROWS = 20, 64, 32
LR, CLIP = 1e-3, 1.0
Clock = Callable[[], None]


class Network(nn.Sequential):
    """The model of all loops."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, METRICS)
        )


def loss_and_metrics(network: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    output = network(x)
    means = output.detach().mean(0).unbind()
    return output.square().mean(), {f"metric_{index}": value for index, value in enumerate(means)}


class StandIn(nn.Module):
    """As much of a Backbone as the base class of objectives asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()
        self.encoder = self

    def batch(self, examples: list[Example], sequences: tuple[str, ...]) -> Batch:
        raise NotImplementedError("the batches are encoded already")

    def part_of(self) -> Iterator[tuple[nn.Parameter, str]]:
        return ((parameter, "language_model") for parameter in self.network.parameters())


class Reporting(Objective):
    """An objective that reports some of the metrics."""

    requires = ("conversation",)

    def __init__(self, backbone: Any, *, num_metrics: int) -> None:
        super().__init__(backbone)
        self.num_metrics = num_metrics
        self.optimization = Optimization(lr=LR)

    def loss(self, batch: Batch) -> Loss:
        mean, metrics = loss_and_metrics(self.backbone.network, batch.conversation.vision["x"])
        return Loss(mean, len(batch), dict(list(metrics.items())[: self.num_metrics]))


class Encoded(AlignmentData):
    """Batches that are there already."""

    supplies = ("conversation",)

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__(batch_size=ROWS)
        self.batches = [_batch(x) for x in inputs]

    def examples(self, split: str) -> list[Example]:
        return []

    def train_dataloader(self) -> list[Batch]:
        return self.batches

    def val_dataloader(self) -> list[Batch]:
        return []


def _batch(x: Tensor) -> Batch:
    ids = torch.zeros(ROWS, 1, dtype=torch.long)
    tokens = Tokens(ids, ids + 1, ids, ids == 1, {"x": x}, ids[:, 0])
    return Batch(tuple(map(str, range(ROWS))), conversation=tokens)


class Bare(LightningModule):
    """The same computation in Lightning."""

    def __init__(self, *, log: bool, num_steps: int) -> None:
        super().__init__()
        self.network, self.log_metrics, self.num_steps = Network(), log, num_steps

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss, metrics = loss_and_metrics(self.network, batch)
        if self.log_metrics:
            for name, value in metrics.items():
                self.log(name, value, batch_size=ROWS)
        return loss

    def configure_optimizers(self) -> dict:
        optimizer, schedule = optimizer_and_schedule(self.network, self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def optimizer_and_schedule(network: nn.Module, num_steps: int) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0, foreach=True)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)


class Tick(Callback):
    """Notes when each step ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock()


def plain(inputs: list[Tensor], folder: Path, clock: Clock, *, log_every: int) -> None:
    network = Network()
    optimizer, schedule = optimizer_and_schedule(network, len(inputs))
    for x in inputs:
        loss, _ = loss_and_metrics(network, x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        clock()


def bare(inputs: list[Tensor], folder: Path, clock: Clock, *, log_every: int, log: bool) -> None:
    logger = record.CurveLogger(folder / "bare.jsonl") if log else False
    trainer = _trainer(len(inputs), logger, [Tick(clock)], log_every)
    trainer.fit(Bare(log=log, num_steps=len(inputs)), train_dataloaders=inputs)


def ours(inputs: list[Tensor], folder: Path, clock: Clock, *, log_every: int, num_metrics: int) -> None:
    logger = record.CurveLogger(folder / "ours.jsonl")
    trainer = _trainer(len(inputs), logger, [record.Consumption(), Tick(clock)], log_every)
    trainer.fit(Reporting(StandIn(), num_metrics=num_metrics), datamodule=Encoded(inputs))


def _trainer(num_steps: int, logger: Any, callbacks: list[Callback], log_every: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=num_steps,
        gradient_clip_val=CLIP,
        logger=logger,
        callbacks=callbacks,
        log_every_n_steps=log_every,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def microseconds(loop: Callable[..., None], inputs: list[Tensor], *, skip: int) -> float:
    """Run a block; median microseconds of a step."""
    times: list[float] = []
    with TemporaryDirectory() as folder:
        seed_everything(0, verbose=False)
        loop(inputs, Path(folder), lambda: times.append(time.perf_counter()))
    # A flush falls on few steps only, so it is the mean that holds it; the median over blocks drops disturbed ones.
    return 1e6 * (times[-1] - times[skip]) / (len(times) - 1 - skip)


def main() -> None:
    parser = options(__doc__, repeats=15)
    parser.add_argument("--steps", type=int, default=350, help="steps of a block")
    parser.add_argument("--skip", type=int, default=50, help="of them not counted")
    arguments = parser.parse_args()
