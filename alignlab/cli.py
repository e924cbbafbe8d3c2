"""cli: the command line; heavy libraries are imported by the command that needs them."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from alignlab.errors import InputError

EPILOG = """\
Every setting of a config file can be given as an option as well:
  alignlab fit --config experiments/mle.yaml --trainer.max_steps 300 --optimization.lr 1e-3
`alignlab objectives` lists the objectives with their settings; --print_config shows all settings of a run."""

PAIRS_EPILOG = """\
How pairs are built is given as options --pairs.KEY (corruption, num_examples, max_new_tokens, batch_size, drop_equal,
min_tokens, keep_cut, seed), and settings of the config as any other:
  alignlab pairs experiments/mle.yaml --model runs/mle --output pairs --pairs.corruption DiffusionNoise \\
    --pairs.corruption.step 800 --pairs.num_examples 2000 --pairs.max_new_tokens 64 --data.num_objects "[2, 4]"
"""

STUDY_EPILOG = """\
Settings of the study file, or of every cell, are given as options --key value. With --launcher slurm, so is what a job
asks for: --slurm.partition, --slurm.time (minutes), --slurm.gpus_per_node, --slurm.cpus, --slurm.memory (GiB), and any
other option of sbatch as --slurm.OPTION; --jobs is how many jobs may run at a time:
  alignlab study run study.yaml --launcher slurm --jobs 8 --slurm.partition gpu --slurm.time 240 --slurm.gpus_per_node 1
"""

BACKBONE = "a run directory, a backbone's directory or name"


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and no abbreviations."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


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
    if rest and arguments.command not in SETTABLE:
        raise InputError(f"unrecognised: {' '.join(rest)}")
    return arguments, rest


def _make_parser() -> tuple[argparse.ArgumentParser, Any]:
    parser = _Parser(
        prog="alignlab",
        description="Which alignment objective helps, on the same backbone, data, budget and evaluation.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    fit = _command(commands, "fit", _fit, "train one objective and evaluate the backbone it gives")
    fit.add_argument("--config", type=Path, metavar="FILE", help="an experiment's YAML; give options for what differs")
    fit.add_argument("--output", type=Path, metavar="DIR", help="run directory (default: runs/NAME-HASH)")
    fit.add_argument(
        "--print_config", action="store_true", help="print the full config and exit; the output runs again"
    )
    fit.add_argument(
        "--dry-run", action="store_true", help="print parameters, sequences, memory and time a step; train nothing"
    )
    evaluate = _command(commands, "evaluate", _evaluate, "evaluate a finished run again, or any model by a config")
    evaluate.add_argument("source", metavar="SOURCE", help=f"{BACKBONE}; a run alone is judged by its own config")
    evaluate.add_argument("--config", type=Path, metavar="FILE", help="an experiment's YAML, whose evaluators judge")
    evaluate.add_argument("--output", type=Path, metavar="DIR", help="(default: runs/evaluate/NAME-HASH)")
    inspect = _command(commands, "inspect", _inspect, "write a page with examples as the model will see them")
    inspect.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML")
    inspect.add_argument("--output", type=Path, metavar="FILE", help="the page (default: runs/inspect/NAME.html)")
    embed = _command(commands, "embed", _embed, "write a teacher's embeddings of the data's targets into one file")
    embed.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML, whose data are read")
    embed.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help="the file (safetensors), for data.embeddings"
    )
    embed.add_argument("--model", metavar="MODEL", required=True, help=f"{BACKBONE}, or a sentence-transformers model")
    embed.add_argument("--batch_size", type=int, metavar="N", default=64, help="targets a forward pass (default: 64)")
    _add_mine(commands)
    pairs = _command(commands, "pairs", _pairs, "write preference pairs of a backbone's own answers, for DPO")
    pairs.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML, whose data are read")
    pairs.add_argument("--output", type=Path, metavar="DIR", required=True, help="the folder (parquet files, as trl's)")
    pairs.add_argument("--model", metavar="MODEL", required=True, help=BACKBONE)
    pairs.epilog = PAIRS_EPILOG
    export = _command(
        commands, "export", _export, "write a finished run's backbone for plain transformers, adapters merged"
    )
    export.add_argument("source", type=Path, metavar="RUN_DIR", help="a run directory, or a backbone's")
    export.add_argument("output", type=Path, metavar="OUT", help="a directory that is not there yet, or empty")
    export.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: as they are)"
    )
    certify = _command(commands, "certify", _certify, "show that nothing silently changes an objective's gradients")
    certify.add_argument("objective", nargs="?", metavar="OBJECTIVE", help="a name, a class path, or a config's YAML")
    certify.add_argument("--all", action="store_true", help="all objectives of alignlab")
    certify.add_argument("--json", action="store_true", help="print JSON instead of tables")
    _command(commands, "objectives", _objectives, "list the objectives, what they require and their settings")
    study = commands.add_parser(
        "study",
        help="compare objectives: run a study, see how far it is, write its report again",
        allow_abbrev=False,
    )
    study_commands = study.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    start = _command(study_commands, "run", _study_run, "run every cell of a study that is not finished, then report")
    start.add_argument("study", type=Path, metavar="STUDY", help="the study's YAML")
    start.add_argument("--output", type=Path, metavar="DIR", help="study directory (default: runs/NAME)")
    start.add_argument("--jobs", type=int, metavar="N", help="cells at a time")
    start.add_argument("--dry-run", action="store_true", help="validate and print the cells, run nothing")
    start.add_argument(
        "--launcher",
        choices=("local", "slurm", "print"),
        default="local",
        help="where cells run: on this machine (default), as jobs of SLURM, or by the shell commands that are printed",
    )
    start.epilog = STUDY_EPILOG
    status = _command(study_commands, "status", _study_status, "show how far a study is, wherever its cells run")
    status.add_argument("study", type=Path, metavar="STUDY", help="the study's directory, or its YAML")
    cell = _command(study_commands, "cell", _study_cell, "run one planned cell in this process, for a scheduler")
    cell.add_argument("cell", type=Path, metavar="CELL_DIR", help="as --launcher print names it")
    cell.add_argument("--threads", type=int, metavar="N", help="that torch may use")
    report = _command(study_commands, "report", _study_report, "write the report of a study directory again")
    report.add_argument("study", type=Path, metavar="STUDY_DIR")
    _add_claims(study_commands)
    return parser, commands


def _add_claims(study_commands: Any) -> None:
    record = _command(study_commands, "record", _study_record, "write what a study has found into one small file")
    record.add_argument("study", type=Path, metavar="STUDY_DIR")
    record.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("records"), help="folder of records (default: records)"
    )
    record.add_argument("--note", action="append", metavar="TEXT", default=[], help="what a reader should know")
    claims = _command(study_commands, "claims", _study_claims, "write a page of claims and verdicts from records")
    claims.add_argument("records", type=Path, metavar="RECORDS", help="folder of records")
    claims.add_argument("--output", type=Path, metavar="FILE", default=Path("claims.md"), help="(default: claims.md)")
    claims.add_argument("--studies", type=Path, metavar="DIR", help="studies whose unanswered claims are listed, too")
    claims.add_argument("--published", type=Path, metavar="FILE", help="the papers' own ablations, to compare with")


def _add_mine(commands: Any) -> None:
    mine = _command(commands, "mine", _mine, "write hard negatives of the data, found by a backbone, into one file")
    mine.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML, whose data are read")
    mine.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help="the file (JSON lines), for data.mined"
    )
    mine.add_argument("--model", metavar="MODEL", required=True, help=BACKBONE)
    mine.add_argument("--num_negatives", type=int, metavar="K", default=8, help="negatives of a query (default: 8)")
    mine.add_argument("--skip", type=int, metavar="N", default=0, help="leave out the nearest N (default: 0)")
    filters = mine.add_mutually_exclusive_group()
    filters.add_argument(
        "--margin", type=float, metavar="M", help="drop what is nearer than the target by over M (default: 0.1)"
    )
    filters.add_argument("--ratio", type=float, metavar="R", help="drop what is nearer than R x the target's cosine")
    filters.add_argument("--no_filter", action="store_true", help="drop nothing for being near")
    mine.add_argument("--keep_groups", action="store_true", help="do not drop what is in the query's group")
    mine.add_argument("--batch_size", type=int, metavar="N", default=64, help="examples a forward pass (default: 64)")


def _command(parent: Any, name: str, function: Callable, help: str) -> argparse.ArgumentParser:
    takes_settings = function in SETTABLE
    parser = parent.add_parser(
        name,
        help=help,
        description=help,
        allow_abbrev=False,
        epilog=EPILOG if takes_settings else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def _refuse_options_before_command(argv: list[str], commands: tuple[str, ...]) -> None:
    first = next((argument for argument in argv if argument in commands), None)
    before = argv[: argv.index(first)] if first else argv
    options = [argument for argument in before if argument.startswith("--") and argument not in ("--help", "--version")]
    if options:
        where = f"alignlab {first} {options[0]} ..." if first else f"alignlab COMMAND {options[0]} ..."
        raise InputError(f"{options[0]} must come after the command: {where} (commands: {', '.join(commands)})")


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


def _embed(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.config import resolve_file
    from alignlab.experiment.embed import embed
    from alignlab.experiment.run import quiet_libraries
    from alignlab.experiment.show import counting_bar

    config = resolve_file(arguments.config, overrides_from(rest))
    quiet_libraries()
    with counting_bar() as on_progress:
        computed = embed(
            config, arguments.output, arguments.model, batch_size=arguments.batch_size, on_progress=on_progress
        )
    print(f"{arguments.output}: {f'{computed} embeddings computed' if computed else 'there already'}")
    return 0


def _mine(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.config import resolve_file
    from alignlab.experiment.mine import Settings, mine_data, show
    from alignlab.experiment.run import quiet_libraries
    from alignlab.experiment.show import counting_bar

    config = resolve_file(arguments.config, overrides_from(rest))
    bare = arguments.margin is None and arguments.ratio is None and not arguments.no_filter
    settings = Settings(
        num_negatives=arguments.num_negatives,
        skip=arguments.skip,
        margin=0.1 if bare else arguments.margin,
        ratio=arguments.ratio,
        keep_groups=arguments.keep_groups,
    )
    quiet_libraries()
    with counting_bar() as on_progress:
        mined = mine_data(
            config,
            arguments.output,
            arguments.model,
            settings,
            batch_size=arguments.batch_size,
            on_progress=on_progress,
        )
    show(mined)
    print(f"hard negatives: {arguments.output}")
    return 0


def _pairs(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.experiment.config import resolve_file
    from alignlab.experiment.pairaudit import show
    from alignlab.experiment.pairs import PROVENANCE, build, overridden
    from alignlab.experiment.run import quiet_libraries
    from alignlab.experiment.show import counting_bar

    own, others = split_overrides(rest, "pairs")
    config = resolve_file(arguments.config, others)
    settings = overridden(own, [*config["python_path"], str(arguments.config.resolve().parent)])
    finished = (arguments.output / PROVENANCE).exists()
    quiet_libraries()
    with counting_bar() as on_progress:
        audit = build(config, arguments.output, arguments.model, settings, on_progress=on_progress)
    show(audit)
    print(f"{arguments.output}: {audit.kept} preference pairs{', there already' if finished else ''}")
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


def _study_run(arguments: argparse.Namespace, rest: list[str]) -> int:
    if not arguments.dry_run:
        from alignlab.experiment.show import wide_console
        from alignlab.experiment.unchanged import Asked, said_again

        directory = arguments.output or Path("runs") / arguments.study.stem
        if said_again(Asked(arguments.study, directory, overrides_from(rest)), wide_console()):
            return 0
    from alignlab.study import run_study

    own, overrides = split_overrides(rest, "slurm")
    return run_study(
        arguments.study,
        output=arguments.output,
        jobs=arguments.jobs,
        dry_run=arguments.dry_run,
        overrides=overrides,
        launcher=_launcher(arguments.launcher, own),
    )


def _launcher(name: str, settings: list[str]) -> Any:
    if settings and name != "slurm":
        raise InputError(f"--{settings[0].partition('=')[0]} goes with --launcher slurm")
    if name == "local":
        return None
    if name == "print":
        from alignlab.study.launchers.lines import Print

        return Print()
    from alignlab.study.launchers.slurm import Slurm, settings_from

    return Slurm(settings_from(settings))


def _study_status(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.study.status import show_status

    return show_status(arguments.study)


def _study_cell(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.study.cell import run_cell

    return run_cell(arguments.cell, threads=arguments.threads)


def _study_report(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.study.report import report

    report(arguments.study)
    return 0


def _study_record(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.study.records import record

    print(f"record: {record(arguments.study, arguments.output, arguments.note)}")
    return 0


def _study_claims(arguments: argparse.Namespace, rest: list[str]) -> int:
    from alignlab.study.claimspage import write_claims

    write_claims(arguments.records, arguments.output, studies=arguments.studies, published=arguments.published)
    print(f"claims: {arguments.output}")
    return 0


SETTABLE = (_fit, _evaluate, _inspect, _embed, _mine, _pairs, _study_run, _certify)
"""The commands that take settings of a config as options."""


if __name__ == "__main__":
    sys.exit(main())
