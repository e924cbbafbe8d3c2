"""run: one experiment from a resolved config to a finished run directory; interrupted runs resume."""

import json
import logging
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from alignlab.backbones import Backbone, DualEncoder, open_backbone, packaged
from alignlab.backbones.plain import lies_beside
from alignlab.backbones.saving import Base, is_adapted
from alignlab.errors import InputError
from alignlab.experiment import memory, record
from alignlab.experiment.config import Experiment, digest, dump, instantiate, read
from alignlab.experiment.preflight import preflight
from alignlab.experiment.stages import named_stages, with_stages
from alignlab.experiment.training import OnProgress, Progress, build_pairs, device_of, evaluate, train_and_judge
from alignlab.modules.parted import start_of


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
        InputError: The directory holds a run of another config, or there are stages and a launcher or scheduler
            started the processes.
    """
    quiet_libraries()
    refuse_foreign(config, output)
    if (output / "metrics.json").exists():
        return json.loads((output / "metrics.json").read_text())
    _refuse_outside(config)
    preflight(config)
    notify = on_progress or (lambda progress: None)
    folders = stage_folders(config["stages"], output / "stages" if shared is None else shared, shared is not None)
    with record.locked(output):
        claim(config, output)
        if folders:
            places = {name: os.path.relpath(folder, output) for name, folder in folders.items()}
            record.write_json(output / "stages.json", places)
        for name, stage in config["stages"].items():
            with record.locked(folders[name], wait=shared is not None):
                if not (folders[name] / "metrics.json").exists():
                    claim(stage, folders[name])
                    _run_one(stage, folders, folders[name], notify)
        return _run_one(config, folders, output, notify)


def _refuse_outside(config: Mapping[str, Any]) -> None:
    by_srun = SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
    if config["stages"] and (by_srun or TorchElasticEnvironment.detect()):
        raise InputError(
            "stages: torchrun or srun started the processes, once, and each stage needs new ones; start alignlab "
            "itself, which starts those of one machine, or train each stage in an experiment of its own"
        )


def _run_one(config: dict[str, Any], folders: Mapping[str, Path], output: Path, notify: OnProgress) -> dict[str, Any]:
    """Train and judge what starts from stages that are done, or build its pairs."""
    memory.forget_peak()
    experiment = instantiate(_located(config, folders))
    if experiment.pairs is not None:
        seed_everything(experiment.pairs.seed, workers=True, verbose=False)
        return build_pairs(config, experiment, output, notify)
    seed_everything(config["seed"], workers=True, verbose=False)
    return train_and_judge(config, experiment, output, notify)


def _located(config: dict[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    """The config with what earlier stages wrote in place of their names."""
    located = {"backbone": _located_backbone(config, folders)}
    pairs = partial(_place, folders, "pairs")
    located |= {key: with_stages(config[key], pairs) for key in ("data", "evaluators")}
    return {**config, **located, "stages": {}}


def _located_backbone(config: dict[str, Any], folders: Mapping[str, Path]) -> dict[str, Any]:
    return with_stages(config["backbone"], partial(_place, folders, "backbone"))


def _place(folders: Mapping[str, Path], what: str, name: str) -> Path:
    if name not in folders:
        raise InputError(f"the stage {name!r}, which this one builds on, is not beside it; use the whole run")
    return folders[name] / what


def stage_folders(stages: Mapping[str, Any], parent: Path, by_content: bool) -> dict[str, Path]:
    """Where each stage is kept: under its name, or by its content, which is also that of the stages it builds on."""
    folders: dict[str, Path] = {}
    for name, stage in stages.items():
        named = {
            key: with_stages(stage[key], lambda name: folders[name].name) for key in ("backbone", "data", "evaluators")
        }
        folders[name] = parent / (f"{name}-{digest({**stage, **named})}" if by_content else name)
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


def load(source: Path | str) -> Backbone | DualEncoder:
    """The backbone that a finished run trained, or that any model's directory holds, in evaluation mode.

    A run's is read with the run's settings, any other in float32, or in the type that its adapters were trained beside;
    ``backbones.open_backbone`` reads it otherwise.

    Args:
        source: A run directory, one that was exported, another model's, or the name of a packaged checkpoint.

    Raises:
        InputError: There is no finished run and no model, or one whose adapters lie beside it.
    """
    folder = Path(source)
    if str(source) in packaged() or ((folder / "config.json").is_file() and not (folder / "config.yaml").is_file()):
        return _opened(str(source))
    config = _finished(folder)
    given = {"path": str(folder / "backbone"), "fresh": [], "take": None, "text_tower": None}
    given |= dict.fromkeys(("compile", "gradient_checkpointing"), False)
    kept = config["backbone"].get("features")
    given["features"] = kept if kept is not None and Path(kept).is_dir() else None  # what is gone is not made again
    backbone = open_backbone(**{**config["backbone"], **given}).eval()
    try:
        began = _located_backbone(config, _folders_of(folder, config))
        backbone.start = start_of(**{name: began[name] for name in ("path", "fresh", "take")})
    except InputError:
        backbone.start = None  # a stage by itself; only what compares with the start needs it
    return backbone


def _opened(path: str) -> Backbone | DualEncoder:
    if lies_beside(Path(path)):
        raise InputError(
            f"{path} holds a model and, beside it, adapters that are not merged; its README.md says how transformers "
            "and peft put them together, and alignlab loads the run directory that it was exported from"
        )
    dtype = (Base.read(path).dtype if is_adapted(path) else None) or "float32"
    return open_backbone(path, dtype=dtype).eval()


def evaluate_run(run_directory: Path, *, on_progress: OnProgress | None = None) -> dict[str, float]:
    """Judge a finished run's backbone again; what it finds goes to ``evaluation/`` in the run directory."""
    config, experiment = reopened(run_directory)
    quiet_libraries()
    folder = run_directory / "evaluation"
    with record.writing(folder):
        folder.mkdir(exist_ok=True)
    notify = on_progress or (lambda progress: None)
    seed_everything(config["seed"], workers=True, verbose=False)
    backbone = load(run_directory).to(device_of(experiment))
    scores, _ = evaluate(backbone, experiment, folder, lambda name: notify(Progress("evaluate", 0, 0, {})))
    record.write_json(folder / "scores.json", {"scores": scores, "versions": record.versions()})
    return scores


def reopened(run_directory: Path) -> tuple[dict[str, Any], Experiment]:
    """A finished run's config, and its objects.

    Raises:
        InputError: There is no finished run, or what it read is not where it was.
    """
    config = _finished(run_directory)
    whole = _located(config, _folders_of(run_directory, config))
    return config, instantiate({**whole, "backbone": {**config["backbone"], "fresh": [], "take": None}})


def _finished(folder: Path) -> dict[str, Any]:
    if not (folder / "metrics.json").exists():
        what = (
            "an interrupted run; `alignlab fit` with its config finishes it"
            if (folder / "config.yaml").exists()
            else "no run"
        )
        raise InputError(f"{folder} is {what}: a finished run directory holds config.yaml and metrics.json")
    return read(folder / "config.yaml")


def _folders_of(run_directory: Path, config: dict[str, Any]) -> dict[str, Path]:
    """Where the stages of a finished run are; a stage's own directory has those before it beside it."""
    file = run_directory / "stages.json"
    places = json.loads(file.read_text()) if file.exists() else {name: f"stages/{name}" for name in config["stages"]}
    named = {name for key in ("backbone", "data", "evaluators") for _, name in named_stages(config[key])}
    places |= {name: f"../{name}" for name in named - places.keys() if (run_directory / ".." / name).is_dir()}
    return {name: run_directory / place for name, place in places.items()}


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
        "`srun` command is available",
    ):
        warnings.filterwarnings("ignore", message=f".*{message}.*")
