"""The example scripts run as they are printed."""

import os
import subprocess
import sys
from pathlib import Path

from alignlab.experiment.config import resolve
from alignlab.experiment.run import run

EXAMPLES = Path(__file__).parents[1] / "experiments" / "examples"


def test_finding_a_caption_ranks_them_all_and_draws_the_matrix(tmp_path, tiny_path):
    config = {"objective": "InfoNCE", "backbone": {"path": str(tiny_path)}, "trainer": {"max_steps": 1}}
    config |= {"data": {"class_path": "Scenes", "init_args": {"num_train": 8, "num_val": 8, "batch_size": 8}}}
    run(resolve({**config, "evaluators": [], "wandb": {"mode": "disabled"}}), tmp_path / "runs" / "infonce")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "find_caption.py"],
        cwd=tmp_path, env={**os.environ, "MPLBACKEND": "Agg"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *ranked, found, file = done.stdout.splitlines()
    cosines = [float(line.split()[0]) for line in ranked]
    assert len(ranked) == 8 and cosines == sorted(cosines, reverse=True)
    assert sum(" * " in line for line in ranked) == 1 and "of 8 pictures is the nearest" in found
    assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
