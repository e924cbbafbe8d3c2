"""study: the commands of a study."""

import argparse
from pathlib import Path
from typing import Any

from alignlab.cli.options import Parser, add_command, overrides_from, split_overrides
from alignlab.errors import InputError

STUDY_EPILOG = """\
Settings of the study file, or of every cell, are given as options --key value. With --launcher slurm, so is what a job
asks for: --slurm.partition, --slurm.time (minutes), --slurm.gpus_per_node, --slurm.cpus, --slurm.memory (GiB), and any
other option of sbatch as --slurm.OPTION; --jobs is how many jobs may run at a time:
  alignlab study run study.yaml --launcher slurm --jobs 8 --slurm.partition gpu --slurm.time 240 --slurm.gpus_per_node 1
"""


def add_study(commands: Any) -> None:
    """Add ``alignlab study`` and what is below it."""
    study = commands.add_parser(
        "study",
        help="compare objectives: run a study, see how far it is, write its report again",
        allow_abbrev=False,
    )
    study_commands = study.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    start = add_command(
        study_commands, "run", _study_run, "run every cell of a study that is not finished, then report", settable=True
    )
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
    status = add_command(study_commands, "status", _study_status, "show how far a study is, wherever its cells run")
    status.add_argument("study", type=Path, metavar="STUDY", help="the study's directory, or its YAML")
    cell = add_command(study_commands, "cell", _study_cell, "run one planned cell in this process, for a scheduler")
    cell.add_argument("cell", type=Path, metavar="CELL_DIR", help="as --launcher print names it")
    cell.add_argument("--threads", type=int, metavar="N", help="that torch may use")
    report = add_command(study_commands, "report", _study_report, "write the report of a study directory again")
    report.add_argument("study", type=Path, metavar="STUDY_DIR")
    _add_claims(study_commands)


def _add_claims(study_commands: Any) -> None:
    record = add_command(study_commands, "record", _study_record, "write what a study has found into one small file")
    record.add_argument("study", type=Path, metavar="STUDY_DIR")
    record.add_argument(
        "--output", type=Path, metavar="DIR", default=Path("records"), help="folder of records (default: records)"
    )
    record.add_argument("--note", action="append", metavar="TEXT", default=[], help="what a reader should know")
    claims = add_command(study_commands, "claims", _study_claims, "write a page of claims and verdicts from records")
    claims.add_argument("records", type=Path, metavar="RECORDS", help="folder of records")
    claims.add_argument("--output", type=Path, metavar="FILE", default=Path("claims.md"), help="(default: claims.md)")
    claims.add_argument("--studies", type=Path, metavar="DIR", help="studies whose unanswered claims are listed, too")
    claims.add_argument("--published", type=Path, metavar="FILE", help="the papers' own ablations, to compare with")


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
