"""contrastive: a step of InfoNCE, whole and in chunks, against sentence-transformers' and open_clip's losses.

    pip install sentence-transformers open_clip_torch
    python experiments/benchmarks/contrastive.py --json contrastive.json

All embed the same pairs of texts of mixed lengths with the same random Llama (2 layers of width 256), with the same
AdamW; first losses and gradients must agree to 1e-9 in float64. Steps alternate, and count the one thread's own time.
Peak memory is that of a process of its own, less what it has after its imports.

Measured, 21 repeats (2 shared cores, 1 thread, Linux, Python 3.11.7, torch 2.13.0+cpu, transformers 5.23.0,
sentence-transformers 6.2.0, open_clip_torch 3.3.0; load 15); milliseconds a step, the ratio with its 95 % interval:

    theirs                               batch  chunk  alignlab  theirs  ratio                 target
    MultipleNegativesRankingLoss            64              516     561  0.989 [0.980, 1.004]  1.0: met*
    ClipLoss                                64              584     585  0.995 [0.988, 1.001]  1.0: met*
    CachedMultipleNegativesRankingLoss     128     32       914    1289  0.717 [0.704, 0.723]  0.833, met
    the same, texts of one length           64     32       399     374  1.053 [1.032, 1.067]

*: no difference, as the interval holds 1; in wall time, 15 repeats, two runs gave 0.99 to 1.03, all intervals with 1.
What is gained in chunks is gained by sorting, so nothing where all texts are of one length. MiB, alignlab / theirs:

    batch                                64          128          256          512         1024
    in use, chunk 32              129 / 124                 131 / 125                 146 / 134
    in use, chunk 64              195 / 186                                           209 / 200
    in use, without chunks        279 / 278               1036 / 1035
    of the process, chunk 32                   180 / 169                 208 / 180

In chunks memory is no less than theirs (0.8 is missed), and what the C library keeps of it in pieces grows.
"""

import importlib
import importlib.util
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timing import finish, machine, options, peak, quiet, ratio, show_ratio
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.models.llava import modeling_llava  # noqa: F401  # loaded late by itself, so in the peak

from alignlab.backbones import Backbone, locate
from alignlab.backbones.tiny import make_exact
from alignlab.batch import Batch, Tokens
from alignlab.functional import normalize
from alignlab.objectives import InfoNCE

LIBRARIES = {"sentence_transformers": "sentence-transformers", "open_clip": "open_clip_torch"}
SCALE, LR, TOLERANCE = 20.0, 1e-5, 1e-9
Loss = Callable[[Batch], Tensor]
Side = Callable[[Backbone, int | None], Loss]
"""Makes a loss of a backbone, in chunks of so many."""


class Adapter(nn.Module):
    """A backbone as sentence-transformers sees a model."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        ids = features["input_ids"]
        none = torch.zeros(len(ids), dtype=torch.long)
        tokens = Tokens(ids, features["attention_mask"], ids, torch.zeros_like(ids, dtype=torch.bool), {}, none)
        return {"sentence_embedding": self.backbone.embed(tokens)}


def info_nce(backbone: Backbone, chunk: int | None, *, symmetric: bool = False) -> Loss:
    objective = InfoNCE(backbone, scale=SCALE, learn_scale=False, symmetric=symmetric, chunk_size=chunk)
    return lambda batch: objective.loss(batch).mean


def multiple_negatives(backbone: Backbone, chunk: int | None) -> Loss:
    losses, model = sentence_transformers_losses(), nn.Sequential(Adapter(backbone))
    theirs = losses.MultipleNegativesRankingLoss(model, scale=SCALE)
    if chunk is not None:
        theirs = losses.CachedMultipleNegativesRankingLoss(model, scale=SCALE, mini_batch_size=chunk)
    return lambda batch: theirs(
        [{"input_ids": t.input_ids, "attention_mask": t.attention_mask} for t in (batch.query, batch.target)], None
    )


def clip_loss(backbone: Backbone, chunk: int | None) -> Loss:
    theirs, scale = open_clip_losses().ClipLoss(), torch.tensor(SCALE, dtype=backbone.model.dtype)
    return lambda batch: theirs(normalize(backbone.embed(batch.query)), normalize(backbone.embed(batch.target)), scale)


def sentence_transformers_losses() -> Any:
    return importlib.import_module("sentence_transformers.sentence_transformer.losses")


def open_clip_losses() -> Any:
    """open_clip's file of losses, without the rest of the package, which needs torchvision."""
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("open_clip_loss", f"{folder}/loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Comparison:
    """One of ours and the same of theirs, at this many pairs a batch; the target is a bound on the ratio of times."""

    ours: Side
    theirs: Side
    batch_size: int
    target: float | None
    chunk: int | None = None
    ragged: bool = True


COMPARISONS = {
    "MultipleNegativesRankingLoss": Comparison(info_nce, multiple_negatives, 64, 1.0),
    "ClipLoss": Comparison(partial(info_nce, symmetric=True), clip_loss, 64, 1.0),
    "CachedMultipleNegativesRankingLoss": Comparison(info_nce, multiple_negatives, 128, 0.833, chunk=32),
    "the same, texts of one length": Comparison(info_nce, multiple_negatives, 64, None, chunk=32, ragged=False),
}
SIZES = {32: (64, 256, 1024), 64: (64, 1024), None: (64, 256)}
HEAP_SIZES = (128, 512)
"""Pairs a batch: for each chunk size, for the memory in use; in chunks of 32, for that of the process as it comes."""


def write_model(folder: Path, *, layers: int = 2, width: int = 256) -> None:
    """Write a random LLaVA with a Llama of this size, large enough for the encoder to take nearly all of the time."""
    start = locate("scenes-parts")
    config = AutoConfig.from_pretrained(start)
    text = config.text_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = layers, width, 8 * width // 3
    text.head_dim, text.num_attention_heads, text.num_key_value_heads = 64, width // 64, width // 64
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(start).save_pretrained(folder)


def make_batch(backbone: Backbone, size: int, *, ragged: bool = True) -> Batch:
    """Pairs of texts, their lengths in words log-normal (median 12, sigma 0.4, cut to 4 to 40), or 14 each."""
    vocabulary = sorted(word for word in backbone.encoder.tokenizer.get_vocab() if word.isalpha())
    generator = torch.Generator().manual_seed(0)

    def texts() -> Tokens:
        lengths = (12 * (0.4 * torch.randn(size, generator=generator)).exp()).round().int().clamp(4, 40)
        lengths = lengths if ragged else torch.full_like(lengths, 14)
        words = [torch.randint(len(vocabulary), (length,), generator=generator).tolist() for length in lengths.tolist()]
        return backbone.encoder.contents([(" ".join(vocabulary[word] for word in chosen),) for chosen in words])

    return Batch(tuple(map(str, range(size))), query=texts(), target=texts())


def check(folder: str, comparison: Comparison) -> dict[str, float]:
    """How far the two losses and their gradients are apart in float64, relative.

    Raises:
        SystemExit: They do not compute the same, so comparing their times would mean nothing.
    """
    seen = []
    for side in (comparison.ours, comparison.theirs):
        backbone = Backbone(folder, dtype="float64")
        make_exact(backbone.model)
        loss = side(backbone, comparison.chunk)(make_batch(backbone, comparison.batch_size, ragged=comparison.ragged))
        loss.backward()
        gradients = [p.grad.flatten() for p in backbone.parameters() if p.grad is not None]
        seen.append((loss.detach(), torch.cat(gradients)))
    (loss, gradient), (their_loss, their_gradient) = seen
    found = {
        "loss": ((loss - their_loss).abs() / their_loss).item(),
        "gradient": ((gradient - their_gradient).norm() / their_gradient.norm()).item(),
    }
    if max(found.values()) > TOLERANCE:
        raise SystemExit(f"losses or gradients differ by more than {TOLERANCE}: {found}")
    return found


class Training:
    """A model of its own, trained on one batch, a step a call."""

    def __init__(self, folder: str, side: Side, chunk: int | None) -> None:
        self.backbone = Backbone(folder)
        self.loss = side(self.backbone, chunk)
        self.optimizer = torch.optim.AdamW(self.backbone.parameters(), lr=LR, foreach=True)

    def __call__(self, batch: Batch) -> None:
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(folder: str, comparison: Comparison, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of a step, ours and theirs in turn: of the one thread's work, whatever else the machine does."""
    sides = {"alignlab": comparison.ours, "theirs": comparison.theirs}
    trainings = {name: Training(folder, side, comparison.chunk) for name, side in sides.items()}
    batch = make_batch(trainings["alignlab"].backbone, comparison.batch_size, ragged=comparison.ragged)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name in sides if repeat % 2 else reversed(sides):
            start = time.process_time()
            trainings[name](batch)
            if repeat:  # the first round warms up
                times[name].append(1e3 * (time.process_time() - start))
    return times


def train(folder: str, side: Side, chunk: int | None, size: int) -> None:
    """A model, the optimizer's states, and one step at this many pairs."""
    training = Training(folder, side, chunk)
    batch = make_batch(training.backbone, size)
    few = torch.arange(2)
    training(replace(batch, ids=batch.ids[:2], query=batch.query.select(few), target=batch.target.select(few)))
    training(batch)  # with the optimizer's states in place


def prepare() -> None:
    """Set up a process, with the same imports whatever it measures."""
    torch.set_num_threads(1)
    quiet()
    sentence_transformers_losses()
    open_clip_losses()


def compare_times(folder: str, repeats: int) -> dict[str, Any]:
    found = {}
    for name, comparison in COMPARISONS.items():
        times = measure(folder, comparison, repeats)
        found[name] = {"milliseconds": times, "ratio": ratio(times["alignlab"], times["theirs"])}
        print(f"{name}, milliseconds: " + ", ".join(f"{key} {median(ms):.0f}" for key, ms in times.items()))
        show_ratio("alignlab / theirs", found[name]["ratio"], comparison.target)
    return found


def compare_memory(folder: str) -> list[dict[str, Any]]:
    found = []
    cases = [(False, chunk, size) for chunk, sizes in SIZES.items() for size in sizes]
    for heap, chunk, size in [*cases, *((True, 32, size) for size in HEAP_SIZES)]:
        given = {"prepare": prepare, "heap": heap}
        ours, theirs = (peak(train, folder, side, chunk, size, **given) for side in (info_nce, multiple_negatives))
        found.append({"heap": heap, "chunk": chunk, "batch_size": size, "alignlab": ours, "theirs": theirs})
        print(
            f"{'process' if heap else 'in use'}, chunk {chunk}, batch {size}: "
            f"alignlab {ours:.0f} MiB, theirs {theirs:.0f} MiB, ratio {ours / theirs:.2f}"
        )
    return found


def main() -> None:
    parser = options(__doc__, repeats=21)
    arguments = parser.parse_args()
    refuse_missing(parser)
    prepare()
    result: dict[str, Any] = {"machine": machine() | {"threads": torch.get_num_threads()}}
    result["machine"]["packages"] |= {name: version(name) for name in LIBRARIES.values()}
    with TemporaryDirectory() as folder:
        write_model(Path(folder))
        result["differences"] = {name: check(folder, comparison) for name, comparison in COMPARISONS.items()}
        worst = max(max(found.values()) for found in result["differences"].values())
        print(f"losses and gradients agree to {worst:.0e} in float64")
        result["times"] = compare_times(folder, arguments.repeats)
        result["memory"] = compare_memory(folder)
    finish(result, arguments.json)


def refuse_missing(parser: ArgumentParser) -> None:
    if missing := [name for module, name in LIBRARIES.items() if importlib.util.find_spec(module) is None]:
        parser.exit(2, f"this compares with libraries that are not installed: pip install {' '.join(missing)}\n")


if __name__ == "__main__":
    main()
