"""preflight: what can be known of an experiment before weights are read, a directory is made or a step is taken."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from alignlab.backbones import PARTS, Backbone, DualEncoder, open_backbone
from alignlab.backbones.batching import Batching
from alignlab.backbones.running import check_running
from alignlab.data.base import AlignmentData, check_listed, check_supplies
from alignlab.data.order import check_size
from alignlab.data.streaming import check_unlimited
from alignlab.errors import InputError
from alignlab.evaluation import Evaluator
from alignlab.experiment.config import Experiment, instantiate
from alignlab.experiment.stages import STAGE, named_stages, outlined
from alignlab.experiment.strategies import check_precision, check_strategy
from alignlab.modules.parted import start_of

SAMPLE = 64
"""Examples whose lengths are checked."""


def preflight(config: Mapping[str, Any], known: dict[str, Backbone | DualEncoder] | None = None) -> None:
    """Make everything that a resolved config names, the models without their weights, and throw it away.

    Args:
        known: What was found of stages that other configs have as well; gets what is found here.

    Raises:
        InputError: A class refuses its arguments, a file is missing or unreadable, data are too few, a sequence is
            longer than ``max_length`` allows.
    """
    stages, contents = config["stages"], {}
    known = {} if known is None else known
    for name, part in (*stages.items(), (None, config)):
        contents[f"{STAGE}{name}"] = content = _content(part, list(contents.values()))
        if content in known:
            continue
        before = known.get(contents.get(part["backbone"]["path"]))
        whole = {**part, "stages": {}, "backbone": outlined(part["backbone"], stages)}
        whole["evaluators"] = [each for each in part["evaluators"] if not any(named_stages(each))]
        start = start_of(**{name: part["backbone"][name] for name in ("path", "fresh", "take")})
        makers = makers_of(part, stages)
        if makers:
            # Of what is not there yet, no more is known than what it will be made of, and how many there can be.
            most = [maker["pairs"]["num_examples"] for maker in makers if maker["pairs"]["num_examples"] is not None]
            data = {"data": makers[-1]["data"]}
            built = {"to_be_built": part["data"], "most": min(most, default=None)}
            known[content] = check({**whole, **data}, start, before=before, **built)
        else:
            known[content] = check(whole, start, before=before)


def _content(part: Mapping[str, Any], earlier: Sequence[str]) -> str:
    """What decides whether a stage is right: its settings, but for the seed, and all earlier stages'."""
    settings = {name: value for name, value in part.items() if name not in ("stages", "seed", "wandb")}
    return hashlib.sha256(json.dumps([settings, earlier], sort_keys=True).encode()).hexdigest()


def makers_of(part: Mapping[str, Any], stages: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The stages that make a stage's data, the last one of what is there."""
    makers = []
    while named := [name for _, name in named_stages((makers or [part])[-1]["data"])]:
        makers.append(stages[named[0]])
    return makers


def check(
    config: Mapping[str, Any],
    start: str | None,
    *,
    before: Backbone | DualEncoder | None = None,
    to_be_built: Mapping[str, Any] | None = None,
    most: int | None = None,
) -> Backbone | DualEncoder:
    """``preflight`` of one stage whose backbone's directories exist.

    Args:
        start: The backbone's ``start``.
        before: What this gave for the stage that writes the backbone; None: it is there.
        to_be_built: The stage's data, where these are pairs that an earlier stage has yet to make of the config's.
        most: Examples that pairs are made of; None: all.

    Returns:
        The backbone, with what the objective added to it, on the meta device.
    """
    experiment = instantiate(config)
    trainer = _check_trainer(experiment.trainer)
    if experiment.command is None:
        check_running(experiment.backbone, trainer.strategy.root_device)
    _check_sizes(experiment, to_be_built, most, trainer.world_size)
    requires = experiment.requires
    if to_be_built is None:
        experiment.data.check_files()
    # Shapes are enough for a constructor to refuse its arguments, and on the meta device they cost nothing.
    with torch.device("meta"):
        backbone = open_backbone(**{**experiment.backbone, "fresh": PARTS, "take": None})
        backbone.start = start
        if isinstance(backbone, Backbone) and isinstance(before, Backbone):
            _hand_on(before, backbone)
        if experiment.adapter is not None:
            settings = experiment.backbone
            backbone.changed = frozenset({*settings["fresh"], *(settings["take"] or ())})  # not all parts, as here
            experiment.adapter.apply(backbone)
        try:
            objective = None if experiment.make_objective is None else experiment.make_objective(backbone)
        except (NotImplementedError, RuntimeError):
            objective = None  # a constructor that reads weights cannot do so without them; it has its say later
    if experiment.pairs is not None:
        check_listed("a stage of pairs", experiment.data)
    if experiment.pairs is not None and isinstance(backbone, DualEncoder):
        raise InputError(f"pairs need a backbone that generates text, but {backbone.path} is a dual encoder")
    if objective is not None:
        requires = objective.requires  # which may depend on its settings
        backbone.encoder.check(requires, who=type(objective).__name__)
    if objective is not None and to_be_built is None:
        check_supplies(type(objective).__name__, requires, experiment.data)
        objective.prepare(experiment.data, trainer.world_size)
    if experiment.backbone["max_length"] is not None and to_be_built is None:
        _check_lengths(experiment, backbone.encoder, requires)
    if objective is None and experiment.make_objective is not None:
        return backbone
    for evaluator in experiment.evaluators:
        evaluator.check_backbone(backbone)  # with what the objective added to it
    return backbone


def _hand_on(before: Backbone, backbone: Backbone) -> None:
    """Give a backbone the visual tokenizer, and its tokens, that an earlier stage will have saved with it."""
    if before.visual_tokenizer is not None:
        backbone.visual_tokenizer = copy.deepcopy(before.visual_tokenizer)
        if before.encoder.visual is not None:
            backbone.add_visual_tokens()


def _check_trainer(settings: Mapping[str, Any]) -> Trainer:
    """The trainer that will train."""
    if settings["log_every_n_steps"] is not None and settings["log_every_n_steps"] < 1:
        raise InputError(f"trainer.log_every_n_steps must be at least 1, got {settings['log_every_n_steps']}")
    if str(settings["precision"]).endswith("-true") and settings["precision"] != "32-true":
        raise InputError(
            f"trainer.precision: {settings['precision']} would change what models and batches are; for mixed precision "
            "use bf16-mixed or 16-mixed, for weights of another type backbone.dtype"
        )
    check_strategy(settings["strategy"])
    try:
        trainer = Trainer(**settings, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise InputError(f"trainer: {str(error).splitlines()[0]}") from error
    check_precision(trainer)
    return trainer


def _check_sizes(
    experiment: Experiment, to_be_built: Mapping[str, Any] | None, most: int | None, processes: int
) -> None:
    data, trains = experiment.data, experiment.pairs is None and experiment.command is None
    if to_be_built is not None:
        size = len(data.examples("train")) if most is None else min(len(data.examples("train")), most)
        if trains:
            check_size(size, to_be_built["init_args"].get("batch_size", 1), processes, to_be_built["class_path"])
    elif trains:
        data.check_training(processes, experiment.trainer["max_steps"])
        if data.stream() is not None:
            check_unlimited(experiment.trainer["limit_train_batches"], who=type(data).__name__)
    for evaluator in experiment.evaluators:
        judged = evaluator.judged(data)
        if judged is not data or to_be_built is None:
            _check_judged(evaluator, judged)


def check_judging(experiment: Experiment) -> None:
    """Check that evaluators have what they judge by, before a model is read.

    Raises:
        InputError: A file is missing, the data do not supply what is required, or a split is empty.
    """
    experiment.data.check_files()
    for evaluator in experiment.evaluators:
        _check_judged(evaluator, evaluator.judged(experiment.data))


def _check_judged(evaluator: Evaluator, data: AlignmentData) -> None:
    evaluator.check(data)
    if not len(data.examples(evaluator.split)):
        who, whose = type(evaluator).__name__, type(data).__name__
        raise InputError(f"{who} judges the {evaluator.split} split, which is empty in {whose}")


def _check_lengths(experiment: Experiment, encoder: Batching, requires: Sequence[str]) -> None:
    read = [(experiment.data.readable("train"), requires)]
    for evaluator in experiment.evaluators:
        sequences = tuple(name for name in evaluator.requires if name in ("conversation", "query", "target"))
        read += [(evaluator.judged(experiment.data).examples(evaluator.split), sequences)] if sequences else []
    for examples, sequences in read:
        encoder.batch([examples[index] for index in range(min(SAMPLE, len(examples)))], sequences)
