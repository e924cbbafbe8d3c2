"""What a run leaves behind: the curve, versions, git state; plain files, written atomically."""

import fcntl
import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError

from alignlab.errors import InputError
from alignlab.objectives.base import gathered

PACKAGES = (
    "alignlab",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
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
        size = self.size
        try:
            with writing(self.path), self.path.open("a") as file:
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        except InputError:
            self.rewind(size)  # no half of a line stays
            raise

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @rank_zero_only
    def rewind(self, size: int) -> None:
        """Drop what came after ``size`` bytes: what an interrupted run wrote after its last checkpoint."""
        if self.size > size:
            with writing(self.path):
                os.truncate(self.path, size)


class Randomness(Callback):
    """Keeps every process's random numbers with the checkpoint: dropout, noise and augmentation go on as they were."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["randomness"] = gathered(_randomness(module.device))

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if len(checkpoint["randomness"]) == trainer.world_size:
            self._kept = checkpoint["randomness"][trainer.global_rank]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Not before: what comes between loading and the first batch draws numbers too.
        if self._kept is not None:
            _set_randomness(self._kept, module.device)
            self._kept = None


def _randomness(device: torch.device) -> dict[str, Any]:
    """The state of all generators, as tensors and plain values, which load without unpickling code."""
    name, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.tensor(keys.astype("int64")), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_randomness(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep a second process out of a run directory, which is made if need be; the lock goes with the process.

    Args:
        wait: Until another process has left it, instead of raising InputError.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if rank_zero_only.rank:  # a process that the first one started
        yield
        return
    with writing(folder / ".lock"):
        file = open(folder / ".lock", "a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InputError(
                f"another process is at work in {folder}; wait for it, or choose another --output"
            ) from None
        yield


CLAIM = "# alignlab run, digest "


def claim_line(digest: str) -> str:
    """First line of a run's config: the digest at its start, which also covers the source of a user's classes."""
    return f"{CLAIM}{digest}\n"


def claimed_by(config: Path) -> str:
    """The digest that a run directory's config begins with."""
    return config.read_text().partition("\n")[0].removeprefix(CLAIM)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one message which file cannot be written, and why: a full disk, a missing permission."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch's writer raises an error of its own over that of the file system; safetensors' replaces it.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(reason, OSError):
            reason = reason.strerror or reason
        elif not isinstance(reason, SafetensorError):
            raise
        raise InputError(f"{path} cannot be written: {reason}; make room, or choose another place") from error


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` once it is whole and on the disk; what was there goes to ``keep``."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@rank_zero_only
def write(path: Path, text: str) -> None:
    """Write a file whole or not at all; the first process alone."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write(path, json.dumps(value, indent=2) + "\n")


def write_items(folder: Path, name: str, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write an evaluator's items as JSON lines, pictures as PNG beside them; give them back as written."""
    for part in ("items", "pictures"):
        with writing(folder / part):
            (folder / part).mkdir(exist_ok=True)
    rows = []
    for item in items:
        row = dict(item)
        if row.get("picture") is not None:
            file = f"pictures/{name}-{len(rows)}.png"
            with writing(folder / file):
                row["picture"].save(folder / file)
            row["picture"] = file
        rows.append(row)
    write(folder / "items" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def versions() -> dict[str, Any]:
    """Packages, interpreter, platform and the git state of the working directory."""
    return {
        # torch's own word also names its build, which the package's does not everywhere.
        "packages": {name: _version(name) for name in PACKAGES} | {"torch": str(torch.__version__)},
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "hardware": {"cpus": os.cpu_count(), "gpus": [torch.cuda.get_device_name(n) for n in _gpus()]},
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": _git("status", "--porcelain", "--untracked-files=no")},
    }


def _gpus() -> range:
    return range(torch.cuda.device_count())


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


def let_others_read(folder: Path) -> None:
    """Give weights the permissions of new files; safetensors lets nobody but their owner read them."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o666 & ~mask)
