"""startup: how long ``import alignlab`` and ``alignlab --help`` take, and that neither imports torch.

    python experiments/benchmarks/startup.py --json startup.json

Each repeat is a fresh interpreter, timed from outside; beside them the bare interpreter and, as what is avoided,
``import torch``. The first round warms the disk cache and is not counted.

Measured, 15 repeats (2 shared cores, Linux, Python 3.11.7, torch 2.13.0+cpu; bytecode caching off; load 1.0):

    seconds            median  minimum  target
    python -c pass      0.028    0.023
    import alignlab     0.030    0.025     0.3  met
    alignlab --help     0.044    0.035     1.0  met
    import torch        1.424    1.314
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from timing import finish, machine, options

TARGETS = {"import alignlab": 0.3, "alignlab --help": 1.0}
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import alignlab": ["-c", "import alignlab"],
    "alignlab --help": ["-m", "alignlab.cli", "--help"],
    "import torch": ["-c", "import torch"],
}
ROOT = Path(__file__).resolve().parents[2]


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def imports(arguments: list[str]) -> set[str]:
    """Top-level names of all modules that a command imports, as Python itself tells."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}


def main() -> None:
    arguments = options(__doc__, repeats=15).parse_args()
    for name in TARGETS:
        if "torch" in imports(COMMANDS[name]):
            raise SystemExit(f"{name} imports torch")
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(arguments.repeats + 1):
        for name, command in COMMANDS.items():
            value = seconds(command)
            if repeat:
                times[name].append(value)
    print("seconds, median and minimum; the first two of alignlab import no torch")
    for name, values in times.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"   target <= {target}: {'met' if median(values) <= target else 'MISSED'}"
        print(f"{name:44s} {median(values):6.3f} {min(values):6.3f}{verdict}")
    finish({"machine": machine(), "seconds": times}, arguments.json)


if __name__ == "__main__":
    main()
