"""fitting: trains an objective in a folder, from the last checkpoint there where there is one."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from alignlab.data import AlignmentData
from alignlab.errors import InputError
from alignlab.experiment import record
from alignlab.objectives import Objective


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
    """Train an objective, from the last checkpoint in ``folder/checkpoints`` if there is one; leave a final one.

    Args:
        settings: Arguments of Lightning's Trainer.
        folder: Gets ``checkpoints/last.ckpt`` and ``curve.jsonl``.
        checkpoint_every: Optimizer steps between checkpoints; None: the final one alone.
        loggers: Get what ``curve.jsonl`` gets.

    Raises:
        InputError: The checkpoint cannot be read.
    """
    checkpoint, curve = folder / "checkpoints" / "last.ckpt", record.CurveLogger(folder / "curve.jsonl")
    keep = ModelCheckpoint(
        checkpoint.parent,
        filename=checkpoint.stem,
        every_n_train_steps=checkpoint_every,
        enable_version_counter=False,
    )
    own = [*callbacks, record.Randomness(), *([keep] if checkpoint_every else [])]
    trainer = Trainer(
        **{
            **settings,
            "strategy": _strategy(settings),
            "callbacks": [*(settings.get("callbacks") or []), *own],
        },
        logger=[curve, *loggers],
        default_root_dir=folder,
        enable_checkpointing=bool(checkpoint_every),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data's own order knows the processes
    )
    reached, path = 0, checkpoint if checkpoint.exists() else None
    if path is not None:
        try:
            reached = torch.load(path, weights_only=True, map_location="cpu")["global_step"]
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"{path} cannot be read; delete it to train this run from its start ({error})") from None
    curve.rewind(reached)
    try:
        trainer.fit(objective, datamodule=data, ckpt_path=path, weights_only=True)
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    trainer.save_checkpoint(checkpoint)
    return trainer


def _strategy(settings: Mapping[str, Any]) -> Any:
    strategy = settings.get("strategy", "auto")
    if strategy == "auto" and Trainer(**settings, logger=False, enable_progress_bar=False).num_devices > 1:
        return "ddp_find_unused_parameters_true"  # an embedding uses no LM head
    return strategy
