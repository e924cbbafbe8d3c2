"""What finished cells leave behind, fabricated: a study's directory without a study."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.study.results import Results


def write_cell(directory: Path, value: float, **metrics: Any) -> None:
    """A finished run."""
    (directory / "items").mkdir(parents=True)
    (directory / "pictures").mkdir()
    result = {
        "config_hash": directory.name,
        "scores": {"caption/exact": value, "vqa/accuracy": 0.5},
        "parameters": {"total": 2000, "trained": 1000},
        "steps": 20,
        "samples": 1280,
        "seconds": {"fit": 30.0, "evaluate": 3.0},
    }
    (directory / "metrics.json").write_text(json.dumps(result | metrics))
    lines = [{"step": step, "train/loss": 3.0 / step} for step in (10, 20)] + [{"step": 20, "val/loss": 0.2}]
    (directory / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "versions.json").write_text(json.dumps({"python": "3.11.7", "packages": {"torch": "2.13.0"}}))


def write_study(directory: Path, arms: Mapping[str, Mapping[str, Sequence[float]]], **manifest: Any) -> Results:
    """A study of one start whose cells are all finished; the first arm is the baseline.

    Args:
        arms: Each arm's metrics with their values by seed; where one has fewer values, its last cells lack the metric.
        manifest: Laid over the study's own.
    """
    cells = []
    seeds = range(max(len(values) for metrics in arms.values() for values in metrics.values()))
    for arm, metrics in arms.items():
        for seed in seeds:
            digest, place = f"{arm}{seed}", f"cells/{arm}/{arm}{seed}"
            cells.append(dict(arm=arm, start="a", seed=seed, directory=place, digest=digest, differs={}))
            scores = {name: values[seed] for name, values in metrics.items() if seed < len(values)}
            write_cell(directory / place, 0.0, scores=scores)
    own = dict(name="mine", description="", command="", arms=list(arms), starts=["a"], seeds=list(seeds))
    own |= dict(baseline=next(iter(arms)), metrics=[], notes=[], cells=cells)
    (directory / "study.json").write_text(json.dumps(own | manifest))
    return Results.read(directory)
