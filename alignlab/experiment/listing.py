"""What there is to choose from, for the command line to print."""

import inspect
from dataclasses import dataclass

from alignlab.experiment.catalogue import arguments, kind_called
from alignlab.experiment.checking import plain
from alignlab.experiment.reading import show
from alignlab.experiment.wording import in_words


@dataclass(frozen=True)
class Setting:
    """One argument of a class: its type in words, its default as YAML, and what it means."""

    name: str
    type: str
    default: str
    doc: str


@dataclass(frozen=True)
class ObjectiveInfo:
    """What the catalogue says of an objective.

    Args:
        name: What a config writes.
        summary: What it does, the first line of its module.
        requires: The fields of Example that it needs; empty where its parts decide.
        settings: The arguments that a config can give.
    """

    name: str
    summary: str
    requires: tuple[str, ...]
    settings: tuple[Setting, ...]


def describe_objectives() -> list[ObjectiveInfo]:
    """All objectives of alignlab, by name."""
    kind = kind_called("objective")
    described = []
    for name, owner in sorted(kind.classes().items()):
        line = (inspect.getmodule(owner).__doc__ or "").strip().partition("\n")[0]
        settings = tuple(
            Setting(argument, in_words(it.annotation), "(required)" if it.required else show(plain(it.default)), it.doc)
            for argument, it in arguments(owner).items()
            if argument not in kind.given
        )
        described.append(ObjectiveInfo(name, line.removeprefix(f"{name}: "), tuple(owner.requires), settings))
    return described
