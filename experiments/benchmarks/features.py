"""Features: a step and a reading with a frozen vision tower's features from disk, against computing them.

    python experiments/benchmarks/features.py --json experiments/benchmarks/results/features.json

A random LLaVA, the language model of 4 layers of width 512, the vision tower of 24 layers of width 256, which makes 576
visual tokens, trains with MLE and AdamW on batches of 2 conversations of about 120 words. Three sides take turns on the
same batches: ``computed``, without a folder; ``kept``, with all features in it, hashes of the pictures and reading
included; ``empty``, with none of them, so that they are computed, hashed and waiting to be written. First the losses,
gradients and features have to be the same bits. On a CPU, times are the one thread's own; reading from a slow disk is
not in them. On a GPU, where pictures go back to the host to be hashed:

    python experiments/benchmarks/features.py --device cuda --dtype bfloat16 --layers 8 --width 4096 --vision-width 1024

Measured, 9 repeats (2 shared cores, 1 thread, Linux, Python 3.11.7, torch 2.13.0+cpu, transformers 5.23.0; load 8 to
14), milliseconds a call; the ratio to ``computed`` with its 95 % interval:

                                    computed    kept  ratio                  empty  ratio
    projector and language model        2409    1668  0.699 [0.683, 0.718]    2386  0.994 [0.986, 1.019]
    projector alone trains              2004    1270  0.631 [0.624, 0.640]    2009  1.003 [0.986, 1.024]
    reading, nothing trains             1349     580  0.430 [0.425, 0.435]    1335  0.992 [0.987, 1.030]

Losses and gradients were the same bits, and features those that a picture has alone. What is gained is the tower's
share of a step, here 0.3 to 0.6; beside a language model of 7 billion weights it is little. No run on a GPU has been
made.
"""

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from cal import PATCH, SIDE, make_batch
from timing import finish, machine, options, quiet, ratio, show_ratio
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from alignlab.backbones import Backbone, locate
from alignlab.batch import Batch
from alignlab.objectives import MLE

SIDES = ("computed", "kept", "empty")
TRAINED = {
    "projector and language model": ("projector", "language_model"),
    "projector alone": ("projector",),
    "reading, nothing trains": (),
}
SHOWN = 4
"""Batches whose features are kept, and that are shown over and over."""


def write_model(folder: Path, settings: Namespace) -> None:
    """Write a random LLaVA of this size for pictures of 336 x 336."""
    start = locate("scenes-parts")
    config = AutoConfig.from_pretrained(start)
    text, vision, width = config.text_config, config.vision_config, settings.width
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = settings.layers, width, 8 * width // 3
    text.vocab_size, text.max_position_embeddings = 4000, 2048
    text.head_dim, text.num_attention_heads, text.num_key_value_heads = 64, width // 64, width // 64
    vision.image_size, vision.patch_size, width = SIDE, PATCH, settings.vision_width
    vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size = settings.vision_layers, width, 4 * width
    vision.num_attention_heads = width // 64
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(start)
    processor.image_processor.size = processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
    processor.save_pretrained(folder)


def other_pictures(batch: Batch, seed: int) -> Batch:
    """The same conversations about other pictures."""
    chat, generator = batch.conversation, torch.Generator().manual_seed(seed)
    pixels = chat.vision["pixel_values"]
    drawn = torch.randn(pixels.shape, generator=generator).to(pixels)
    return replace(batch, conversation=replace(chat, vision={"pixel_values": drawn}))


class Training:
    """A model of its own, trained on what it is given, a step a call; where nothing trains, it reads."""

    def __init__(self, folder: str, features: str | None, trained: tuple[str, ...], settings: Namespace) -> None:
        self.backbone = Backbone(folder, dtype=settings.dtype, features=features).to(settings.device)
        for parameter, part in self.backbone.part_of():
            parameter.requires_grad_(part in trained)
        weights = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        self.objective = MLE(self.backbone)
        self.optimizer = torch.optim.AdamW(weights, lr=1e-5, foreach=True) if weights else None

    def loss(self, batch: Batch) -> Tensor:
        return self.objective.loss(batch).mean

    def __call__(self, batch: Batch) -> None:
        if self.optimizer is None:
            with torch.no_grad():
                self.loss(batch)
            return
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def check(folder: str, features: str, settings: Namespace) -> float:
    """How far a picture's features are at most from those that it has in other company, relative.

    Raises:
        SystemExit: Losses or gradients are not the same bits.
    """
    sides = [Training(folder, each, ("projector",), settings) for each in (None, features, features)]
    batch, found = make_batch(sides[0].backbone), []
    for side in sides:
        loss = side.loss(batch)
        loss.backward()
        gradients = [weight.grad.flatten() for weight in side.backbone.parameters() if weight.grad is not None]
        found.append(torch.cat([loss.detach().flatten(), *gradients]))
        side.backbone.feature_cache and side.backbone.feature_cache.flush()
    if not all(torch.equal(found[0], each) for each in found[1:]):
        raise SystemExit("losses or gradients differ")
    tower, pixels = sides[0].backbone.parts["vision_tower"][0], batch.conversation.vision["pixel_values"]
    with torch.no_grad():
        together, alone = tower(pixels).last_hidden_state[:1], tower(pixels[:1]).last_hidden_state
    return ((together - alone).abs().max() / alone.abs().max()).item()


def compare(
    folder: str, features: Callable[[str], str], trained: tuple[str, ...], settings: Namespace
) -> dict[str, list[float]]:
    """Milliseconds of a call on each side, which take turns in another order each time."""
    folders = {"computed": None, "kept": features("kept"), "empty": features("empty")}
    trainings = {side: Training(folder, folders[side], trained, settings) for side in SIDES}
    start = make_batch(trainings["computed"].backbone)
    shown = [other_pictures(start, seed) for seed in range(SHOWN)]
    for batch in shown:
        trainings["kept"](batch)
    trainings["kept"].backbone.feature_cache.flush()
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(-1, settings.repeats):
        for side in SIDES if repeat % 2 else reversed(SIDES):
            # Pictures that are never shown twice.
            batch = other_pictures(start, 100 + repeat) if side == "empty" else shown[repeat % SHOWN]
            began = now(settings.device)
            trainings[side](batch)
            if repeat >= 0:  # the first round warms up
                found[side].append(1e3 * (now(settings.device) - began))
    return found


def main() -> None:
    parser = options(__doc__, repeats=11)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    sizes = {"layers": 4, "width": 512, "vision-layers": 24, "vision-width": 256}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    result: dict[str, Any] = {"machine": machine() | {"threads": torch.get_num_threads()}}
    result["settings"] = {key: value for key, value in vars(settings).items() if key != "json"}
    with TemporaryDirectory() as place:
        write_model(Path(place) / "model", settings)
        model = str(Path(place) / "model")
        result["in other company"] = check(model, str(Path(place) / "check"), settings)
        print(f"losses and gradients are the same bits; features alone differ by {result['in other company']:.0e}")
        for name, trained in TRAINED.items():
            times = compare(model, lambda side: str(Path(place) / name / side), trained, settings)  # noqa: B023
            print(f"{name}, milliseconds: " + ", ".join(f"{side} {median(each):.0f}" for side, each in times.items()))
            ratios = {side: ratio(times[side], times["computed"]) for side in SIDES[1:]}
            for side, each in ratios.items():
                show_ratio(f"{side} / computed", each)
            result[name] = {"milliseconds": times, "ratios": ratios}
    result["machine"]["load after"] = machine()["load"]
    finish(result, settings.json)


if __name__ == "__main__":
    main()
