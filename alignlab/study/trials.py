"""trials: the cells of tuning, which are judged on validation data, and the arms with what was chosen by them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignlab.study.cells import Cell, Maker, share
from alignlab.study.keys import meant, slug
from alignlab.study.layers import Configs
from alignlab.study.tuning import DEFAULT, Trial, Tuning, tuned_name

SPLIT = "val"
"""What settings are chosen by; the cells of a study that are compared are judged by what their evaluators say."""


def make_trials(
    maker: Maker, cells: Sequence[Cell], configs: Configs, tried: Mapping[str, Configs], faults: list[str]
) -> tuple[list[Cell], list[Trial]]:
    """Every setting of every arm that trains, at the starts and with the seeds of tuning.

    Args:
        cells: Those of the arms to be tuned, made by the same maker.
        configs: Of these arms.
        tried: By arm and label.

    Returns:
        The cells, of which those of the same content share a directory, and what each tries.
    """
    tune = maker.file.tune
    resolved = {cell.arm: cell.config for cell in cells}
    starts = [start for start in maker.starts(configs) if not tune.starts or start.name in tune.starts]
    starts = starts if tune.starts else starts[:1]
    made, tries = [], []
    for arm, whole in resolved.items():
        evaluators = list(_validating(whole))
        faults += _unjudged(arm, tune.metric.get(arm), evaluators, whole)
        for label, config in {DEFAULT: configs[arm], **tried[arm]}.items():
            if config.get("evaluators") != configs[arm].get("evaluators"):
                faults.append(f"tune: settings: {label}: evaluators: what judges is the same for all settings")
            place = f"{slug(arm)}/tune-{slug(label)}-"
            of_setting = maker.cells(
                trying(arm, label), {**config, "evaluators": evaluators}, starts, tune.seeds, place
            )
            made += of_setting
            tries += [(arm, label)] * len(of_setting)
    cells = share(made, ())[0]
    return list(cells), [Trial(*what, cell.directory, cell.digest) for what, cell in zip(tries, cells, strict=True)]


def trying(arm: str, label: str) -> str:
    """What a cell of tuning is called."""
    return f"{arm}, trying {label}"


def _validating(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The evaluators of a resolved config on validation data; those that have no such split are left out."""
    for evaluator in config["evaluators"]:
        settings = evaluator["init_args"]
        data = settings.get("data") or config["data"]
        if "split" in settings and SPLIT in _splits(data, config["python_path"]):
            yield {**evaluator, "init_args": {**settings, "split": SPLIT}}


def seen(cells: Sequence[Cell]) -> list[str]:
    """A note where the arms that are compared are judged by the data that settings are chosen by."""
    arms = dict.fromkeys(
        cell.arm for cell in cells for each in cell.config["evaluators"] if each["init_args"].get("split") == SPLIT
    )
    what = "evaluators judge validation data, which settings are chosen by; tuned, it looks better there than it is"
    return [f"{', '.join(arms)}: {what}."] if arms else []


def _splits(data: Mapping[str, Any], folders: Sequence[str]) -> Sequence[str]:
    """The splits of data; where only made data know theirs, that of tuning is looked for when they are made."""
    from alignlab.experiment.catalogue import find, kind_called

    splits = find(kind_called("data module"), data["class_path"], folders)[1].splits
    return splits if isinstance(splits, tuple) else (SPLIT,)


def _unjudged(
    arm: str, metric: str | None, evaluators: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> list[str]:
    """What is wrong where no evaluator on validation data gives an arm's metric."""
    from alignlab.experiment.catalogue import find, kind_called

    kind, folders = kind_called("evaluator"), config["python_path"]
    labels = [each["init_args"].get("label") or find(kind, each["class_path"], folders)[1].name for each in evaluators]
    if metric is None or any(metric.startswith(f"{label}/") for label in labels):
        return []
    there = meant(metric.partition("/")[0], labels) if labels else ""
    return [f"tune: metric: no evaluator of {arm} with a {SPLIT} split gives {metric}{there}"]


def make_tuned(
    maker: Maker, tuning: Tuning, cells: Sequence[Cell], configs: Configs, tried: Mapping[str, Configs]
) -> tuple[list[Cell], dict[str, str]]:
    """The arms of which a setting was chosen, with their cells, and what each is compared with.

    Where what an arm is compared with has no tuned version, its own is compared with it as it is.
    """
    made: list[Cell] = []
    file = maker.file
    starts = maker.starts(configs)
    names = [arm for arm in configs if tuning.chosen.get(arm) is not None]
    for arm in names:
        label = tuning.chosen[arm]
        config = configs[arm] if label == DEFAULT else tried[arm][label]
        seeds = list(dict.fromkeys(cell.seed for cell in cells if cell.arm == arm))
        made += maker.cells(tuned_name(arm), config, starts, seeds, f"{slug(tuned_name(arm))}/")
    there = {tuned_name(arm) for arm in names}
    against = {}
    for arm in names:
        if arm != file.baseline:
            reference = file.against.get(arm, file.baseline)
            against[tuned_name(arm)] = tuned_name(reference) if tuned_name(reference) in there else reference
    return made, against
