"""run: one experiment from a resolved config to a finished run directory; interrupted runs resume."""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import distributed

from alignlab.backbones import Backbone, DualEncoder, open_backbone
from alignlab.errors import InputError
from alignlab.experiment import record
from alignlab.experiment.config import STAGE, Experiment, digest, dump, instantiate, read
from alignlab.experiment.fitting import fit
from alignlab.experiment.preflight import preflight
from alignlab.objectives import Objective


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``values`` are the latest logged metrics."""

    stage: Literal["fit", "evaluate", "done"]
    step: int
    max_steps: int
    values: Mapping[str, float]


OnProgress = Callable[[Progress], None]


def run(
    config: dict[str, Any], output: Path, *, on_progress: OnProgress | None = None, shared: Path | None = None
) -> dict[str, Any]:
    """Train and judge one backbone.

    Args:
        config: Resolved.
        output: The run directory; a finished one of the same config is left as it is, an interrupted one resumes.
        on_progress: Called after every step and evaluator.
        shared: Where runs that have stages in common keep them, each trained by the first that needs it while the
            others wait; default: a run keeps its own, in ``output/stages``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: The directory holds a run of another config.
    """
    quiet_libraries()
    refuse_foreign(config, output)
    if (output / "metrics.json").exists():
        return json.loads((output / "metrics.json").read_text())
    preflight(config)
    notify = on_progress or (lambda progress: None)
    folders = _stage_folders(config["stages"], output / "stages" if shared is None else shared, shared is not None)
    with record.locked(output):
        claim(config, output)
        for name, stage in config["stages"].items():
            with record.locked(folders[name], wait=shared is not None):
                if not (folders[name] / "metrics.json").exists():
                    claim(stage, folders[name])
                    _run_one(stage, folders, folders[name], notify)
        return _run_one(config, folders, output, notify)


def _run_one(config: dict[str, Any], folders: Mapping[str, Path], output: Path, notify: OnProgress) -> dict[str, Any]:
    """Train and judge what starts from stages that are done."""
    experiment = instantiate(
        {**config, "stages": {}, "backbone": _with_stages(config["backbone"], lambda name: folders[name] / "backbone")}
    )
    seed_everything(config["seed"], workers=True, verbose=False)
    return _train_and_judge(config, experiment, output, notify)


def _stage_folders(stages: Mapping[str, Any], parent: Path, by_content: bool) -> dict[str, Path]:
    """Where each stage is kept: under its name, or by its content, which is also that of the stages it starts from."""
    folders: dict[str, Path] = {}
    for name, stage in stages.items():
        whole = {**stage, "backbone": _with_stages(stage["backbone"], lambda name: folders[name].name)}
        folders[name] = parent / (f"{name}-{digest(whole)}" if by_content else name)
    return folders


def refuse_foreign(config: dict[str, Any], output: Path) -> None:
    """Raise InputError if the directory holds anything but this config's run."""
    file = output / "config.yaml"
    if file.exists():
        if record.claimed_by(file) != digest(config):
            raise InputError(
                f"{output} holds a run of another config (see {file}); choose another --output, or move it away"
            )
    elif not output.is_dir() and any(path.is_file() for path in (output, *output.parents)):
        raise InputError(f"--output {output} is, or lies in, a file; a run needs a directory")
    elif output.exists() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise InputError(f"{output} exists and is no run directory; choose another --output")


def claim(config: dict[str, Any], output: Path) -> None:
    """Make the locked run directory this config's; its first line says whose it is."""
    refuse_foreign(config, output)
    if not (output / "config.yaml").exists():
        record.write(output / "config.yaml", record.claim_line(digest(config)) + dump(config))


def load(run_directory: Path | str) -> Backbone | DualEncoder:
    """The backbone that a finished run trained, in evaluation mode.

    Raises:
        InputError: There is no finished run.
    """
    folder, config = Path(run_directory), _finished(Path(run_directory))
    given = {"path": str(folder / "backbone"), "fresh": [], "take": None, "text_tower": None}
    return open_backbone(**{**config["backbone"], **given}).eval()


def evaluate_run(run_directory: Path, *, on_progress: OnProgress | None = None) -> dict[str, float]:
    """Judge a finished run's backbone again; what it finds goes to ``evaluation/`` in the run directory."""
    config = _finished(run_directory)
    quiet_libraries()
    folder = run_directory / "evaluation"
    with record.writing(folder):
        folder.mkdir(exist_ok=True)
    notify = on_progress or (lambda progress: None)
    experiment = instantiate({**config, "stages": {}, "backbone": {**config["backbone"], "fresh": [], "take": None}})
    seed_everything(config["seed"], workers=True, verbose=False)
    device = Trainer(**experiment.trainer, logger=False, enable_progress_bar=False).strategy.root_device
    backbone = load(run_directory).to(device)
    scores, _ = evaluate(backbone, experiment, folder, lambda name: notify(Progress("evaluate", 0, 0, {})))
    record.write_json(folder / "scores.json", {"scores": scores, "versions": record.versions()})
    return scores


def _finished(folder: Path) -> dict[str, Any]:
    if not (folder / "metrics.json").exists():
        what = (
            "an interrupted run; `alignlab fit` with its config finishes it"
            if (folder / "config.yaml").exists()
            else "no run"
        )
        raise InputError(f"{folder} is {what}: a finished run directory holds config.yaml and metrics.json")
    return read(folder / "config.yaml")


def _with_stages(value: Any, place: Callable[[str], Path | str]) -> Any:
    """Replace each ``stage:NAME`` in the backbone's settings."""
    if isinstance(value, str) and value.startswith(STAGE):
        return str(place(value.removeprefix(STAGE)))
    if isinstance(value, dict):
        return {key: _with_stages(item, place) for key, item in value.items()}
    return value


def evaluate(
    backbone: Backbone | DualEncoder, experiment: Experiment, output: Path, on_evaluator: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Judge a backbone with every evaluator; write the items into the run directory."""
    scores: dict[str, float] = {}
    items: dict[str, list[dict[str, Any]]] = {}
    for evaluator in experiment.evaluators:
        on_evaluator(evaluator.label)
        result = evaluator(backbone, experiment.data)
        scores |= {f"{evaluator.label}/{key}": value for key, value in result.scores.items()}
        items[evaluator.label] = record.write_items(output, evaluator.label, result.items)
    return scores, items


def _train_and_judge(
    config: dict[str, Any], experiment: Experiment, output: Path, notify: OnProgress
) -> dict[str, Any]:
    backbone = experiment.make_backbone()
    if experiment.adapter is not None:
        experiment.adapter.apply(backbone)
    objective = experiment.make_objective(backbone)
    objective.optimization = experiment.optimization
    experiment.data.order_seed = config["seed"]
    record.write_json(output / "versions.json", record.versions())
    spent, mirror = record.Consumption(), None
    if experiment.wandb.mode != "disabled":
        from alignlab.experiment import wandb

        name = f"{type(objective).__name__}-seed{config['seed']}"
        mirror = wandb.mirror(experiment.wandb, config=config, folder=output, name=name, id=run_id(config, output))
    from_outside = "LOCAL_RANK" in os.environ  # by torchrun, say
    trainer = fit(
        objective,
        experiment.data,
        experiment.trainer,
        output,
        checkpoint_every=config["checkpoint_every"],
        loggers=[mirror] if mirror else [],
        callbacks=[spent, _Report(notify)],
    )
    if not trainer.is_global_zero:
        raise SystemExit(0)  # the other processes have nothing more to do
    device = trainer.strategy.root_device
    if not from_outside:
        _go_on_alone()
    started = time.perf_counter()
    backbone.to(device)  # Lightning hands the model back on the CPU
    scores, items = evaluate(
        backbone, experiment, output, lambda name: notify(Progress("evaluate", trainer.global_step, 0, {}))
    )
    evaluated = time.perf_counter() - started
    with record.writing(output / "backbone"):
        backbone.save(output / "backbone", dtype=config["save_dtype"])
    metrics = _summary(config, objective, trainer.global_step, scores, spent, evaluated)
    record.write_json(output / "metrics.json", metrics)
    if mirror is not None:  # last, since it waits for the network
        mirror.log_results(scores=scores, items=items, folder=output)
        mirror.finish()
    notify(Progress("done", trainer.global_step, trainer.global_step, scores))
    return metrics


def _go_on_alone() -> None:
    """Leave the group of processes that Lightning started, so that a later stage can start some."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)


def _summary(
    config: dict[str, Any],
    objective: Objective,
    steps: int,
    scores: dict[str, float],
    spent: record.Consumption,
    evaluated: float,
) -> dict[str, Any]:
    parameters = list(objective.parameters())
    return {
        "objective": type(objective).__name__,
        "seed": config["seed"],
        "config_hash": digest(config),
        "scores": scores,
        "parameters": {
            "total": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
        },
        "steps": steps,
        "samples": spent.samples,
        "tokens": int(spent.tokens),
        "seconds": {"fit": spent.seconds, "evaluate": evaluated},
        "peak_memory_mib": record.peak_memory_mib(),
    }


def run_id(config: dict[str, Any], output: Path) -> str:
    """W&B's id of a run: the same when it resumes, another in another directory."""
    from hashlib import sha256

    return sha256(f"{digest(config)} {output.resolve()}".encode()).hexdigest()[:12]


class _Report(Callback):
    """Tells how far training is."""

    def __init__(self, notify: OnProgress) -> None:
        self.notify = notify

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *arguments: Any) -> None:
        if trainer.is_global_zero:
            self.notify(Progress("fit", trainer.global_step, int(trainer.estimated_stepping_batches), module.logged))


def quiet_libraries() -> None:
    """What is no error of the user's is not printed over the progress bars."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        "does not have many workers",
        r"isinstance\(treespec, LeafSpec\)",
        "logging interval",
        "in eval mode",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
