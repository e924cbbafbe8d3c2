"""Weights & Biases: a mirror of the run directory, offline unless asked; the package's one door to wandb."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from alignlab.experiment.config import WandbSettings


def make_logger(settings: WandbSettings, *, config: Mapping[str, Any], folder: Path, name: str, id: str) -> WandbLogger:
    """A logger whose files lie in the run directory; a resumed run keeps its id."""
    # Pictures of tables wait for their upload in W&B's data directory, by default one for all runs in the user's home;
    # here they stay beside the run that `wandb sync` uploads.
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb")
    if rank_zero_only.rank:
        return WandbLogger(save_dir=folder)  # never asked for a run outside the first process
    run = wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        name=settings.name or name,
        tags=list(settings.tags),
        dir=folder,
        id=id,
        resume="allow",
        mode=settings.mode,
        config=dict(config),
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    # Charts over optimizer steps: W&B's own count goes on from where it stopped when a run resumes further back.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return WandbLogger(experiment=run, save_dir=folder)


def log_results(
    logger: WandbLogger, *, scores: Mapping[str, float], items: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path
) -> None:
    """Scores into the summary; of each evaluator the items with pictures as a table."""
    run = logger.experiment
    run.summary.update(dict(scores))
    columns = ["id", "picture", "prompt", "reference", "output", "score"]
    for name, rows in items.items():
        shown = [row for row in rows if row.get("picture")]
        if not shown:
            continue
        table = wandb.Table(columns=columns)
        for row in shown:
            table.add_data(
                *(wandb.Image(str(folder / row["picture"])) if key == "picture" else row.get(key) for key in columns)
            )
        run.log({f"examples/{name}": table})


def finish() -> None:
    """Close the run and wait for its files: ``wandb.finish`` alone returns before an offline run is written."""
    wandb.finish()
    wandb.teardown()
