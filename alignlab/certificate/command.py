"""command: what ``alignlab certify`` does."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignlab.backbones.opening import embeds_only
from alignlab.certificate.certify import NUM_EXAMPLES, certify
from alignlab.certificate.findings import Certificate
from alignlab.errors import InputError
from alignlab.experiment.config import describe_objectives, instantiate, resolve_file

SETTINGS = {
    "Mixture": ["objective.parts={likelihood: MLE, contrast: InfoNCE}"],
    "LLM2CLIP": ["backbone.text_tower=scenes-parts"],
    "LaVITTokenizer": [f"objective.{name}" for name in ("depth=1", "num_heads=4", "mlp_ratio=1.5", "code_dim=4")],
}
"""Of shipped objectives that cannot do without, or whose own parts should be as tiny as the model."""


def certify_named(name: str, overrides: Sequence[str]) -> Certificate:
    """Certify the objective of a config file, or one by its name or class path with its settings.

    Args:
        name: Of a config, the objective, data and adapter count, and whether the backbone is a dual encoder; without
            one, the examples are the lab's.
        overrides: Settings, as ``objective.scale=20``.

    Raises:
        InputError: There is no such objective, or the data lack what it requires.
    """
    if name.endswith((".yaml", ".yml")):
        config = resolve_file(Path(name), overrides)
    else:
        config = resolve_file(None, [f"objective={name}", "data=Scenes", *SETTINGS.get(name, ()), *overrides])
    experiment = instantiate({**config, "stages": {}})
    if experiment.make_objective is None:
        raise InputError(f"{name} trains by a command; a certificate is an objective's")
    examples = experiment.data.readable("train")
    first = [examples[index] for index in range(min(NUM_EXAMPLES, len(examples)))]
    dual = embeds_only(**{name: experiment.backbone[name] for name in ("path", "text_tower")})
    return certify(experiment.make_objective, first, adapter=experiment.adapter, dual=dual)


def run(names: Sequence[str], overrides: Sequence[str], *, as_json: bool) -> int:
    """Certify, print, and return the exit code: 1 if a property fails.

    Args:
        names: None for all shipped objectives.
    """
    console, certificates = Console(), []
    for name in names or [entry.name for entry in describe_objectives()]:
        with console.status(f"certifying {name}", spinner="line"):
            certificates.append(certify_named(name, overrides))
        if not as_json:
            console.print(table(certificates[-1]))
    if as_json:
        print(json.dumps([certificate.as_dict() for certificate in certificates], indent=2))
    return 0 if all(certificate.holds for certificate in certificates) else 1


def table(certificate: Certificate) -> Table:
    """The findings, a line each."""
    shown = Table(title=f"{certificate.objective}: {'holds' if certificate.holds else 'FAILS'}", title_justify="left")
    for column in ("property", "verdict", "worst deviation", "bound", "note"):
        shown.add_column(column, justify="right" if column in ("worst deviation", "bound") else "left")
    for each in certificate.findings:
        style = {"fails": "bold red", "n/a": "dim"}.get(each.verdict)
        shown.add_row(
            each.property, each.verdict, *map(_number, (each.deviation, each.bound)), escape(each.note), style=style
        )
    return shown


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"
