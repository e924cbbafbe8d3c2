"""training: one stage of an experiment, from its objects to a judged backbone and its costs."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import distributed

from alignlab.backbones import Backbone, DualEncoder, locate, open_backbone
from alignlab.backbones.plain import write_plain
from alignlab.backbones.saving import is_adapted
from alignlab.errors import InputError
from alignlab.experiment import commands, memory, record
from alignlab.experiment.config import Experiment, digest
from alignlab.experiment.consumption import Consumption, skipped_in_words
from alignlab.experiment.fitting import fit, read_back
from alignlab.experiment.parameters import Parameters, parameters_of
from alignlab.experiment.strategies import FSDP2
from alignlab.experiment.throughput import Pace
from alignlab.modules.parted import start_of

if TYPE_CHECKING:
    from alignlab.experiment.wandb import Mirror


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        values: The latest logged metrics.
        parameters: What trains, told when a training begins.
    """

    stage: Literal["pairs", "fit", "evaluate", "done"]
    step: int
    max_steps: int
    values: Mapping[str, float]
    parameters: Parameters | None = None


OnProgress = Callable[[Progress], None]


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


@dataclass(frozen=True)
class _Trained:
    """What training leaves.

    Args:
        backbone: On the device on which it is judged.
        step: The last optimizer step, 0 where it is not known.
        costs: What ``metrics.json`` says of the training; None where it is not known.
        skipped: Ids of examples that could not be read, by split.
    """

    backbone: Backbone | DualEncoder
    mirror: "Mirror | None"
    step: int
    seconds: float
    costs: dict[str, Any]
    skipped: Mapping[str, list[str]]


def train_and_judge(config: dict[str, Any], experiment: Experiment, output: Path, notify: OnProgress) -> dict[str, Any]:
    """Train what the objects of a config say, judge it and write down what came out: ``metrics.json``, given back."""
    record.write_json(output / "versions.json", record.versions())
    train = _train if experiment.command is None else _let_train
    trained = train(config, experiment, output, notify)
    record.write_json(output / "prompt.json", trained.backbone.encoder.prompt_format())
    started = time.perf_counter()
    with torch.compiler.set_stance("force_eager"):  # what generates has other sizes at each token
        scores, items = evaluate(
            trained.backbone, experiment, output, lambda name: notify(Progress("evaluate", trained.step, 0, {}))
        )
    evaluated = time.perf_counter() - started
    with record.writing(output / "backbone"):
        trained.backbone.save(output / "backbone", dtype=config["save_dtype"])
        record.let_others_read(output / "backbone")
    metrics = {
        "seed": config["seed"],
        "config_hash": digest(config),
        "scores": scores,
        **trained.costs,
        "seconds": {"fit": trained.seconds, "evaluate": evaluated},
        "skipped": skipped_in_words(_with_left_out(trained.skipped, experiment)),
        "peak_memory_mib": memory.peak_mib(trained.backbone.device) if experiment.command is None else None,
    }
    record.write_json(output / "metrics.json", metrics)
    if trained.mirror is not None:  # last, since it waits for the network
        trained.mirror.log_results(scores=scores, items=items, folder=output)
        trained.mirror.finish()
    notify(Progress("done", trained.step, trained.step, scores))
    return metrics


def _with_left_out(skipped: Mapping[str, list[str]], experiment: Experiment) -> dict[str, list[str]]:
    """The ids by split, together with those that evaluators left out."""
    judged = {id(data): data for data in (each.judged(experiment.data) for each in experiment.evaluators)}
    whole = {split: list(ids) for split, ids in skipped.items()}
    for data in judged.values():
        for split, ids in data.left_out.items():
            whole[split] = list(dict.fromkeys((*whole.get(split, []), *sorted(ids))))
    return whole


def _train(config: dict[str, Any], experiment: Experiment, output: Path, notify: OnProgress) -> _Trained:
    objective = experiment.assemble()
    experiment.data.order_seed = config["seed"]
    parameters = parameters_of(objective)
    spent, pace, mirror = Consumption(), Pace(), _mirror(config, experiment, output, type(objective).__name__)
    from_outside = "LOCAL_RANK" in os.environ  # by torchrun, say
    trainer = fit(
        objective,
        experiment.data,
        experiment.trainer,
        output,
        checkpoint_every=config["checkpoint_every"],
        loggers=[mirror] if mirror else [],
        callbacks=[spent, pace, _Report(notify, parameters)],
    )
    if not trainer.is_global_zero:
        raise SystemExit(0)  # the other processes have nothing more to do
    device = trainer.strategy.root_device
    if not from_outside:
        _go_on_alone()
    if isinstance(trainer.strategy, FSDP2):  # which leaves pieces
        seed_everything(config["seed"], workers=True, verbose=False)
        objective = read_back(experiment.assemble(), output)
    costs = {
        "objective": type(objective).__name__,
        "parameters": parameters,
        "steps": trainer.global_step,
        "samples": spent.samples,
        "tokens": int(spent.tokens),
        **({"sources": spent.of_sources} if experiment.data.sources else {}),
        "flops": pace.work(spent.samples),
        "throughput": pace.summary(
            device, devices=trainer.world_size, tokens_per_sample=int(spent.tokens) / max(spent.samples, 1)
        ),
    }
    objective.backbone.to(device)  # Lightning hands the model back on the CPU
    return _Trained(objective.backbone, mirror, trainer.global_step, spent.seconds, costs, spent.skipped)


def _let_train(config: dict[str, Any], experiment: Experiment, output: Path, notify: OnProgress) -> _Trained:
    """Let the command train, from nothing, whatever an interrupted one left, and open what it leaves."""
    _refuse_processes("a command")
    folder, mirror = output / "command", _mirror(config, experiment, output, "command")
    with record.writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "output").mkdir(parents=True)
    notify(Progress("fit", 0, 0, {}))
    values = {
        "output": str((folder / "output").absolute()),
        "backbone": _start(experiment, folder / "start"),
        "seed": str(config["seed"]),
        "steps": str(experiment.trainer["max_steps"]),
        "data": str(Path(experiment.data_path or "").absolute()),
    }
    started = time.perf_counter()
    words = commands.words_of(experiment.command, config["python_path"])
    commands.train(words, values, output / "command.log")
    seconds = time.perf_counter() - started
    left = {"path": values["output"], "fresh": (), "take": None, "text_tower": None}
    try:
        backbone = open_backbone(**{**experiment.backbone, **left})
    except InputError as error:
        said = str(error).removeprefix("backbone.path: ")
        raise InputError(f"command: what it left is no model to be judged: {said}") from None
    backbone.start = start_of(**{name: experiment.backbone[name] for name in ("path", "fresh", "take")})
    costs = {
        "objective": None,
        "command": experiment.command,
        "parameters": {"total": sum(p.numel() for p in backbone.parameters()), "trained": None},
        **dict.fromkeys(("steps", "samples", "tokens", "flops", "throughput")),
    }
    return _Trained(backbone.eval().to(device_of(experiment)), mirror, 0, seconds, costs, {})


def build_pairs(config: dict[str, Any], experiment: Experiment, output: Path, notify: OnProgress) -> dict[str, Any]:
    """Write the pairs that the backbone of a stage makes of its data into ``output/pairs``; trains nothing.

    Returns:
        The content of ``metrics.json``: the audit.

    Raises:
        InputError: No pair is left to train on.
    """
    from alignlab.experiment.opening import data_in_words
    from alignlab.experiment.pairaudit import show
    from alignlab.experiment.pairs import make_pairs

    _refuse_processes("building pairs")
    record.write_json(output / "versions.json", record.versions())
    started = time.perf_counter()
    backbone = experiment.make_backbone().eval().to(device_of(experiment))
    record.write_json(output / "prompt.json", backbone.encoder.prompt_format())
    audit = make_pairs(
        backbone,
        experiment.data,
        experiment.pairs,
        output / "pairs",
        provenance={"model": config["backbone"], "data": data_in_words(config)},
        on_progress=lambda what, done, total: notify(Progress("pairs", done, total, {})),
    )
    show(audit)
    if not audit.splits["train"].kept:
        raise InputError(
            f"{output}: no pair is left to train on of {audit.splits['train'].asked} examples; see above why"
        )
    metrics = {
        "config_hash": digest(config),
        "pairs": asdict(audit),
        "seconds": {"pairs": time.perf_counter() - started},
        "peak_memory_mib": memory.peak_mib(backbone.device),
    }
    record.write_json(output / "metrics.json", metrics)
    return metrics


def _refuse_processes(what: str) -> None:
    if "LOCAL_RANK" in os.environ:  # by torchrun, say
        raise InputError(
            f"{what} is the work of one process, which starts more where it needs some; start alignlab once"
        )


def _start(experiment: Experiment, folder: Path) -> str:
    """The directory, or hub name, from which an objective would start, too, fresh parts included."""
    settings = experiment.backbone
    path = locate(settings["path"])
    if settings["fresh"] or settings["take"] or settings["text_tower"] or is_adapted(path):
        with record.writing(folder):
            reason = write_plain(experiment.make_backbone(), folder)
        if reason is not None:
            raise InputError(f"command: it cannot start from {path}, whose adapters cannot be merged: {reason}")
        return str(folder.absolute())
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def _mirror(config: dict[str, Any], experiment: Experiment, output: Path, who: str) -> "Mirror | None":
    if experiment.wandb.mode == "disabled":
        return None
    from alignlab.experiment import wandb

    name = f"{who}-seed{config['seed']}"
    return wandb.mirror(experiment.wandb, config=config, folder=output, name=name, id=run_id(config, output))


def device_of(experiment: Experiment) -> torch.device:
    """Where one process of the experiment's trainer works."""
    return Trainer(**experiment.trainer, logger=False, enable_progress_bar=False).strategy.root_device


def _go_on_alone() -> None:
    """Leave the group of processes that Lightning started, so that a later stage can start some."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)


def run_id(config: dict[str, Any], output: Path) -> str:
    """W&B's id of a run: the same when it resumes, another in another directory."""
    from hashlib import sha256

    return sha256(f"{digest(config)} {output.resolve()}".encode()).hexdigest()[:12]


class _Report(Callback):
    """Tells what trains, and how far it is."""

    def __init__(self, notify: OnProgress, parameters: Parameters) -> None:
        self.notify, self.parameters = notify, parameters

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.notify(Progress("fit", trainer.global_step, 0, {}, self.parameters))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *arguments: Any) -> None:
        if trainer.is_global_zero:
            self.notify(Progress("fit", trainer.global_step, int(trainer.estimated_stepping_batches), module.logged))
