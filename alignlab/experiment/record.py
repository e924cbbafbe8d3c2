"""What a run leaves behind: the curve, versions, git state; plain files, written atomically."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from alignlab.batch import Batch

PACKAGES = (
    "alignlab",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "trl",
    "torchmetrics",
    "wandb",
    "jsonargparse",
    "numpy",
)


class CurveLogger(Logger):
    """Appends each flush of metrics to ``curve.jsonl``, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "curve"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *arguments: Any) -> None:
        """The config stands in its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what an interrupted run wrote after its last checkpoint."""
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= step]
            write(self.path, "".join(line + "\n" for line in lines))


class Consumption(Callback):
    """Counts the samples and real tokens that training saw; goes on counting after a resume."""

    def __init__(self) -> None:
        self.samples: int = 0
        self.tokens: torch.Tensor | int = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.samples += len(batch) * trainer.world_size
        for tokens in batch:
            self.tokens = self.tokens + tokens.attention_mask.sum() * trainer.world_size

    def state_dict(self) -> dict[str, int]:
        return {"samples": self.samples, "tokens": int(self.tokens)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.samples, self.tokens = state["samples"], state["tokens"]


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=2) + "\n")


def write_items(folder: Path, name: str, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write an evaluator's items as JSON lines, pictures as PNG beside them; give them back as written."""
    (folder / "items").mkdir(exist_ok=True)
    (folder / "pictures").mkdir(exist_ok=True)
    rows = []
    for item in items:
        row = dict(item)
        if row.get("picture") is not None:
            file = f"pictures/{name}-{re.sub(r'[^A-Za-z0-9_-]', '_', row['id'])}.png"
            row["picture"].save(folder / file)
            row["picture"] = file
        rows.append(row)
    write(folder / "items" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def versions() -> dict[str, Any]:
    """Packages, interpreter, platform and the git state of the working directory."""
    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": _git("status", "--porcelain", "--untracked-files=no")},
    }


def peak_memory_mib() -> float:
    """Most memory so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
