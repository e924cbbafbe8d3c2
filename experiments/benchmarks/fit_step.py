"""fit_step: one step of ``alignlab fit`` with MLE against a hand-written PyTorch loop over the same model.

    python experiments/benchmarks/fit_step.py --json fit_step.json

Both start from scenes-parts and train all of it on the same batches, made by the same encoder in the same order, with
the same AdamW, clipping and schedule; no validation, checkpoint or evaluation falls within. alignlab's side is the
whole of ``alignlab.experiment.run.run``, its metrics, curve file and callbacks included. After each of its steps, the
hand-written loop makes one of its own in the same process, so both meet the same weather. First the losses of all
steps must agree to 1e-5. A repeat starts both anew, leaves out its first steps, and gives the ratio of the mean times.
The terminal's progress bar is not part of it.

Measured (2 shared cores, 1 thread, Linux, Python 3.11.7, torch 2.13.0+cpu, transformers 5.23.0, lightning 2.6.6; load
1.0); batch 8 with ``--batch-size 8``; median of 20-step means, the ratio with its 95 % interval, target <= 1.05:

    batch  batches                alignlab  handwritten  ratio
    64     encoded in the loop    238.3 ms      240.8 ms  0.996 [0.981, 1.022]  met; 9 repeats, losses agree to 1.8e-07
    64     encoded beforehand     181.7 ms      183.6 ms  0.987 [0.982, 0.990]  met
    8      encoded in the loop     41.7 ms       40.3 ms  1.039 [1.018, 1.044]  met; 9 repeats
    8      encoded beforehand      34.2 ms       32.9 ms  1.042 [1.038, 1.054]  met, interval past it
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import finish, machine, options, quiet, ratio, show_ratio
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText

from alignlab.backbones import Encoder, locate
from alignlab.batch import Batch
from alignlab.data import Scenes
from alignlab.experiment.config import resolve
from alignlab.experiment.run import run
from alignlab.experiment.training import Progress

TARGET, TOLERANCE = 1.05, 1e-5
START = "scenes-parts"
LR, WARMUP, CLIP = 1e-3, 4, 1.0


class EncodedScenes(Scenes):
    """Scenes whose training batches are encoded before the first step."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(super().train_dataloader()), batch_size=None)


def handwritten(batches: Iterable[Batch], num_steps: int) -> Iterator[Tensor]:
    """Train without alignlab's objective and without Lightning; yields each step's loss."""
    model = AutoModelForImageTextToText.from_pretrained(locate(START), dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_and_cosine(step, num_steps))
    for batch in batches:
        chat = batch.conversation
        loss = model(
            input_ids=chat.input_ids,
            attention_mask=chat.attention_mask,
            pixel_values=chat.vision["pixel_values"],
            labels=chat.labels,
            use_cache=False,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        yield loss.detach()


def warmup_and_cosine(step: int, num_steps: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return (1 + math.cos(math.pi * min(1.0, (step - WARMUP) / (num_steps - WARMUP)))) / 2


class Alternate:
    """Told of every step of alignlab, makes one of the other loop, and times both."""

    def __init__(self, other: Iterator[Tensor]) -> None:
        self.other = other
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.losses: list[Tensor] = []
        self.since = time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        if progress.stage != "fit":
            return
        between = time.perf_counter()
        self.losses.append(next(self.other))
        end = time.perf_counter()
        self.ours.append(between - self.since)
        self.theirs.append(end - between)
        self.since = end


def train_both(
    folder: Path, *, data: type[Scenes], num_steps: int, batch_size: int, log_every: int
) -> tuple[Alternate, Path]:
    """Run both loops, a step each in turn; gives back the times and alignlab's curve."""
    size = {"num_train": num_steps * batch_size, "batch_size": batch_size}
    config = {
        "objective": "MLE",
        "backbone": {"path": START},
        "data": {"class_path": f"{data.__module__}.{data.__name__}", "init_args": size},
        "optimization": {"lr": LR, "warmup_steps": WARMUP},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": num_steps,
            "gradient_clip_val": CLIP,
            "log_every_n_steps": log_every,
            "limit_val_batches": 0,
        },
        "wandb": {"mode": "disabled"},
        "checkpoint_every": 10**6,
    }
    alternate = Alternate(handwritten(batches_of(data(**size)), num_steps))
    run(resolve(config), folder, on_progress=alternate)
    return alternate, folder / "curve.jsonl"


def batches_of(data: Scenes) -> DataLoader:
    encoder = Encoder.load(START)
    data.connect(lambda examples: encoder.batch(examples, ("conversation",)))
    return data.train_dataloader()


def check_losses(batch_size: int, num_steps: int) -> float:
    """The largest difference between the two losses of any step.

    Raises:
        SystemExit: The loops do not compute the same, so comparing their times would mean nothing.
    """
    with TemporaryDirectory() as folder:
        both, curve = train_both(
            Path(folder) / "run", data=Scenes, num_steps=num_steps, batch_size=batch_size, log_every=1
        )
        logged = [json.loads(line)["train/loss"] for line in curve.read_text().splitlines()]
    difference = max(abs(ours - theirs.item()) for ours, theirs in zip(logged, both.losses, strict=True))
    if difference > TOLERANCE:
        raise SystemExit(f"the losses differ by {difference:.1e}, more than {TOLERANCE}")
    return difference


def measure(data: type[Scenes], *, repeats: int, steps: int, skip: int, batch_size: int) -> dict[str, list[float]]:
    """Mean milliseconds a step of each repeat, of both loops."""
    times: dict[str, list[float]] = {"alignlab": [], "handwritten": []}
    for _ in range(repeats):
        with TemporaryDirectory() as folder:
            both, _ = train_both(
                Path(folder) / "run", data=data, num_steps=steps + skip, batch_size=batch_size, log_every=10
            )
        times["alignlab"].append(1e3 * mean(both.ours[skip:]))
        times["handwritten"].append(1e3 * mean(both.theirs[skip:]))
    return times


def main() -> None:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--steps", type=int, default=20, help="counted steps of a repeat")
    parser.add_argument("--skip", type=int, default=5, help="steps before them that are not counted")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    quiet()
    difference = check_losses(arguments.batch_size, arguments.steps + arguments.skip)
    print(f"losses agree to {difference:.1e} over {arguments.steps + arguments.skip} steps")
    result: dict[str, Any] = {
        "machine": machine() | {"threads": arguments.threads},
        "batch_size": arguments.batch_size,
        "loss_difference": difference,
    }
    variants = {"with data loading": Scenes, "batches encoded beforehand": EncodedScenes}
    for name, data in variants.items():
        times = measure(
            data, repeats=arguments.repeats, steps=arguments.steps, skip=arguments.skip, batch_size=arguments.batch_size
        )
        result[name] = {"milliseconds": times, "ratio": ratio(times["alignlab"], times["handwritten"])}
        print(f"{name}, milliseconds a step: " + ", ".join(f"{key} {median(ms):.1f}" for key, ms in times.items()))
        show_ratio(f"{name}, ratio", result[name]["ratio"], TARGET)
    finish(result, arguments.json)


if __name__ == "__main__":
    main()
