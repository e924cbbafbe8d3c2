"""run: one experiment from a resolved config to a finished run directory; interrupted runs resume."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from alignlab.backbones import Backbone, Encoder
from alignlab.errors import InputError
from alignlab.experiment import record
from alignlab.experiment.config import STAGE, Experiment, digest, dump, instantiate, read
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
    config: dict[str, Any], output: Path, *, on_progress: OnProgress | None = None, stages: Path | None = None
) -> dict[str, Any]:
    """Train and judge one backbone.

    Args:
        config: Resolved.
        output: The run directory; a finished one of the same config is left as it is, an interrupted one resumes.
        on_progress: Called after every step and evaluator.
        stages: Where the runs of earlier stages are; default: ``output/stages``.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: The directory holds a run of another config.
    """
    claim(config, output)
    if (output / "metrics.json").exists():
        return json.loads((output / "metrics.json").read_text())
    notify = on_progress or (lambda progress: None)
    stages = stages or output / "stages"
    for name, stage in config["stages"].items():
        run(stage, stages / name, on_progress=on_progress, stages=stages)
    _quiet_libraries()
    experiment = instantiate({**config, "backbone": _with_stage_paths(config["backbone"], stages)})
    check_lengths(experiment, config)
    seed_everything(config["seed"], workers=True, verbose=False)
    backbone = experiment.make_backbone()
    if experiment.adapter is not None:
        experiment.adapter.apply(backbone)
    objective = experiment.make_objective(backbone)
    objective.optimization = experiment.optimization
    experiment.data.order_seed = config["seed"]
    metrics = _train_and_judge(config, experiment, objective, output, notify)
    record.write_json(output / "metrics.json", metrics)
    notify(Progress("done", metrics["steps"], metrics["steps"], metrics["scores"]))
    return metrics


def claim(config: dict[str, Any], output: Path) -> None:
    """Make the run directory this config's, or refuse.

    Raises:
        InputError: It holds something else.
    """
    file = output / "config.yaml"
    if file.exists():
        if digest(read(file)) != digest(config):
            raise InputError(
                f"{output} holds a run of another config (see {file}); choose another --output, or move it away"
            )
        return
    if output.exists() and any(not path.name.startswith(".") for path in output.iterdir()):
        raise InputError(f"{output} exists and is no run directory; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    record.write(file, dump(config))


def load(run_directory: Path | str) -> Backbone:
    """The backbone that a finished run trained, in evaluation mode.

    Raises:
        InputError: There is no finished run.
    """
    folder, config = Path(run_directory), _finished(Path(run_directory))
    settings = {**config["backbone"], "path": str(folder / "backbone"), "fresh": [], "take": None}
    return Backbone(**settings).eval()


def evaluate_run(run_directory: Path, *, on_progress: OnProgress | None = None) -> dict[str, float]:
    """Judge a finished run's backbone again; what it finds goes to ``evaluation/`` in the run directory."""
    config = _finished(run_directory)
    _quiet_libraries()
    folder = run_directory / "evaluation"
    folder.mkdir(exist_ok=True)
    notify = on_progress or (lambda progress: None)
    experiment = instantiate({**config, "stages": {}, "backbone": {**config["backbone"], "fresh": [], "take": None}})
    seed_everything(config["seed"], workers=True, verbose=False)
    scores, _ = evaluate(load(run_directory), experiment, folder, lambda name: notify(Progress("evaluate", 0, 0, {})))
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


def _with_stage_paths(value: Any, stages: Path) -> Any:
    """Replace ``stage:NAME`` in the backbone's settings by the directory that the stage wrote."""
    if isinstance(value, str) and value.startswith(STAGE):
        return str(stages / value.removeprefix(STAGE) / "backbone")
    if isinstance(value, dict):
        return {key: _with_stage_paths(item, stages) for key, item in value.items()}
    return value


def check_lengths(experiment: Experiment, config: dict[str, Any]) -> None:
    """Encode some training examples before the weights are read, so that a bad ``max_length`` is known at once."""
    limit = config["backbone"]["max_length"]
    if limit is not None:
        encoder = Encoder.load(experiment.backbone["path"], max_length=limit)
        examples = experiment.data.examples("train")
        encoder.batch([examples[i] for i in range(min(64, len(examples)))], experiment.requires)


def evaluate(
    backbone: Backbone, experiment: Experiment, output: Path, on_evaluator: Callable[[str], None]
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Judge a backbone with every evaluator; write the items into the run directory."""
    scores: dict[str, float] = {}
    items: dict[str, list[dict[str, Any]]] = {}
    for evaluator in experiment.evaluators:
        on_evaluator(evaluator.name)
        result = evaluator(backbone, experiment.data)
        scores |= {f"{evaluator.name}/{key}": value for key, value in result.scores.items()}
        items[evaluator.name] = record.write_items(output, evaluator.name, result.items)
    return scores, items


def _train_and_judge(
    config: dict[str, Any], experiment: Experiment, objective: Objective, output: Path, notify: OnProgress
) -> dict[str, Any]:
    record.write_json(output / "versions.json", record.versions())
    curve, counts = record.CurveLogger(output / "curve.jsonl"), record.Consumption()
    checkpoint = output / "checkpoints" / "last.ckpt"
    loggers: list[Any] = [curve]
    mirror = None
    if experiment.wandb.mode != "disabled":
        from alignlab.experiment import wandb

        name = f"{objective.__class__.__name__}-seed{config['seed']}"
        mirror = wandb.make_logger(experiment.wandb, config=config, folder=output, name=name, id=run_id(config, output))
        loggers.append(mirror)
    keep = ModelCheckpoint(
        checkpoint.parent,
        filename=checkpoint.stem,
        every_n_train_steps=config["checkpoint_every"],
        enable_version_counter=False,
    )
    trainer = Trainer(
        **{
            **experiment.trainer,
            "callbacks": [*(experiment.trainer.get("callbacks") or []), counts, keep, _Report(notify)],
        },
        logger=loggers,
        default_root_dir=output,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the data's own order knows the processes
    )
    if checkpoint.exists():
        curve.rewind(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"])
    started = time.perf_counter()
    try:
        trainer.fit(
            objective,
            datamodule=experiment.data,
            ckpt_path=checkpoint if checkpoint.exists() else None,
            weights_only=True,
        )
    except SystemExit:  # Lightning's answer to Ctrl-C
        raise KeyboardInterrupt from None
    fitted = time.perf_counter()
    steps = trainer.global_step
    scores, items = evaluate(
        objective.backbone, experiment, output, lambda name: notify(Progress("evaluate", steps, steps, {}))
    )
    judged = time.perf_counter()
    objective.backbone.save(output / "backbone", dtype=config["save_dtype"])
    if mirror is not None:
        wandb.log_results(mirror, scores=scores, items=items, folder=output)
        wandb.finish()
    return {
        "objective": objective.__class__.__name__,
        "seed": config["seed"],
        "config_hash": digest(config),
        "scores": scores,
        "parameters": {
            "total": sum(p.numel() for p in objective.parameters()),
            "trained": sum(p.numel() for p in objective.parameters() if p.requires_grad),
        },
        "steps": steps,
        "samples": counts.samples,
        "tokens": int(counts.tokens),
        "seconds": {"fit": fitted - started, "evaluate": judged - fitted},
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
        self.notify(Progress("fit", trainer.global_step, int(trainer.estimated_stepping_batches), module.logged))


def _quiet_libraries() -> None:
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
