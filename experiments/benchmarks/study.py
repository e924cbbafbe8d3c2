"""study: cells side by side against one `alignlab fit` after the other, a second invocation, a kill, shared stages.

    python experiments/benchmarks/study.py --json study.json
    python experiments/benchmarks/study.py --steps 4 --repeats 1 --parts loop kill    (to try it)

Eight cells of quickstart size (its two arms, four seeds), one thread a process on both sides, in turns:

- loop: `alignlab study run --jobs 2`, its report included, against a shell's loop over `alignlab fit`.
- second: the same command again, all finished and unchanged, start-up included; with the share of the imports.
- kill: the command is killed (SIGKILL) once two cells are finished, and run again; what was finished stays as it was.
- shared: the arms of `objectives.yaml` that share stages (SeVa; UniME, both stages; LLM2CLIP), each beside a twin
  whose last step size differs, five starts: once in one study, whose stages train once, and once as two studies that
  share nothing. From a study that has run (`--finished DIR`), also what its shared stages saved, by its own records.

Not measured yet on a quiet machine.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from timing import finish, machine, options, ratio, show_ratio

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
ALIGNLAB = [sys.executable, "-m", "alignlab.cli"]
ARMS, SEEDS = ("MLE", "InfoNCE"), 4
SHARING = ("SeVa", "UniME, both stages", "LLM2CLIP")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
JOBS = 2


def quickstart(folder: Path, steps: int | None) -> Path:
    """The study of eight cells, as a file."""
    overrides = [] if steps is None else [f"overrides: {{trainer: {{max_steps: {steps}}}}}"]
    arms = ", ".join(f"{arm}: {{objective: {arm}}}" for arm in ARMS)
    lines = [f"base: {EXPERIMENTS / 'base.yaml'}", f"arms: {{{arms}}}", "starts: [scenes-parts]"]
    file = folder / "eight.yaml"
    file.write_text("\n".join([*lines, f"seeds: {list(range(SEEDS))}", *overrides]) + "\n")
    return file


def run(*words: str | Path, folder: Path) -> float:
    """Seconds of a command of alignlab."""
    started = time.perf_counter()
    done = subprocess.run([*ALIGNLAB, *map(str, words)], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"alignlab {shlex.join(map(str, words))} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


def study(file: Path, folder: Path, *more: str) -> float:
    return run("study", "run", file, "--output", folder / "out", "--jobs", str(JOBS), *more, folder=folder)


def loop(folder: Path, steps: int | None) -> float:
    """Seconds of the same eight cells, one after the other."""
    limit = [] if steps is None else ["--trainer.max_steps", str(steps)]
    seconds = 0.0
    for arm in ARMS:
        for seed in range(SEEDS):
            given = ["--objective", arm, "--seed", str(seed), *limit]
            output = folder / f"{arm}{seed}"
            seconds += run("fit", "--config", EXPERIMENTS / "base.yaml", "--output", output, *given, folder=folder)
    return seconds


def against_loop(arguments: Namespace) -> dict[str, Any]:
    """A shell's loop by a study, and the second invocation of each study."""
    ours, theirs, seconds = [], [], []
    for repeat in range(arguments.repeats):
        with TemporaryDirectory() as name:
            folder = Path(name)
            file = quickstart(folder, arguments.steps)
            turns: list[Callable[[], None]] = [
                lambda file=file, folder=folder: ours.append(study(file, folder)),
                lambda folder=folder: theirs.append(loop(folder, arguments.steps)),
            ]
            for turn in turns if repeat % 2 else reversed(turns):
                turn()
            seconds += [study(file, folder) for _ in range(3)]
            imports = imported(["study", "run", str(file), "--output", str(folder / "out")], folder)
    return {"study": ours, "loop": theirs, "second": seconds, "heavy": imports}


def imported(words: list[str], folder: Path) -> list[str]:
    """The heavy libraries that a command imports, as Python itself tells."""
    environment = {**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([*ALIGNLAB, *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    return sorted(names & {"torch", "transformers", "lightning", "matplotlib", "numpy", "wandb", "jsonargparse"})


def killed(arguments: Namespace) -> dict[str, Any]:
    """Kill a study amid its cells and run it again."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = quickstart(folder, arguments.steps)
        words = ["study", "run", str(file), "--output", str(folder / "out"), "--jobs", str(JOBS)]
        process = subprocess.Popen(
            [*ALIGNLAB, *words], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(before := finished(folder)) < 2 and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(2)  # its children see that it is gone
        before = finished(folder)
        seconds = study(file, folder)
        after = finished(folder)
    kept = sum(after.get(cell) == written for cell, written in before.items())
    return {"finished_before": len(before), "kept": kept, "finished_after": len(after), "seconds_after": seconds}


def finished(folder: Path) -> dict[str, int]:
    """When each finished cell was finished."""
    return {str(file.parent): file.stat().st_mtime_ns for file in folder.glob("out/cells/*/*/metrics.json")}


def shared(arguments: Namespace) -> dict[str, Any]:
    """Arms with stages in common, in one study and in two."""
    content = yaml.safe_load((EXPERIMENTS / "studies" / "objectives.yaml").read_text())
    arms = {arm: content["arms"][arm] for arm in SHARING}
    twins = {f"{arm}, twin": {**keys, "optimization": {"lr": 5e-4}} for arm, keys in arms.items()}
    for keys in (*arms.values(), *twins.values()):
        keys.pop("against", None)
        for part in (keys, *keys["stages"].values()) if arguments.steps is not None else ():
            if "pairs" not in part:
                part["trainer"] = {**part.get("trainer", {}), "max_steps": arguments.steps}
    common = {name: content[name] for name in ("overrides", "starts", "seeds")}
    common |= {"base": str(EXPERIMENTS / "base.yaml"), "seeds": common["seeds"][:1]}
    if arguments.steps is not None:
        common["starts"] = common["starts"][:1]
    together, apart = [], []
    for repeat in range(arguments.repeats):
        with TemporaryDirectory() as name:
            folders = [Path(name, each) for each in ("both", "first", "second")]
            for folder, chosen in zip(folders, ({**arms, **twins}, arms, twins), strict=True):
                folder.mkdir()
                (folder / "stages.yaml").write_text(yaml.safe_dump({**common, "arms": chosen}))
            turns = [folders[:1], folders[1:]] if repeat % 2 else [folders[1:], folders[:1]]
            for turn in turns:
                taken = sum(study(folder / "stages.yaml", folder) for folder in turn)
                (together if len(turn) == 1 else apart).append(taken)
    return {"together": together, "apart": apart}


def saved(directory: Path) -> dict[str, float]:
    """Seconds of a finished study's cells, with each stage counted once, and once for each cell that has it."""
    once = each = 0.0
    stages: set[Path] = set()
    for file in directory.glob("cells/*/*/metrics.json"):
        own = _seconds(file)
        once, each = once + own, each + own
        places = file.with_name("stages.json")
        for place in json.loads(places.read_text()).values() if places.exists() else ():
            stage = (file.parent / place).resolve()
            taken = _seconds(stage / "metrics.json")
            each += taken
            once += 0.0 if stage in stages else taken
            stages.add(stage)
    return {"once": once, "each": each}


def _seconds(file: Path) -> float:
    return sum(json.loads(file.read_text())["seconds"].values())


def tell(result: dict[str, Any]) -> None:
    """Print ratios, beside their targets where they have one."""
    if "loop" in result:
        found = result["loop"]
        print("the share of the time, and its 95 % interval")
        show_ratio("study --jobs 2 / loop over fit", ratio(found["study"], found["loop"]), 1 / 1.6)
        print(f"cells an hour and core: {3600 * len(ARMS) * SEEDS / median(found['study']) / JOBS:.0f}")
        worst = max(found["second"])
        print(f"{'second invocation, seconds, the slowest':44s} {worst:6.3f}   target <= 3: {_met(worst <= 3)}")
        print(f"{'heavy libraries that it imports':44s} {', '.join(found['heavy']) or 'none'}")
    if "kill" in result:
        found = result["kill"]
        lost = found["finished_before"] - found["kept"]
        print(f"{'finished cells that a kill loses':44s} {lost} of {found['finished_before']}: {_met(not lost)}")
    if "shared" in result:
        found = result["shared"]
        show_ratio("stages shared / trained by each", ratio(found["together"], found["apart"]), 1 / 1.5)
    if "finished" in result:
        found = result["finished"]
        print(f"{'a finished study without shared stages':44s} {found['each'] / found['once']:6.3f} x its time")


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> None:
    parser = options(__doc__, repeats=3)
    parser.add_argument("--steps", type=int, help="of every training, fewer to try it out")
    parser.add_argument("--parts", nargs="+", choices=("loop", "kill", "shared"), default=("loop", "kill", "shared"))
    parser.add_argument(
        "--finished", type=Path, metavar="DIR", help="a finished study, of which shared stages are told"
    )
    arguments = parser.parse_args()
    measures = {"loop": against_loop, "kill": killed, "shared": shared}
    result = {part: measures[part](arguments) for part in arguments.parts}
    if arguments.finished is not None:
        result["finished"] = saved(arguments.finished)
    tell(result)
    finish({"machine": machine(), **result}, arguments.json)


if __name__ == "__main__":
    main()
