"""options: what the commands have in common: their parser, and settings of a config given as options."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from alignlab.errors import InputError

Command = Callable[[argparse.Namespace, list[str]], int]
"""Takes the arguments and the settings that were given as options, and returns the exit code."""

EPILOG = """\
Every setting of a config file can be given as an option as well:
  alignlab fit --config experiments/mle.yaml --trainer.max_steps 300 --optimization.lr 1e-3
`alignlab objectives` lists the objectives with their settings; --print_config shows all settings of a run."""

BACKBONE = "a run directory, a backbone's directory or name"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no abbreviations."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def add_command(
    parent: Any, name: str, function: Command, help: str, *, settable: bool = False
) -> argparse.ArgumentParser:
    """Add a command to others.

    Args:
        settable: It takes settings of a config as options.
    """
    parser = parent.add_parser(
        name,
        help=help,
        description=help,
        allow_abbrev=False,
        epilog=EPILOG if settable else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function, settable=settable)
    return parser


def overrides_from(rest: Sequence[str]) -> list[str]:
    """Turn ``--a.b value`` and ``--a.b=value`` into ``a.b=value``."""
    overrides: list[str] = []
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise InputError(f"unexpected {item!r}: settings are given as --key value, e.g. --trainer.max_steps 300")
        key, given, value = item.removeprefix("--").partition("=")
        if not given:
            value = next(items, None)
            if value is None or (value.startswith("--") and len(value) > 2):
                options = ("dry-run", "print_config", "config", "output", "jobs", "launcher")
                near = difflib.get_close_matches(key, options, n=1, cutoff=0.5)
                raise InputError(f"--{key} needs a value" + (f"; did you mean --{near[0]}?" if near else ""))
        overrides.append(f"{key}={value}")
    # What names a class comes before what is said of it, in whatever order they were typed.
    return sorted(overrides, key=lambda override: override.partition("=")[0].count("."))


def split_overrides(rest: Sequence[str], section: str) -> tuple[list[str], list[str]]:
    """What is said of a section that belongs to the command, and what of the config."""
    overrides = overrides_from(rest)
    own = [override for override in overrides if override.startswith(f"{section}.")]
    return own, [override for override in overrides if override not in own]
