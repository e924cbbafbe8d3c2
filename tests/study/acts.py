"""What a cell's process does in the tests of launch, and studies made of such cells; a module that children import."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alignlab.experiment.config import digest
from alignlab.study.plan import Cell, Study
from alignlab.study.progress import Notify


def act(config: dict[str, Any], directory: Path, notify: Notify) -> None:
    """Do what the config says that its backbone is, and finish like a run; count the attempts."""
    with open(directory / "attempts", "a") as file:
        file.write("I")
    print("on standard output")
    print("on standard error", file=sys.stderr)
    what = config["backbone"]["path"]
    if what == "raise":
        raise ValueError("the loss is nan")
    if what == "raise once" and (directory / "attempts").read_text() == "I":
        raise ValueError("bad luck")
    if what == "vanish":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        return
    if what == "sleep" or what == "sleep once" and (directory / "attempts").read_text() == "I":
        helper = subprocess.Popen(["sleep", "1000"])
        (directory / "pids").write_text(f"{os.getpid()} {helper.pid}")
        time.sleep(1000)
    import torch

    for step in range(1, 4):
        notify("fit", step, 3)
    result = {"config_hash": digest(config), "scores": {"threads": torch.get_num_threads()}, "argv": sys.argv}
    result["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    (directory / "metrics.json").write_text(json.dumps(result))


def study_of(directory: Path, *whats: str) -> Study:
    """One arm for everything to do."""
    cells = []
    for index, what in enumerate(whats):
        config = {"backbone": {"path": what}, "seed": index}
        hash = digest(config)
        cells.append(Cell(f"arm{index}", "start", index, config, directory / "cells" / hash, hash, {}))
    arms = tuple(cell.arm for cell in cells)
    seeds = tuple(range(len(cells)))
    parts = dict(against={}, baseline=arms[0], oracle=None, placebo=None, metrics=(), tradeoff=(), claims=(), notes=())
    plan = dict(description="", arms=arms, starts=("start",), seeds=seeds, cells=tuple(cells))
    return Study(name="acts", directory=directory, **plan, **parts)
