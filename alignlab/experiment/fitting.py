"""fitting: trains an objective in a folder; what stops it costs no more than the steps since the last checkpoint."""

import os
import pickle
import signal
import threading
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from alignlab.data import AlignmentData
from alignlab.errors import InputError, NotFinite
from alignlab.experiment import (
    record,
    strategies,  # noqa: F401  (makes fsdp2 known to Lightning)
)
from alignlab.objectives import Objective, saving


def fit(
    objective: Objective,
    data: AlignmentData,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    checkpoint_every: int | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Train an objective, from the last intact checkpoint in ``folder/checkpoints`` if there is one; leave a final one.

    A resumed training is the uninterrupted one bit for bit, the curve included. The one exception: random numbers that
    data draw in the processes of ``num_workers`` start anew.

    Args:
        settings: Arguments of Lightning's Trainer.
        folder: Gets ``checkpoints`` (the last one and the one before) and ``curve.jsonl``.
        checkpoint_every: Optimizer steps between checkpoints; None: the final one alone.
        loggers: Get what ``curve.jsonl`` gets.

    Raises:
        InputError: There are checkpoints and none can be read, or training cannot go on: a loss that is not finite, a
            dead data worker, a full disk.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; there is a checkpoint of the last step.
    """
    curve = record.CurveLogger(folder / "curve.jsonl")
    checkpoints = Checkpoints(folder / "checkpoints", checkpoint_every, curve)
    plugins = settings.get("plugins") or []
    trainer = Trainer(
        **{
            **settings,
            "strategy": _strategy(settings),
            "callbacks": [*(settings.get("callbacks") or []), *callbacks, record.Randomness(), checkpoints],
            "plugins": [*_scheduler(), *(plugins if isinstance(plugins, list) else [plugins]), checkpoints.files],
        },
        logger=[curve, *loggers],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data's own order knows the processes
    )
    start, on_interrupt = checkpoints.find(clean=trainer.is_global_zero), signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(objective, datamodule=data, ckpt_path=start, weights_only=True)
        if checkpoints.saved != trainer.global_step:
            checkpoints.save(trainer)
    except SystemExit:  # Lightning's answer to KeyboardInterrupt, after which it leaves Ctrl-C ignored
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt if trainer.is_global_zero else SystemExit(130) from None
    except BaseException as error:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the processes that would wait for this one
        if isinstance(error, NotFinite) and not trainer.is_global_zero:
            raise SystemExit(0) from None  # the first process says it for all
        if isinstance(error, InputError):
            raise InputError(f"{error}; {checkpoints}") from error
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            if checkpoints.stopping:  # it got the same signal, and was faster
                raise KeyboardInterrupt from None
            who = "a process that loads data died, often for lack of memory (fewer data.num_workers need less)"
            raise InputError(f"{who}: {error}; {checkpoints}; the same command goes on from there") from error
        raise
    return trainer


def read_back(objective: Objective, folder: Path) -> Objective:
    """Give an objective, made as the one that was trained in a folder, the weights of the last checkpoint there.

    Raises:
        InputError: It has other frozen weights than that one.
    """
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    saving.put_back(checkpoint, objective, objective.backbone, saving.fingerprint(objective.backbone))
    objective.load_state_dict(checkpoint["state_dict"])
    return objective


def _scheduler() -> list[SLURMEnvironment]:
    """Keep Lightning from saving its own checkpoint, and queueing the job again, where SLURM started the processes."""
    by_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    return [SLURMEnvironment(auto_requeue=False)] if by_slurm else []


def _strategy(settings: Mapping[str, Any]) -> Any:
    strategy = settings.get("strategy", "auto")
    if strategy == "auto" and Trainer(**settings, logger=False, enable_progress_bar=False).num_devices > 1:
        return "ddp_find_unused_parameters_true"  # an embedding uses no LM head
    return strategy


class Checkpoints(Checkpoint):
    """Saves a checkpoint after each due step, after the validation that belongs to it, and when training shall stop.

    Lightning's own callback saves before that validation, and amid the accumulation of the first step after a resume.

    Args:
        folder: Where they are.
        every: Optimizer steps between them.
        curve: Goes back to where a checkpoint found it.
    """

    def __init__(self, folder: Path, every: int | None, curve: record.CurveLogger) -> None:
        self.every, self.curve = every, curve
        self.last, self.previous = folder / "last.ckpt", folder / "previous.ckpt"
        self.files = _CheckpointFiles(self.previous)
        self.saved: int | None = None
        """The step of the last checkpoint."""
        self._step = 0
        self.stopping = False

    def __str__(self) -> str:
        if self.saved is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.last}, of step {self.saved}"

    def find(self, *, clean: bool) -> Path | None:
        """The checkpoint to go on from; the curve goes back to it.

        Args:
            clean: Remove what was being written when the last session was killed, and rewind.
        """
        if clean:
            for partial in self.last.parent.glob(".*.partial"):
                partial.unlink()
        problems, size, start = [], 0, None
        for path in (self.last, self.previous):
            try:
                self.saved, size = _read(path)
                start = path
                break
            except FileNotFoundError:
                continue
            except (OSError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
                problems.append(f"{path} cannot be read ({error})")
        if start is None and problems:
            raise InputError(f"{' and '.join(problems)}; delete what is there to train this run from its start")
        if problems:
            rank_zero_warn(f"{problems[0]}; going on from {start}, of step {self.saved}")
        self.files.keeps_last = start == self.last
        if clean:
            self.curve.rewind(size)
        return start

    def save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.last)
        self.saved = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["curve"] = self.curve.size

    def on_sanity_check_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._listen()  # already here, since processes that load data inherit it

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step
        self._listen()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *arguments: Any) -> None:
        loop = trainer.fit_loop
        if not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._after_step(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._after_step(trainer)

    def _after_step(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._step:  # micro-batches of a step under way
            return
        self._step = step
        # All processes save, or none does.
        stop = trainer.strategy.reduce_boolean_decision(self.stopping, all=False)
        if stop or (self.every and step % self.every == 0):
            self.save(trainer)
        if stop:
            raise KeyboardInterrupt

    def _listen(self) -> None:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._on_signal)  # until Lightning puts all handlers back at the end

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # one that loads data: it ends with the trainer, which gets the signal too
            return
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        if rank_zero_only.rank == 0:
            os.write(2, b"\nstopping after this step, with a checkpoint; again to stop at once\n")


class _CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and keeps the one before.

    Lightning's own writer holds the file in memory as well, lets the temporary file lie on another file system, where
    moving it is not atomic, and does not wait for the disk.
    """

    def __init__(self, previous: Path) -> None:
        self.previous = previous
        self.keeps_last = True
        """Whether the last checkpoint is worth being kept as the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        with record.writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with record.replacing(path, keep=self.previous if self.keeps_last else None) as file:
            torch.save(checkpoint, file)
        self.keeps_last = True


def _read(path: Path) -> tuple[int, int]:
    """Step and curve size of a checkpoint, every byte of which was checked."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"{damaged} is damaged")
    checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    return checkpoint["global_step"], checkpoint["curve"]
