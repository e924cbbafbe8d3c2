"""Merger: time and memory of gathered kept patches, against the computation of all positions.

    python experiments/benchmarks/merger.py --json experiments/benchmarks/results/merger.json

Both are ``alignlab.modules.tokenizer.Merger`` under exact masking, and have to give the same rows: ``dense`` computes
every position, as the official code does, and as training with a selector that learns has to. Sizes are LaVIT's, scaled
down to one thread of a CPU: width 352 for 1408, 4 blocks for 12, 8 pictures of 256 patches, of which a random third is
kept. With them as they are, on a GPU:

    python experiments/benchmarks/merger.py --device cuda --dim 1408 --depth 12 --heads 16 --pictures 32

Measured, 9 repeats (2 shared cores, 1 thread, Linux, Python 3.11.7, torch 2.13.0+cpu; load 6), with the 95 % interval
of the ratio; memory is the peak of a fresh process, less that of one which only makes the merger and features:

                            dense             gathered
    forward                  498 ms,  52 MiB  135 ms  0.269 [0.260, 0.296]: met    19 MiB
    forward and backward    1208 ms, 530 MiB  364 ms  0.316 [0.293, 0.326]: met   113 MiB

The target is half the time. No run on a GPU has been made.
"""

import time
from argparse import Namespace
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from timing import finish, machine, options, peak, quiet, ratio, show_ratio
from torch import Tensor

from alignlab.modules.tokenizer import Merger

TARGET, TOLERANCE = 0.5, 1e-4
SIDES = ("gathered", "dense")
Work = Callable[[], Any]


def given(settings: Namespace) -> tuple[Merger, Tensor, Tensor]:
    torch.manual_seed(0)
    merger = Merger(settings.dim, depth=settings.depth, num_heads=settings.heads, mlp_ratio=4.3637)
    features = torch.randn(settings.pictures, settings.patches, settings.dim)
    mask = (torch.rand(settings.pictures, settings.patches) < settings.ratio).float()
    mask[:, 0] = 1
    return merger.to(settings.device), features.to(settings.device), mask.to(settings.device)


def rows_of(side: str, merger: Merger, features: Tensor, mask: Tensor) -> Tensor:
    """Kept rows (M, C)."""
    return merger(features, mask) if side == "gathered" else merger.dense(features, mask)[mask.bool()]


def forward(side: str, merger: Merger, features: Tensor, mask: Tensor) -> Work:
    def work() -> None:
        with torch.no_grad():
            rows_of(side, merger, features, mask)

    return work


def training(side: str, merger: Merger, features: Tensor, mask: Tensor) -> Work:
    def work() -> None:
        merger.zero_grad()
        rows_of(side, merger, features, mask).square().mean().backward()

    return work


WORKS = {"forward": forward, "forward and backward": training}


def check(settings: Namespace) -> float:
    """The largest difference between the rows.

    Raises:
        SystemExit: It is so large that comparing times would mean nothing.
    """
    merger, features, mask = given(settings)
    with torch.no_grad():
        gathered, dense = (rows_of(side, merger, features, mask) for side in SIDES)
    off = (gathered - dense).abs().max().item()
    print(f"{len(gathered)} of {mask.numel()} patches are kept; rows differ by {off:.0e}")
    if off > TOLERANCE:
        raise SystemExit("the sides give other rows")
    return off


def compare(works: dict[str, Work], repeats: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each work, which take turns in another order each time."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-1, repeats):
        for name in list(works) if number % 2 else reversed(list(works)):
            start = now(device)
            works[name]()
            if number >= 0:
                found[name].append(1e3 * (now(device) - start))
    print("milliseconds: " + ", ".join(f"{name} {median(each):.0f}" for name, each in found.items()))
    return found


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()  # whatever else the machine does


def prepare() -> None:
    torch.set_num_threads(1)
    quiet()
    small = Namespace(dim=8, depth=1, heads=2, pictures=1, patches=8, ratio=0.5, device="cpu")
    for side in SIDES:  # what a first step loads is no memory of the step
        training(side, *given(small))()


def memory(part: str, side: str, settings: Namespace) -> float:
    """MiB of a process beyond the weights and the features, at most."""
    if settings.device == "cpu":
        return peak(run, part, side, settings, prepare=prepare) - peak(given, settings, prepare=prepare)
    work = WORKS[part](side, *given(settings))
    work()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def run(part: str, side: str, settings: Namespace) -> None:
    WORKS[part](side, *given(settings))()


def main() -> None:
    parser = options(__doc__, repeats=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    for name, value in {"dim": 352, "depth": 4, "heads": 4, "pictures": 8, "patches": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ratio", type=float, default=1 / 3, help="share of the patches that are kept")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    result: dict[str, Any] = {"machine": machine() | {"threads": torch.get_num_threads()}}
    result["settings"] = {key: value for key, value in vars(settings).items() if key != "json"}
    result["difference"] = check(settings)
    for part, work in WORKS.items():
        times = compare({side: work(side, *given(settings)) for side in SIDES}, settings.repeats, settings.device)
        found = ratio(times["gathered"], times["dense"])
        show_ratio(f"{part}, time, gathered / dense", found, TARGET)
        mebibytes = {side: memory(part, side, settings) for side in SIDES}
        print("MiB: " + ", ".join(f"{side} {each:.0f}" for side, each in mebibytes.items()))
        result[part] = {"milliseconds": times, "MiB": mebibytes, "ratio": found}
    result["machine"]["load after"] = machine()["load"]
    finish(result, settings.json)


if __name__ == "__main__":
    main()
