"""cal: a step of CAL against one of MLE, and against CAL as its official code computes it, at the make-up of LLaVA-1.5.

    python experiments/benchmarks/cal.py --json cal.json

All train the same random LLaVA (a Llama of 4 layers of width 512, 4,000 words; a frozen vision tower of 4 layers of
width 256 that makes 576 visual tokens) with AdamW on the same batch of 2 conversations of about 120 words, two thirds
of them answers. The official scheme is two passes over whole sequences, which share the picture's features, with the
logits of all positions in float32 (foundation-multimodal-models/CAL). First its loss must agree to 1e-8 with that of
``CAL(pooling="flat")`` in float64, and CAL's with its dense functions. Steps take turns, and on a CPU count the one
thread's own time. Peak memory is that of a process of its own, less what it has after its imports. On a GPU of 80 GiB,
a quarter as deep as a model of 7 billion weights, since three models take turns:

    python experiments/benchmarks/cal.py --device cuda --dtype bfloat16 --layers 8 --width 4096 --words 32000

Measured, 31 repeats (2 shared cores, 1 thread, Linux, Python 3.11.7, torch 2.13.0+cpu, transformers 5.23.0; load 0.8),
milliseconds a step and MiB; the ratio to MLE, of times with its 95 % interval:

                     MLE    CAL   ratio                 target       official  ratio
    time            1753   1834   1.058 [1.024, 1.076]  1.06: met*       2394  1.359 [1.328, 1.379]
    memory in use    529    531   1.003                 1.05: met         563  1.063
    of the process   666    664   0.998                                   685  1.029

*: the interval goes past it. No run on a GPU has been made.
"""

import gc
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import finish, machine, options, peak, quiet, ratio, show_ratio
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.llava import modeling_llava  # noqa: F401  # loaded late by itself, so in the peak

from alignlab.backbones import Backbone, locate
from alignlab.backbones.tiny import make_exact
from alignlab.batch import IGNORE, Batch, Tokens
from alignlab.functional import logit_gain, supervised, upcast, visual_weights, weighted_nll
from alignlab.objectives import CAL, MLE

TARGET_TIME, TARGET_MEMORY, TOLERANCE = 1.06, 1.05, 1e-8
SIDE, PATCH = 336, 14
TEXTS = (128, 112)
"""Words of each conversation beside the picture, of which two thirds are answered."""

Loss = Callable[[Batch], Tensor]


def likelihood(backbone: Backbone) -> Loss:
    objective = MLE(backbone)
    return lambda batch: objective.loss(batch).mean


def cal(backbone: Backbone) -> Loss:
    objective = CAL(backbone)
    return lambda batch: objective.loss(batch).mean


def official(backbone: Backbone, *, pooling: str = "flat") -> Loss:
    def loss(batch: Batch) -> Tensor:
        chat = batch.conversation
        features = backbone.features(chat)
        with torch.no_grad():
            blind = upcast(backbone(backbone.without_images(chat, features=features, whole=True)).logits)
        logits = upcast(backbone(chat, features=features).logits)
        weights = visual_weights(logit_gain(logits, blind, chat.labels), supervised(chat.labels), pooling=pooling)
        return weighted_nll(logits, chat.labels, weights)

    return loss


SIDES = {"MLE": likelihood, "CAL": cal, "official": official}


def write_model(folder: Path, layers: int, width: int, words: int) -> None:
    """Write a random LLaVA of this size for pictures of 336 x 336."""
    start = locate("scenes-parts")
    config = AutoConfig.from_pretrained(start)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = layers, width, 8 * width // 3
    text.vocab_size, text.max_position_embeddings = words, 2048
    text.head_dim, text.num_attention_heads, text.num_key_value_heads = 64, width // 64, width // 64
    vision.image_size, vision.patch_size = SIDE, PATCH
    vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size = 4, 256, 1024
    vision.num_attention_heads = 4
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(start).save_pretrained(folder)


def make_batch(backbone: Backbone) -> Batch:
    """Conversations with a picture between the first words and the question."""
    generator = torch.Generator().manual_seed(0)
    image, num_patches, pad = backbone.encoder.image_token_id, (SIDE // PATCH) ** 2, backbone.encoder.pad_id
    ids = torch.randint(10, 190, (len(TEXTS), max(TEXTS)), generator=generator)
    shown = torch.full((len(TEXTS), num_patches), image)
    input_ids = torch.cat([ids[:, :4], shown, ids[:, 4:]], 1)
    place = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    lengths = num_patches + torch.tensor(TEXTS)[:, None]
    mask = place < lengths
    answered = mask & (place >= lengths - 2 * torch.tensor(TEXTS)[:, None] // 3)
    pixels = torch.randn(len(TEXTS), 3, SIDE, SIDE, generator=generator)
    chat = Tokens(
        input_ids=input_ids.masked_fill(~mask, pad),
        attention_mask=mask.long(),
        labels=input_ids.masked_fill(~answered, IGNORE),
        image_mask=input_ids == image,
        vision={"pixel_values": pixels.to(backbone.model.dtype)},
        num_images=torch.ones(len(TEXTS), dtype=torch.long),
    )
    return Batch(tuple(map(str, range(len(TEXTS)))), conversation=chat).to(backbone.device)


def check(folder: str) -> dict[str, float]:
    """How far CAL is from what it should compute in float64, relative.

    Raises:
        SystemExit: So far that comparing times would mean nothing.
    """
    backbone = Backbone(folder, dtype="float64").eval()
    make_exact(backbone.model)
    torch.nn.init.normal_(backbone.model.lm_head.weight, std=1.0)  # so that gains reach the bounds
    batch = make_batch(backbone)
    with torch.no_grad():
        pairs = {
            "CAL": (cal(backbone)(batch), official(backbone, pooling="masked")(batch)),
            "official": (CAL(backbone, pooling="flat").loss(batch).mean, official(backbone)(batch)),
        }
    # weighted_nll adds 1e-6 to the sum of some hundred weights.
    found = {name: ((one - other).abs() / other).item() for name, (one, other) in pairs.items()}
    if max(found.values()) > TOLERANCE:
        raise SystemExit(f"losses differ by more than {TOLERANCE}: {found}")
    return found


class Training:
    """A model of its own, trained on one batch, a step a call."""

    def __init__(self, folder: str, side: str, settings: Namespace) -> None:
        self.backbone = Backbone(folder, dtype=settings.dtype).to(settings.device)
        for parameter, part in self.backbone.part_of():
            parameter.requires_grad_(part != "vision_tower")
        self.loss = SIDES[side](self.backbone)
        trained = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, foreach=True)

    def __call__(self, batch: Batch) -> None:
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def seconds(device: str) -> float:
    """The one thread's own time, whatever else the machine does; on a GPU, the clock's, once it has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def compare_times(folder: str, settings: Namespace) -> dict[str, Any]:
    trainings = {side: Training(folder, side, settings) for side in SIDES}
    batch = make_batch(trainings["MLE"].backbone)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for repeat in range(settings.repeats + 1):
        for side in SIDES if repeat % 2 else reversed(SIDES):
            start = seconds(settings.device)
            trainings[side](batch)
            if repeat:  # the first round warms up
                times[side].append(1e3 * (seconds(settings.device) - start))
    print("milliseconds: " + ", ".join(f"{side} {median(each):.0f}" for side, each in times.items()))
    ratios = {side: ratio(times[side], times["MLE"]) for side in ("CAL", "official")}
    show_ratio("time, CAL / MLE", ratios["CAL"], TARGET_TIME)
    show_ratio("time, official scheme / MLE", ratios["official"])
    return {"milliseconds": times, "ratios": ratios}


def train(folder: str, side: str, settings: Namespace) -> None:
    """Two steps, the second with the optimizer's states in place."""
    training = Training(folder, side, settings)
    batch = make_batch(training.backbone)
    for _ in range(2):
        training(batch)


def compare_memory(folder: str, settings: Namespace) -> dict[str, dict[str, float]]:
    found = {}
    for heap in (False, True) if settings.device == "cpu" else (False,):
        name = "of the process" if heap else "in use"
        found[name] = {side: memory(folder, side, settings, heap) for side in SIDES}
        print(f"MiB {name}: " + ", ".join(f"{side} {value:.0f}" for side, value in found[name].items()))
        for side in ("CAL", "official"):
            target = f" (target {TARGET_MEMORY})" if side == "CAL" else ""
            print(f"memory {name}, {side} / MLE: {found[name][side] / found[name]['MLE']:.3f}{target}")
    return found


def memory(folder: str, side: str, settings: Namespace, heap: bool) -> float:
    if settings.device == "cpu":
        return peak(train, folder, side, settings, prepare=prepare, heap=heap)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    train(folder, side, settings)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def prepare() -> None:
    torch.set_num_threads(1)
    quiet()


def main() -> None:
    parser = options(__doc__, repeats=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    for name, value in (("layers", 4), ("width", 512), ("words", 4000)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of the language model; default {value}")
    settings = parser.parse_args()
    prepare()
    result: dict[str, Any] = {"machine": machine() | {"threads": torch.get_num_threads()}}
    kept = ("device", "dtype", "layers", "width", "words", "repeats")
    result["settings"] = {key: getattr(settings, key) for key in kept}
    with TemporaryDirectory() as folder:
        small = Path(folder) / "small"
        write_model(small, 2, 128, 4000)
        result["differences"] = check(str(small))
        print(f"losses agree to {max(result['differences'].values()):.0e} in float64")
        write_model(Path(folder) / "model", settings.layers, settings.width, settings.words)
        result["times"] = compare_times(str(Path(folder) / "model"), settings)
        result["memory"] = compare_memory(str(Path(folder) / "model"), settings)
    finish(result, settings.json)


if __name__ == "__main__":
    main()
