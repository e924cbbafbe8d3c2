"""examination: what an evaluator asked a cell, read from what the cell left behind."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignlab.study.state import read_lines

IRRELEVANT = ("data", "batch_size", "num_pictures", "label", "blind")
"""Settings of evaluators that change no sighted score, and the data, which the examples show."""

_NONE = object()


@dataclass(frozen=True)
class Examination:
    """One evaluator's settings and examples.

    Args:
        settings: Its class and arguments, without those that change no score; empty where they are not known.
        examples: Prompt and reference by the example's id; empty where nothing was written down item by item.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    examples: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def examinations(directory: Path, scores: Iterable[str]) -> dict[str, Examination]:
    """What the evaluators of a finished run asked, by their labels.

    Args:
        scores: Names of the run's scores, in the order in which the evaluators gave them.
    """
    labels = list(dict.fromkeys(name.partition("/")[0] for name in scores))
    evaluators = read_config(directory).get("evaluators") or []
    settings = map(_settings, evaluators) if len(evaluators) == len(labels) else ({} for _ in labels)
    return {label: Examination(own, _examples(directory, label)) for label, own in zip(labels, settings, strict=True)}


def read_config(directory: Path) -> dict[str, Any]:
    """A run's resolved config as plain values; empty where there is none."""
    file = directory / "config.yaml"
    if not file.is_file():
        return {}
    content = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
    return content if isinstance(content, dict) else {}


# The one in C takes 3 ms for a config, the other 30; a distribution may lack it.
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def _settings(evaluator: Mapping[str, Any]) -> dict[str, Any]:
    arguments = evaluator.get("init_args") or {}
    kept = {name: value for name, value in arguments.items() if name not in IRRELEVANT}
    return {"class": str(evaluator.get("class_path")).rpartition(".")[2], **kept}


def _examples(directory: Path, label: str) -> dict[str, tuple[Any, Any]]:
    lines = read_lines(directory / "items" / f"{label}.jsonl")
    return {str(line.get("id")): (line.get("prompt"), line.get("reference")) for line in lines}


def unlike(ours: Examination, theirs: Examination) -> Iterator[str]:
    """In what two examinations differ, in a few words each."""
    if ours.settings and theirs.settings:
        for name in dict.fromkeys((*ours.settings, *theirs.settings)):
            values = [each.settings.get(name, _NONE) for each in (ours, theirs)]
            if values[0] != values[1]:
                yield f"{name} {' against '.join('none' if value is _NONE else str(value) for value in values)}"
    if not ours.examples or not theirs.examples:
        return
    common = ours.examples.keys() & theirs.examples.keys()
    if len(common) < max(len(ours.examples), len(theirs.examples)):
        yield f"{len(ours.examples)} examples against {len(theirs.examples)}, of which {len(common)} are the same"
    for place, what in enumerate(("prompts", "references")):
        if any(ours.examples[id][place] != theirs.examples[id][place] for id in common):
            yield f"other {what}"
