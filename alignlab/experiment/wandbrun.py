"""wandbrun: one run in Weights & Biases, begun and filled, with neither torch nor Lightning imported."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb
from PIL.Image import Image

from alignlab.errors import InputError
from alignlab.experiment.resolving import WandbSettings

INIT_SECONDS, FINISH_SECONDS = 30, 120
"""How long W&B may try to begin a run, and to upload what is left of it."""


def begin(
    settings: WandbSettings, *, config: Mapping[str, Any], folder: Path, name: str, id: str, job_type: str | None = None
) -> "wandb.Run":
    """Begin a run whose files lie in a folder; one that there is by this id goes on.

    Raises:
        InputError: W&B does not begin a run: it cannot be reached, or nobody is logged in.
    """
    # Pictures of tables wait for their upload in W&B's data directory, by default one for all runs in the user's home;
    # here they stay beside the run that `wandb sync` uploads.
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve() / "wandb")
    try:
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            job_type=job_type,
            name=name,
            tags=list(settings.tags),
            dir=folder,
            id=id,
            resume="allow",
            mode=settings.mode,
            config=dict(config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_stats=True,
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )
    except wandb.Error as error:
        raise InputError(
            f"wandb.mode {settings.mode}: Weights & Biases does not begin a run ({str(error).splitlines()[0]}); with "
            "wandb.mode offline the run needs no network, and `wandb sync` uploads it later"
        ) from error


@dataclass(frozen=True)
class Summary:
    """What a study's summary run shows.

    Args:
        numbers: Go into the run's summary.
        tables: By name: column names and rows of plain values and pictures.
        figures: Picture files by name.
        files: Of the artifact, by their names in it.
    """

    numbers: Mapping[str, Any]
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[Any]]]]
    figures: Mapping[str, Path]
    files: Mapping[str, Path]


def summarize(
    summary: Summary, settings: WandbSettings, *, config: Mapping[str, Any], folder: Path, name: str, id: str
) -> None:
    """Write a study's summary run, whole; an earlier one of this id that was not uploaded yet is replaced.

    Args:
        folder: Takes the run's files; nobody else's runs lie there.

    Raises:
        InputError: W&B does not begin a run.
    """
    earlier = _not_uploaded(folder / "wandb", id)
    staged = [path for path in (folder / "wandb" / "artifacts").rglob("*") if path.is_file()]
    run = begin(settings, config=config, folder=folder, name=name, id=id, job_type="study")
    try:
        run.summary.update(dict(summary.numbers))
        shown: dict[str, Any] = {key: _table(*table) for key, table in summary.tables.items()}
        run.log(shown | {f"figures/{key}": wandb.Image(str(path)) for key, path in summary.figures.items()})
        artifact = wandb.Artifact(f"{_plain(name)}-report", type="report")
        for key, path in summary.files.items():
            artifact.add_file(str(path), name=key)
        run.log_artifact(artifact)
    finally:
        run.finish()
        wandb.teardown()  # `finish` alone returns before an offline run is written
    for old in earlier:
        shutil.rmtree(old, ignore_errors=True)
    for path in staged:  # nobody is going to upload them any more
        path.unlink(missing_ok=True)


def _not_uploaded(folder: Path, id: str) -> list[Path]:
    """Offline runs of an id; W&B marks those that it has uploaded."""
    runs = folder.glob(f"offline-run-*-{id}")
    return [run for run in runs if not list(run.glob("*.wandb.synced"))]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> wandb.Table:
    table = wandb.Table(columns=list(columns))
    for row in rows:
        table.add_data(*(wandb.Image(value) if isinstance(value, Image) else value for value in row))
    return table


def _plain(name: str) -> str:
    """A name of letters that W&B allows in an artifact's."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
