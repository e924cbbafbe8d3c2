"""judging: any model, whoever trained it, judged by the data and evaluators of a config."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything

from alignlab.backbones import Backbone, DualEncoder, packaged
from alignlab.backbones.plain import lies_beside
from alignlab.errors import InputError
from alignlab.experiment import record
from alignlab.experiment.config import digest, dump, instantiate, resolve_file
from alignlab.experiment.opening import backbone_named, check_there, is_run
from alignlab.experiment.preflight import check_judging
from alignlab.experiment.reading import parse_override
from alignlab.experiment.run import quiet_libraries
from alignlab.experiment.stages import DEVICES
from alignlab.experiment.training import OnProgress, Progress, evaluate
from alignlab.modules.fingerprints import weights_fingerprint

KEPT = {
    "backbone": ("dtype", "attention", "max_length"),
    "data": None,
    "evaluators": None,
    "trainer": DEVICES,
    "seed": None,
    "python_path": None,
}
"""The keys of a config that decide what a finished model scores, and of some which settings; None: all."""

TRAINING = (
    "objective", "adapter", "optimization", "stages", "pairs", "command", "wandb", "checkpoint_every", "save_dtype",
)  # fmt: skip
"""The keys that do not."""

CONFIG, IDENTITY, SCORES = "evaluation.yaml", ".identity", "scores.json"
"""What an evaluation's directory has: what it was judged by, what decides its scores, and these, written last."""


@dataclass(frozen=True)
class Judged:
    """Where a model's scores are.

    Args:
        was_there: Whether they had been found before, and nothing was computed.
    """

    scores: dict[str, float]
    folder: Path
    was_there: bool


def judge(
    source: str,
    config: Path,
    overrides: Sequence[str] = (),
    *,
    output: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Judged:
    """Judge a model by a config's data and evaluators; its objective, and where it would start, do not matter.

    The type, attention and longest sequence are those of the config, unless the model is a run's, which has its own.

    Args:
        source: A run directory, any model's directory, the name of a packaged checkpoint or on the hub.
        config: An experiment's YAML.
        overrides: Settings laid over it, ``key=value``.
        output: A new directory, or that of the same evaluation; None: ``runs/evaluate/NAME-HASH``.

    Raises:
        InputError: There is no such model, the config has no evaluators, one of them cannot judge this model or these
            data, or ``output`` holds something else.
    """
    quiet_libraries()
    _check_source(source)
    resolved = resolve_file(config, _judging(overrides), part=judging_part)
    if not resolved["evaluators"]:
        raise InputError(f"{config} names no evaluators; give some, e.g. --evaluators '[CaptionAccuracy, Retrieval]'")
    experiment = instantiate(resolved)
    check_judging(experiment)
    seed_everything(resolved["seed"], workers=True, verbose=False)
    backbone = backbone_named(source, experiment, option="evaluate")
    for evaluator in experiment.evaluators:
        evaluator.check_backbone(backbone)
    identity = _identity(backbone, resolved)
    folder = output or Path("runs") / "evaluate" / f"{Path(source).absolute().name}-{identity[:8]}"
    _refuse_other(folder, identity)
    with record.locked(folder):
        if (folder / SCORES).exists():
            return Judged(json.loads((folder / SCORES).read_text())["scores"], folder, was_there=True)
        record.write(folder / IDENTITY, identity)
        record.write(folder / CONFIG, f"# alignlab evaluate {source} --config THIS_FILE\n" + dump(resolved))
        record.write_json(folder / "versions.json", record.versions())
        notify = on_progress or (lambda progress: None)
        scores, _ = evaluate(backbone, experiment, folder, lambda name: notify(Progress("evaluate", 0, 0, {})))
        record.write_json(folder / SCORES, {"source": source, "identity": identity, "scores": scores})
    return Judged(scores, folder, was_there=False)


def judging_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config as it was read, what decides what a finished model scores."""
    kept = {name: value for name, value in config.items() if name not in TRAINING}
    for name, settings in KEPT.items():
        if settings is not None and isinstance(kept.get(name), Mapping):
            kept[name] = {key: value for key, value in kept[name].items() if key in settings}
    return kept


def _judging(overrides: Sequence[str]) -> Sequence[str]:
    """The overrides, of which each has an effect."""
    for override in overrides:
        key, _ = parse_override(override)
        settings = KEPT.get(key[0])
        if key[0] in TRAINING or (settings is not None and key[1:] and key[1] not in settings):
            raise InputError(
                f"evaluate: {'.'.join(key)} has no effect on a model that is trained already; leave it out"
            )
    return overrides


def _check_source(source: str) -> None:
    """Raise InputError for what can be seen to be no model that is read whole."""
    folder = Path(source)
    if source in packaged() or is_run(folder):
        return
    check_there("evaluate", source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(
            f"evaluate: {source} is neither a run directory (config.yaml, metrics.json) nor a model's (config.json)"
        )
    if lies_beside(folder):
        raise InputError(
            f"evaluate: {source} holds a model and, beside it, adapters that are not merged, which alignlab does not "
            "read together; judge the run directory that it was exported from"
        )


def _identity(backbone: Backbone | DualEncoder, config: Mapping[str, Any]) -> str:
    """What decides the scores: config, weights, words, how pictures are processed, and alignlab's version."""
    known = [digest(config), weights_fingerprint(backbone), version("alignlab")]
    if isinstance(backbone, Backbone):
        known += [backbone.encoder.tokenizer_fingerprint(), backbone.encoder.image_fingerprint()]
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:16]


def _refuse_other(folder: Path, identity: str) -> None:
    """Raise InputError if there is anything but this evaluation, finished or not."""
    if not folder.exists():
        return
    if not folder.is_dir() or any(not entry.name.startswith(".") for entry in folder.iterdir()):
        file = folder / IDENTITY
        if not file.is_file() or file.read_text() != identity:
            what = "an evaluation of another model or config" if file.is_file() else "something else"
            raise InputError(f"{folder} holds {what}; choose another --output, or move it away")
