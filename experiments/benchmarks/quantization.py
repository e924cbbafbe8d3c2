"""Quantization: time and memory of codes and codebooks, against vector-quantize-pytorch.

    pip install --no-deps vector-quantize-pytorch einops einx
    python experiments/benchmarks/quantization.py --json experiments/benchmarks/results/quantization.json

A training step is forward, backward to the rows, and the update of the codebook, for M rows and K codes of width d as
LaVIT's tokenizer has them; ``codes`` is evaluation. Both sides have the same rows and codes, and have to give the same
codes, and the same codebook after a step. On a GPU, where memory is what its allocator counts:

    python experiments/benchmarks/quantization.py --device cuda --rows 24000
"""

import time
from argparse import Namespace
from collections.abc import Callable
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
from timing import finish, machine, options, peak, quiet, ratio, show_ratio
from torch import Tensor, nn

from alignlab.functional import normalize
from alignlab.modules import CountEMA, VectorQuantizer

TARGET_TIME, TARGET_MEMORY = 1 / 1.5, 0.5
SIDES = ("CountEMA", "VectorQuantizer", "library")
Work = Callable[[], Any]


def rows_of(settings: Namespace) -> Tensor:
    return torch.randn(settings.rows, settings.dim, generator=torch.Generator().manual_seed(1)).to(settings.device)


def side(name: str, settings: Namespace) -> nn.Module:
    """A quantiser; all begin with the same codes."""
    codes = torch.randn(settings.codes, settings.dim, generator=torch.Generator().manual_seed(0))
    codes = normalize(codes).to(settings.device)
    if name == "library":
        from vector_quantize_pytorch import VectorQuantize

        made = VectorQuantize(
            dim=settings.dim, codebook_size=settings.codes, use_cosine_sim=True, decay=0.99, rotation_trick=False,
            sync_codebook=False,
        ).to(settings.device)  # fmt: skip
        made._codebook.embed.data.copy_(codes[None])
        made._codebook.embed_avg.data.copy_(codes[None])
        return made
    cls = {"CountEMA": CountEMA, "VectorQuantizer": VectorQuantizer}[name]
    made = cls(settings.dim, num_codes=settings.codes).to(settings.device)
    made.codebook.copy_(codes)
    if name == "CountEMA":
        made.totals.copy_(codes)
    return made


def training(name: str, quantizer: nn.Module, x: Tensor) -> Work:
    """A step, which returns the codes."""

    def step() -> Tensor:
        rows = x.clone().requires_grad_()
        if name == "library":
            vectors, codes, loss = quantizer(rows)  # which updates its codebook
        else:
            out = quantizer(rows)
            vectors, codes, loss = out.vectors, out.codes, out.losses.mean()
        (vectors.sum() + loss).backward()
        if name != "library":
            quantizer.update()
        return codes

    return step


def evaluation(name: str, quantizer: nn.Module, x: Tensor) -> Work:
    def codes() -> Tensor:
        quantizer.eval()
        with torch.no_grad():
            return quantizer(x)[1] if name == "library" else quantizer(x).codes

    return codes


WORKS = {"codes": evaluation, "training step": training}


def check(settings: Namespace) -> float:
    """The largest difference of the codebooks after a step.

    Raises:
        SystemExit: Sides differ so much that comparing times would mean nothing.
    """
    x, made = rows_of(settings), {name: side(name, settings) for name in SIDES}
    for work in WORKS.values():
        codes = {name: work(name, quantizer.train(), x)() for name, quantizer in made.items()}
        if not all(torch.equal(each, codes["library"]) for each in codes.values()):
            raise SystemExit("the sides give other codes")
    off = (made["CountEMA"].codebook - made["library"]._codebook.embed[0]).abs().max().item()
    print(f"equal codes; codebooks after a step differ by {off:.0e}")
    if off > 1e-5:
        raise SystemExit("the sides update their codebooks otherwise")
    return off


def compare(works: dict[str, Work], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each work, which take turns in another order each time."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-2, repeats):
        for name in list(works) if number % 2 else reversed(list(works)):
            start = now(device)
            works[name]()
            if number >= 0:
                found[name].append(1e3 * (now(device) - start))
    print("milliseconds: " + ", ".join(f"{name} {median(each):.1f}" for name, each in found.items()))
    return found


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()  # whatever else the machine does


def prepare() -> None:
    torch.set_num_threads(1)
    quiet()
    import vector_quantize_pytorch  # noqa: F401

    small = Namespace(rows=8, codes=64, dim=4, device="cpu")
    for name in SIDES:  # what a first step loads is no memory of the step
        training(name, side(name, small), rows_of(small))()


def memory(part: str, name: str, settings: Namespace) -> float:
    """MiB beyond the quantiser and its rows that a second run takes at most."""
    if settings.device == "cpu":
        return peak(run, part, name, settings, prepare=prepare) - peak(hold, part, name, settings, prepare=prepare)
    work = WORKS[part](name, side(name, settings), rows_of(settings))
    work()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def hold(part: str, name: str, settings: Namespace) -> Work:
    return WORKS[part](name, side(name, settings), rows_of(settings))


def run(part: str, name: str, settings: Namespace) -> None:
    work = hold(part, name, settings)
    for _ in range(2):
        work()


def main() -> None:
    parser = options(__doc__, repeats=15)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rows", type=int, default=2048, help="M")
    parser.add_argument("--codes", type=int, default=16384, help="K")
    parser.add_argument("--dim", type=int, default=32, help="d")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    result: dict[str, Any] = {"machine": machine() | {"threads": torch.get_num_threads()}}
    result["machine"]["vector-quantize-pytorch"] = version("vector-quantize-pytorch")
    result["settings"] = {key: getattr(settings, key) for key in ("device", "rows", "codes", "dim", "repeats")}
    result["difference"] = check(settings)
    for part, work in WORKS.items():
        x = rows_of(settings)
        times = compare(
            {name: work(name, side(name, settings), x) for name in SIDES}, settings.repeats, settings.device
        )
        mebibytes = {name: memory(part, name, settings) for name in SIDES}
        print("MiB: " + ", ".join(f"{name} {each:.0f}" for name, each in mebibytes.items()))
        ratios = {name: ratio(times[name], times["library"]) for name in SIDES[:2]}
        for name, found in ratios.items():
            show_ratio(f"{part}, time, {name} / library", found, TARGET_TIME)
            share = mebibytes[name] / mebibytes["library"]
            show_ratio(
                f"{part}, memory, {name} / library", dict.fromkeys(("median", "low", "high"), share), TARGET_MEMORY
            )
        result[part] = {"milliseconds": times, "MiB": mebibytes, "ratios": ratios}
    result["machine"]["load after"] = machine()["load"]
    finish(result, settings.json)


if __name__ == "__main__":
    main()
