"""making: the commands that make data from a model: embeddings, hard negatives, preference pairs."""

import argparse
from pathlib import Path
from typing import Any

from alignlab.cli.options import BACKBONE, add_command, overrides_from, split_overrides

PAIRS_EPILOG = """\
How pairs are built is given as options --pairs.KEY (corruption, num_examples, max_new_tokens, batch_size, drop_equal,
min_tokens, keep_cut, seed), and settings of the config as any other:
  alignlab pairs experiments/mle.yaml --model runs/mle --output pairs --pairs.corruption DiffusionNoise \\
    --pairs.corruption.step 800 --pairs.num_examples 2000 --pairs.max_new_tokens 64 --data.num_objects "[2, 4]"
"""


def add_makers(commands: Any) -> None:
    """Add ``alignlab embed``, ``mine`` and ``pairs``."""
    embed = add_command(
        commands, "embed", _embed, "write a teacher's embeddings of the data's targets into one file", settable=True
    )
    embed.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML, whose data are read")
    embed.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help="the file (safetensors), for data.embeddings"
    )
    embed.add_argument("--model", metavar="MODEL", required=True, help=f"{BACKBONE}, or a sentence-transformers model")
    embed.add_argument("--batch_size", type=int, metavar="N", default=64, help="targets a forward pass (default: 64)")
    _add_mine(commands)
    pairs = add_command(
        commands, "pairs", _pairs, "write preference pairs of a backbone's own answers, for DPO", settable=True
    )
    pairs.add_argument("config", type=Path, metavar="CONFIG", help="an experiment's YAML, whose data are read")
    pairs.add_argument("--output", type=Path, metavar="DIR", required=True, help="the folder (parquet files, as trl's)")
    pairs.add_argument("--model", metavar="MODEL", required=True, help=BACKBONE)
    pairs.epilog = PAIRS_EPILOG


def _add_mine(commands: Any) -> None:
    mine = add_command(
        commands, "mine", _mine, "write hard negatives of the data, found by a backbone, into one file", settable=True
    )
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
