"""cli: the command line; heavy libraries are imported by the command that needs them."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignlab.cli.making import add_makers
from alignlab.cli.options import BACKBONE, EPILOG, Parser, add_command, overrides_from
from alignlab.cli.study import add_study
from alignlab.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (something failed), 2 (bad input), 130 (interrupted)."""
    try:
        arguments, rest = _parse(list(sys.argv[1:] if argv is None else argv))
        return arguments.command(arguments, rest)
    except InputError as error:
        # A loader's worker sends its whole traceback as the message; from our error's name on it is ours.
        names = "|".join(each.__name__ for each in (InputError, *InputError.__subclasses__()))
        message = re.split(rf"^[\w.]*\b(?:{names}): ", str(error), flags=re.MULTILINE)[-1].strip()
        print(f"alignlab: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("alignlab: interrupted; the same command goes on from what is saved", file=sys.stderr)
        return 130


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser, commands = _make_parser()
    _refuse_options_before_command(argv, tuple(commands.choices))
    arguments, rest = parser.parse_known_args(argv)
    if arguments.version:
        arguments.command = _version
    elif not hasattr(arguments, "command"):
        parser.print_help()
        arguments.command = lambda arguments, rest: 0
    if rest and not arguments.settable:
        raise InputError(f"unrecognised: {' '.join(rest)}")
    return arguments, rest


def _make_parser() -> tuple[argparse.ArgumentParser, Any]:
    parser = Parser(
        prog="alignlab",
        description="Which alignment objective helps, on the same backbone, data, budget and evaluation.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.set_defaults(settable=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)

    fit = add_command(commands, "fit", _fit, "train one objective and evaluate the backbone it gives", settable=True)
    fit.add_argument("--config", type=Path, metavar="FILE", help="an experiment's YAML; give options for what differs")
    fit.add_argument("--output", type=Path, metavar="DIR", help="run directory (default: runs/NAME-HASH)")
    fit.add_argument(
        "--print_config", action="store_true", help="print the full config and exit; the output runs again"
    )
    fit.add_argument(
        "--dry-run", action="store_true", help="print parameters, sequences, memory and time a step; train nothing"
    )
    evaluate = add_command(
        commands, "evaluate", _evaluate, "evaluate a finished run again, or any model by a config", settable=True
    )
    evaluate.add_argument("source", metavar="SOURCE", help=f"{BACKBONE}; a run alone is judged by its own config")
    evaluate.add_argument("--config", type=Path, metavar="FILE", help="an experiment's YAML, whose evaluators judge")
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="(default: runs/evaluate/NAME-HASH)")
    inspect = add_command(
        commands, "inspect", _inspect, "write a page with examples as the model will see them", settable=True
    )
    inspect.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML")
    inspect.add_argument("--output", type=Path, metavar="FILE", help="the page (default: runs/inspect/NAME.html)")
    add_makers(commands)
    export = add_command(
        commands, "export", _export, "write a finished run's backbone for plain transformers, adapters merged"
    )
    export.add_argument("source", type=Path, metavar="RUN_DIR", help="a run directory, or a backbone's")
    export.add_argument("output", type=Path, metavar="OUT", help="a directory that is not there yet, or empty")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as they are)"
    )
    certify = add_command(
        commands, "certify", _certify, "show that nothing silently changes an objective's gradients", settable=True
    )
    certify.add_argument("objective", nargs="?", metavar="OBJECTIVE", help="a name, a class path, or a config's YAML")
    certify.add_argument("--all", action="store_true", help="all objectives of alignlab")
    certify.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_command(commands, "objectives", _objectives, "list the objectives, what they require and their settings")
    add_study(commands)
    return parser, commands


def _refuse_options_before_command(argv: list[str], commands: tuple[str, ...]) -> None:
    first = next((argument for argument in argv if argument in commands), None)
    before = argv[: argv.index(first)] if first else argv
    options = [argument for argument in before if argument.startswith("--") and argument not in ("--help", "--version")]
    if options:
        where = f"alignlab {first} {options[0]} ..." if first else f"alignlab COMMAND {options[0]} ..."
        raise InputError(f"{options[0]} must come after the command: {where} (commands: {', '.join(commands)})")


def _version(arguments: argparse.Namespace, rest: list[str]) -> int:
    from importlib.metadata import version

    print(f"alignlab {version('alignlab')}")
    return 0


def _fit(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.config import digest, dump, resolve_file

    config = resolve_file(arguments.config, overrides_from(rest))
    if arguments.print_config:
        print(dump(config), end="")
        return 0
    if arguments.dry_run:
        from alignlab.experiment.dryrun import dry_run

        dry_run(config)
        return 0
    from alignlab.experiment.run import run
    from alignlab.experiment.show import progress_bar, scores_table
    from alignlab.experiment.throughput import in_words

    objective = config["objective"] or {"class_path": "command"}
    name = arguments.config.stem if arguments.config else objective["class_path"].rpartition(".")[2].lower()
    output = arguments.output or Path("runs") / f"{name}-{digest(config)}"
    finished = (output / "metrics.json").exists()
    with progress_bar() as on_progress:
        metrics = run(config, output, on_progress=on_progress)
    if finished:
        print(f"{output} is finished already; nothing was computed")
    scores_table(metrics["scores"])
    if line := in_words(metrics.get("throughput")):
        print(f"training: {line}")
    print(f"run directory: {output}")
    return 0


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.run import evaluate_run
    from alignlab.experiment.show import scores_table

    if arguments.config is None:
        if rest or arguments.output is not None:
            raise InputError(
                f"evaluate: {rest[0] if rest else '--output'} goes with --config FILE, whose data and evaluators judge"
            )
        if Path(arguments.source, "config.json").is_file():
            raise InputError(f"{arguments.source} is a model, and no run; say by --config FILE what it is judged by")
        scores_table(evaluate_run(Path(arguments.source)))
        return 0
    from alignlab.experiment.judging import judge

    judged = judge(arguments.source, arguments.config, overrides_from(rest), output=arguments.output)
    if judged.was_there:
        print(f"{judged.folder} is finished already; nothing was computed")
    scores_table(judged.scores)
    print(f"evaluation: {judged.folder}")
    return 0


def _inspect(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.config import resolve_file
    from alignlab.experiment.inspect import inspect

    config = resolve_file(arguments.config, overrides_from(rest))
    page = arguments.output or Path("runs") / "inspect" / f"{arguments.config.stem}.html"
    print(f"page: {inspect(config, page)}")
    return 0


def _export(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.export import export
    from alignlab.experiment.run import quiet_libraries

    quiet_libraries()
    reason = export(arguments.source, arguments.output, dtype=arguments.dtype)
    if reason is not None:
        print(f"adapters not merged: {reason}; README.md says how both are loaded")
    print(f"model: {arguments.output}")
    return 0


def _certify(arguments: argparse.Namespace, rest: list[str]) -> int:
    if arguments.all == (arguments.objective is not None):
        raise InputError("certify needs an objective, e.g. `alignlab certify InfoNCE`, or --all, and not both")
    from alignlab.certificate.command import run

    return run([arguments.objective] if arguments.objective else [], overrides_from(rest), as_json=arguments.json)


def _objectives(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.show import objectives_catalogue

    objectives_catalogue()
    return 0
