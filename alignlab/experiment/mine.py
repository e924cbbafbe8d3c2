"""mine: what ``alignlab mine`` does: hard negatives of a config's data, by a backbone, in one file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignlab.batch import Content, Example
from alignlab.data.base import Split, check_listed, check_supplies
from alignlab.data.identity import fingerprint_of
from alignlab.data.mined import FORMAT, VERSION, Mined
from alignlab.data.mining import Audit, Embedded, Filter, Found, audit, embed_examples, mine
from alignlab.data.teachers import BackboneTeacher
from alignlab.errors import InputError
from alignlab.experiment.config import instantiate
from alignlab.experiment.opening import SPLITS, OnProgress, backbone_named, data_in_words
from alignlab.experiment.record import replacing, writing

NUM_SHOWN = 5
"""Queries that are printed for a person to look at."""

NUM_LISTED = 4
"""Negatives that are printed of each."""


@dataclass(frozen=True)
class Settings:
    """How negatives are mined.

    Args:
        num_negatives: Of a query.
        skip: The nearest that are left out.
        margin: See ``Filter``.
        ratio: See ``Filter``.
        keep_groups: Do not drop what shares the query's group, so that the filter alone has to find it.
    """

    num_negatives: int = 8
    skip: int = 0
    margin: float | None = None
    ratio: float | None = None
    keep_groups: bool = False


@dataclass(frozen=True)
class Mining:
    """What was mined of one split.

    Args:
        audit: What is known of it where the examples have groups, else None.
    """

    examples: Sequence[Example]
    embedded: Embedded
    found: Found
    audit: Audit | None


def mine_data(
    config: Mapping[str, Any],
    output: Path,
    model: str,
    settings: Settings,
    *,
    batch_size: int = 64,
    on_progress: OnProgress = lambda what, done, total: None,
) -> dict[Split, Mining]:
    """Write the hard negatives of the train and val split of a resolved config's data.

    Raises:
        InputError: The file is there, but of other data, another model or other settings, or something else.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {batch_size}")
    Filter(settings.margin, settings.ratio)
    experiment = instantiate({**config, "stages": {}})
    check_supplies("alignlab mine", ("query", "target"), experiment.data)
    check_listed("alignlab mine", experiment.data)
    teacher = BackboneTeacher(backbone_named(model, experiment), model)
    splits = {split: experiment.data.examples(split) for split in SPLITS}
    provenance = {
        "format": FORMAT,
        "version": VERSION,
        "alignlab": version("alignlab"),
        "model": model,
        "model_fingerprint": teacher.fingerprint,
        "data": data_in_words(config),
        "splits": {split: len(examples) for split, examples in splits.items()},
        "settings": asdict(settings),
    }
    _refuse_other(output, provenance)
    mined = {
        split: _mine_split(teacher, split, examples, settings, batch_size, on_progress)
        for split, examples in splits.items()
        if len(examples)
    }
    provenance["data_fingerprint"] = fingerprint_of(h for each in mined.values() for h in each.embedded.hashes)
    _refuse_other(output, provenance)
    _write(output, provenance, mined)
    return mined


def _refuse_other(output: Path, provenance: Mapping[str, Any]) -> None:
    """Raise InputError if the file is there and differs in what is known of the new one."""
    if not output.exists():
        return
    try:
        there = Mined(output).provenance
    except InputError:
        there = {}
    if differing := [name for name, value in provenance.items() if there.get(name) != value]:
        what = f"differs in {', '.join(differing)}" if there else "is no such file"
        raise InputError(f"{output} is there already, and {what}; choose another --output, or move it away")


def _mine_split(
    teacher: BackboneTeacher,
    split: Split,
    examples: Sequence[Example],
    settings: Settings,
    batch_size: int,
    on_progress: OnProgress,
) -> Mining:
    embedded = embed_examples(
        teacher,
        split,
        examples,
        batch_size=batch_size,
        on_batch=lambda done, total: on_progress(f"embedding {split}", done, total),
    )
    device, filter = teacher.backbone.device, Filter(settings.margin, settings.ratio)
    vectors = [each.to(device) for each in (embedded.queries, embedded.targets, embedded.own)]
    blind = {rule: label.to(device) for rule, label in embedded.same.items() if rule != "group"}

    def search(what: str, same: Mapping[str, torch.Tensor], by: Filter) -> Found:
        return mine(
            *vectors,
            same=same,
            num_negatives=settings.num_negatives,
            skip=settings.skip,
            filter=by,
            on_block=lambda done, total: on_progress(f"{what} {split}", done, total),
        )

    kept = found = search("mining", blind, filter)
    if not settings.keep_groups:
        found = search("mining without groups", {**blind, "group": embedded.same["group"].to(device)}, filter)
    if not any(examples[index].group for index in range(min(len(examples), NUM_SHOWN))):
        return Mining(examples, embedded, found, None)
    nearest = search("mining without filter", blind, Filter())
    return Mining(examples, embedded, found, audit(nearest, kept, embedded.own, embedded.same["group"], filter))


def _write(output: Path, provenance: Mapping[str, Any], mined: Mapping[Split, Mining]) -> None:
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as file:
        file.write(json.dumps(provenance).encode() + b"\n")
        for split, mining in mined.items():
            for row in range(len(mining.examples)):
                file.write(json.dumps(_line(split, mining, row)).encode() + b"\n")


def _line(split: Split, mining: Mining, row: int) -> dict[str, Any]:
    ids, found = mining.embedded.ids, mining.found
    columns = found.index[row][found.index[row] >= 0]
    pairs = zip(mining.embedded.first[columns].tolist(), found.score[row].tolist(), strict=False)
    return {
        "split": split,
        "id": ids[row],
        "target": f"{mining.embedded.hashes[row]:016x}",
        "positive": round(found.positive[row].item(), 6),
        "negatives": [{"id": ids[index], "index": index, "score": round(score, 6)} for index, score in pairs],
        "dropped": {rule: int(counts[row]) for rule, counts in found.dropped.items()},
    }


def show(mined: Mapping[Split, Mining]) -> None:
    """Print a few queries with their negatives, and what was kept and dropped."""
    console = Console()
    mining = mined["train"]
    table = Table(title="a sample of the train split", title_justify="left", show_lines=True)
    for column in ("query", "its target", "cosine", "negatives, with their cosines"):
        table.add_column(column)
    size = len(mining.examples)
    for row in range(0, size, -(-size // NUM_SHOWN)):
        example, line = mining.examples[row], _line("train", mining, row)
        negatives = [
            f"{negative['score']:.3f} {_text(mining.examples[negative['index']].target)}"
            for negative in line["negatives"][:NUM_LISTED]
        ]
        asked = f"{example.id}: {_text(example.query)}"
        table.add_row(
            escape(asked), escape(_text(example.target)), f"{line['positive']:.3f}", escape("\n".join(negatives))
        )
    console.print(table)
    console.print(_summary(mined))


def _text(content: Content) -> str:
    return " ".join(part if isinstance(part, str) else "[picture]" for part in content)


def _summary(mined: Mapping[Split, Mining]) -> Table:
    table = Table("", *mined, title="what was mined", title_justify="left")
    rows: dict[str, list[str]] = {}
    for mining in mined.values():
        found, size = mining.found, len(mining.examples)
        counts = (found.index >= 0).sum(1)
        said = {
            "queries": f"{size}",
            "with fewer negatives than asked for": f"{int((counts < found.index.shape[1]).sum())}",
            "median cosine of the positives": f"{found.positive.median():.3f}",
            "median cosine of the negatives": _number(found.score[found.index >= 0]),
        }
        for rule, dropped in found.dropped.items():
            what = "dropped by the filter" if rule == "filter" else f"dropped for the same {rule}"
            said[f"{what}: per query, and queries it touched"] = (
                f"{dropped.double().mean():.2f}, {(dropped > 0).double().mean():.1%}"
            )
        if mining.audit is not None:
            said |= {
                "of the nearest, in the query's group": _percent(mining.audit.false_before),
                "of those the filter keeps": _percent(mining.audit.false_after),
                "precision of the filter": _percent(mining.audit.precision),
                "recall of the filter": _percent(mining.audit.recall),
            }
        for name, value in said.items():
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def _number(values: torch.Tensor) -> str:
    return f"{values.median():.3f}" if len(values) else "none"


def _percent(share: float | None) -> str:
    return "nothing to judge" if share is None else f"{share:.1%}"
