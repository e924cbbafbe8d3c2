"""timing: what the benchmarks share: the machine, ratios with their intervals, and the JSON they leave."""

import json
import logging
import multiprocessing
import os
import platform
import random
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = ("torch", "transformers", "lightning", "jsonargparse")


def options(description: str, *, repeats: int) -> ArgumentParser:
    """The options that every benchmark has."""
    parser = ArgumentParser(description=description.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, each repeat's too")
    return parser


def peak(work: Callable[..., None], *arguments: Any, prepare: Callable[[], None], heap: bool = False) -> float:
    """MiB that a process of its own takes at most for some work, beyond what it has after its imports (Linux).

    Args:
        prepare: Imports, and sets the process up; before the work.
        heap: As the process comes, with what its allocator keeps of memory given back, in pieces that fit nothing; else
            the allocator gives back at once, so that the peak is of memory in use.
    """
    os.environ.pop("MALLOC_MMAP_THRESHOLD_", None)
    if not heap:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, work, arguments, prepare).result()


def _peak(work: Callable[..., None], arguments: tuple[Any, ...], prepare: Callable[[], None]) -> float:
    prepare()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _mebibytes("VmRSS")
    work(*arguments)
    return _mebibytes("VmHWM") - before


def _mebibytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def quiet() -> None:
    """Keep Lightning's notices out of the numbers."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def machine() -> dict[str, Any]:
    """What the numbers depend on; the load tells whether others were at work."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "packages": {name: version(name) for name in PACKAGES},
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median of the paired ratios, and the 95 % interval of that median from 10,000 resamples."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    generator = random.Random(0)
    medians = sorted(median(generator.choices(ratios, k=len(ratios))) for _ in range(10_000))
    return {"median": median(ratios), "low": medians[249], "high": medians[9749]}


def show_ratio(name: str, value: Mapping[str, float], target: float | None = None) -> None:
    """Print one ratio, beside its target where it has one."""
    verdict = "" if target is None else f"   target <= {target}: {'met' if value['median'] <= target else 'MISSED'}"
    print(f"{name:44s} {value['median']:6.3f}  [{value['low']:.3f}, {value['high']:.3f}]{verdict}")


def finish(result: Mapping[str, Any], file: Path | None) -> None:
    """Print the machine; write everything if a file is wanted."""
    print(json.dumps(result["machine"]))
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n")
