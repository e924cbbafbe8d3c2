"""Weights & Biases: a mirror of the run directory, offline unless asked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from alignlab.experiment import shading
from alignlab.experiment.resolving import WandbSettings
from alignlab.experiment.wandbrun import begin


def mirror(settings: WandbSettings, *, config: Mapping[str, Any], folder: Path, name: str, id: str) -> "Mirror":
    """Begin a mirror whose files lie in the run directory; a resumed run keeps its id.

    Raises:
        InputError: W&B does not begin a run: it cannot be reached, or nobody is logged in.
    """
    if rank_zero_only.rank:
        return Mirror(None)
    run = begin(settings, config=config, folder=folder, name=settings.name or name, id=id)
    # Charts over optimizer steps: W&B's own count goes on from where it stopped when a run resumes further back.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return Mirror(run)


class Mirror(Logger):
    """Shows a run in W&B; where W&B fails, the run goes on without it.

    Args:
        run: None outside the first process.
    """

    def __init__(self, run: "wandb.Run | None") -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *arguments: Any) -> None:
        """The config was given at the beginning."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(lambda run: run.log({**metrics, "trainer/global_step": step}))

    def log_results(
        self, *, scores: Mapping[str, float], items: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path
    ) -> None:
        """Scores into the summary; of each evaluator the items with pictures as a table."""
        self._try(lambda run: run.summary.update(dict(scores)))
        for name, rows in items.items():
            if shown := [row for row in rows if row.get("picture")]:
                self._try(lambda run, name=name, shown=shown: run.log({f"examples/{name}": _table(shown, folder)}))

    def finish(self) -> None:
        """Close the run and wait for its files: ``run.finish`` alone returns before an offline run is written."""
        self._try(lambda run: run.finish())
        self._try(lambda run: wandb.teardown())

    def _try(self, action: "Callable[[wandb.Run], None]") -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever it is: nothing that a mirror does may stop a run
            self._run = None
            rank_zero_warn(
                f"Weights & Biases failed ({type(error).__name__}: {error}) and gets nothing more of this run, which "
                "goes on: curve.jsonl and metrics.json are complete"
            )


def _table(rows: Sequence[Mapping[str, Any]], folder: Path) -> wandb.Table:
    columns = ["id", "picture", "prompt", "reference", "output", "score"]
    weighed = all(map(shading.is_weighed, rows))
    table = wandb.Table(columns=[*columns, "weights"] if weighed else columns)
    for row in rows:
        shown = [wandb.Image(str(folder / row["picture"])) if key == "picture" else row.get(key) for key in columns]
        if weighed:
            shown.append(wandb.Html(shading.page(row), inject=False, data_is_not_path=True))
        table.add_data(*shown)
    return table
