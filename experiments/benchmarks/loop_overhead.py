"""loop_overhead: what the training loop and 20 reported metrics cost, on a model so small that little else costs.

    python experiments/benchmarks/loop_overhead.py --json overhead.json

Loops of one computation on the same batches (three linear layers of width 64, 32 rows; AdamW in two groups, clipping,
schedule; every loop computes the 20 metrics): plain PyTorch; Lightning that logs nothing; alignlab reporting 20 metrics
every step, with the curve file and the counter of ``alignlab fit``; and Lightning with ``self.log`` of the 20. Blocks
of steps alternate between the loops, the first steps of a block are not counted, and ratios are taken round by round.

Measured, 41 rounds of 100 counted steps (2 shared cores, 1 thread, Linux, Python 3.11.7, torch 2.13.0+cpu,
lightning 2.6.6; load 1.0); microseconds a step, and times bare Lightning with a 95 % interval:

                                           median  minimum  ratio
    plain PyTorch                             980      856  0.628 [0.623, 0.642]
    Lightning, no logging                    1537     1384
    alignlab, 20 metrics, flush every 50     1940     1663  1.216 [1.210, 1.246]  target <= 1.25: met
    alignlab, 20 metrics, flush every 10     1982     1718  1.257 [1.235, 1.283]  target <= 1.25: missed
    alignlab, 1 metric, flush every 50       1948     1666  1.201 [1.181, 1.233]
    Lightning, self.log of 20 metrics        7325     6075  4.577 [4.489, 4.708]

Before every step was checked to be finite: 1.183 and 1.202.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from timing import finish, machine, options, quiet, ratio, show_ratio
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alignlab.batch import Batch, Example, Tokens
from alignlab.data import AlignmentData
from alignlab.experiment import record
from alignlab.experiment.consumption import Consumption
from alignlab.objectives import Loss, Objective, Optimization

TARGET = 1.25
METRICS, WIDTH, ROWS = 20, 64, 32
LR, DECAY, CLIP = 1e-3, 0.01, 1.0
BARE = "Lightning, no logging"
Clock = Callable[[], None]
Loop = Callable[[list[Tensor], Path, Clock], None]


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

    @property
    def encoder(self) -> "StandIn":
        return self

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
        self.optimization = Optimization(lr=LR, weight_decay=DECAY)

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

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)


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
    """AdamW as alignlab sets it up: matrices decay, vectors do not, so there are two groups."""
    groups = [
        {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, foreach=True)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)


class Tick(Callback):
    """Notes when each step ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock()


def plain(inputs: list[Tensor], folder: Path, clock: Clock) -> None:
    network = Network()
    optimizer, schedule = optimizer_and_schedule(network, len(inputs))
    for x in DataLoader(inputs, batch_size=None):
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
    trainer.fit(Bare(log=log, num_steps=len(inputs)), DataLoader(inputs, batch_size=None))


def ours(inputs: list[Tensor], folder: Path, clock: Clock, *, log_every: int, num_metrics: int) -> None:
    logger = record.CurveLogger(folder / "ours.jsonl")
    trainer = _trainer(len(inputs), logger, [Consumption(), Tick(clock)], log_every)
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


def microseconds(loop: Loop, inputs: list[Tensor], *, skip: int) -> float:
    """Run a block; microseconds of a step, the mean, since flushes fall on few steps."""
    ends: list[float] = []
    with TemporaryDirectory() as folder:
        seed_everything(0, verbose=False)
        loop(inputs, Path(folder), lambda: ends.append(time.perf_counter()))
    return 1e6 * (ends[-1] - ends[skip]) / (len(ends) - 1 - skip)


def main() -> None:
    parser = options(__doc__, repeats=41)
    parser.add_argument("--steps", type=int, default=120, help="steps of a block")
    parser.add_argument("--skip", type=int, default=20, help="of them not counted")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet()
    torch.manual_seed(0)
    inputs = [torch.randn(ROWS, WIDTH) for _ in range(arguments.steps)]
    loops: dict[str, Loop] = {
        "plain PyTorch": plain,
        BARE: partial(bare, log_every=50, log=False),
        "alignlab, 20 metrics, flush every 50": partial(ours, log_every=50, num_metrics=20),
        "alignlab, 20 metrics, flush every 10": partial(ours, log_every=10, num_metrics=20),
        "alignlab, 1 metric, flush every 50": partial(ours, log_every=50, num_metrics=1),
        "Lightning, self.log of 20 metrics": partial(bare, log_every=50, log=True),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(arguments.repeats + 1):
        for name in loops if repeat % 2 else reversed(loops):
            value = microseconds(loops[name], inputs, skip=arguments.skip)
            if repeat:  # the first round warms up
                times[name].append(value)
    ratios = {name: ratio(values, times[BARE]) for name, values in times.items() if name != BARE}
    print("microseconds a step, median and minimum")
    for name, values in times.items():
        print(f"{name:44s} {median(values):7.0f} {min(values):7.0f}")
    print("times bare Lightning, median [95 % interval]")
    for name, value in ratios.items():
        show_ratio(name, value, TARGET if "20 metrics, flush" in name else None)
    described = machine() | {"threads": arguments.threads}
    finish({"machine": described, "microseconds": times, "ratios": ratios}, arguments.json)


if __name__ == "__main__":
    main()
