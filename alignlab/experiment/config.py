"""One experiment's config: read, checked whole, filled in, and made into objects."""

import copy
import hashlib
import json
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typehints import ActionTypeHint

from alignlab.errors import InputError
from alignlab.experiment.catalogue import kinds, own_modules, own_sources, search
from alignlab.experiment.commands import command_files, data_path, file_sources
from alignlab.experiment.consistency import required_fields
from alignlab.experiment.listing import describe_objectives
from alignlab.experiment.reading import dump, merge, place_of, places, read
from alignlab.experiment.resolving import TRAINER_REFUSED, ConfigError, WandbSettings, moved, resolve
from alignlab.experiment.wording import condensed

if TYPE_CHECKING:
    from alignlab.adapters import Adapter
    from alignlab.backbones import Backbone, DualEncoder
    from alignlab.data import AlignmentData
    from alignlab.evaluation import Evaluator
    from alignlab.experiment.pairs import PairSettings
    from alignlab.objectives import Objective, Optimization

__all__ = [
    "ConfigError",
    "Experiment",
    "WandbSettings",
    "describe_objectives",
    "digest",
    "dump",
    "instantiate",
    "merge",
    "moved",
    "own_files",
    "read",
    "resolve",
    "resolve_file",
]


@dataclass(frozen=True)
class Experiment:
    """The objects that a config names; what reads weights comes last, when it is asked for.

    Where a command trains, there is no objective, adapter or optimization.

    Args:
        backbone: Arguments of open_backbone.
        make_objective: Gives the objective its backbone.
        requires: The fields of Example that the objective needs.
        trainer: Arguments of Lightning's Trainer.
        checkpoint_every: Optimizer steps between checkpoints.
        save_dtype: The type of the trained backbone's files; None: as trained.
        command: What trains in alignlab's stead.
        pairs: Of a stage that builds pairs, and trains nothing.
        data_path: The data's setting of that name.
    """

    backbone: Mapping[str, Any]
    make_objective: "Callable[[Backbone], Objective] | None"
    requires: tuple[str, ...]
    adapter: "Adapter | None"
    data: "AlignmentData"
    optimization: "Optimization | None"
    trainer: Mapping[str, Any]
    evaluators: "tuple[Evaluator, ...]"
    wandb: WandbSettings
    seed: int
    checkpoint_every: int
    save_dtype: str | None
    command: str | None = None
    pairs: "PairSettings | None" = None
    data_path: str | None = None

    def make_backbone(self) -> "Backbone | DualEncoder":
        from alignlab.backbones import open_backbone

        return open_backbone(**self.backbone)

    def assemble(self) -> "Objective":
        """The objective on its backbone, with adapters and optimization, as training begins."""
        backbone = self.make_backbone()
        if self.adapter is not None:
            self.adapter.apply(backbone)
        objective = self.make_objective(backbone)
        objective.optimization = self.optimization
        return objective


def resolve_file(
    path: Path | str | None,
    overrides: Sequence[str] = (),
    *,
    part: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Read and resolve a config; a message begins with the file and line, or the override, it is about.

    Args:
        part: Takes of the config as it was read what is needed to judge, not to train; None: all is needed.
    """
    config = read(path, overrides)
    try:
        return resolve(config) if part is None else resolve(part(config), trains=False)
    except ConfigError as error:
        where = places(path, overrides)
        raise ConfigError(error.problems, [f"{place_of(p.key, where)}: {p}" for p in error.problems]) from None


def digest(config: Mapping[str, Any]) -> str:
    """8 hexadecimal characters of a resolved config's content.

    Left out is what changes no result: the W&B mirror, the folders that classes were found in, and the one in which
    vision features are kept. The source of a user's own classes and scripts is in.
    """
    content = _content(config) | own_sources(config) | file_sources(config)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def own_files(config: Mapping[str, Any]) -> set[Path]:
    """The files whose contents are in a config's digest."""
    return {*own_modules(config).values(), *(file for files in command_files(config).values() for file in files)}


def instantiate(config: Mapping[str, Any]) -> Experiment:
    """Make the objects of a resolved config; no weights are read yet.

    Raises:
        InputError: A class refuses its arguments, or a file of the data is missing.
    """
    search(config["python_path"])
    names = [name for name in Experiment.__dataclass_fields__ if name in config]  # older runs lack the latest ones
    given = {name: config[name] for name in ("objective", *names) if config[name] is not None}
    objects = _made(lambda: _parser().instantiate(Namespace(**{name: _parsed(name, given[name]) for name in given})))
    return Experiment(
        make_objective=objects.get("objective"),
        requires=required_fields(config["objective"] or {}, config["python_path"]),
        data_path=data_path(config["data"]),
        **{name: objects.get(name) for name in names}
        | {"backbone": vars(objects.backbone), "trainer": vars(objects.trainer)},
    )


def made(parser: ArgumentParser, checked: Mapping[str, Any]) -> Namespace:
    """Make the objects of a parser's types from checked plain data.

    Raises:
        InputError: A class refuses its arguments.
    """
    return _made(lambda: parser.instantiate(parser.parse_object(_full_paths(checked))))


def _made(make: Callable[[], Namespace]) -> Namespace:
    try:
        return make()
    except InputError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        # jsonargparse wraps what a constructor raises; ours has said it better.
        ours = next((cause for cause in _causes(error) if isinstance(cause, InputError)), None)
        raise ours or InputError(condensed(str(error))) from error


@cache  # a study makes the objects of every cell
def _parser(only: str | None = None) -> ArgumentParser:
    """The types of an experiment's objects; jsonargparse makes them from checked plain data.

    Args:
        only: The key to be parsed; None: all of them.
    """
    from lightning.pytorch import Trainer

    from alignlab.adapters import Adapter
    from alignlab.backbones import Backbone, open_backbone
    from alignlab.data import AlignmentData
    from alignlab.evaluation import Evaluator
    from alignlab.experiment.pairs import PairSettings
    from alignlab.objectives import Objective, Optimization

    types = {
        "objective": Callable[[Backbone], Objective],
        "adapter": Adapter | None,
        "data": AlignmentData,
        "optimization": Optimization,
        "evaluators": tuple[Evaluator, ...],
        "wandb": WandbSettings,
        "seed": int,
        "checkpoint_every": int,
        "save_dtype": str | None,
        "command": str | None,
        "pairs": PairSettings | None,
    }
    parser = ArgumentParser(exit_on_error=False)
    if only in (None, "backbone"):
        parser.add_function_arguments(open_backbone, "backbone")
    if only in (None, "trainer"):
        parser.add_class_arguments(Trainer, "trainer", skip=set(TRAINER_REFUSED), instantiate=False)
        _read_whole_numbers_first(parser)
    for name, type in types.items():
        if only in (None, name):
            parser.add_argument(f"--{name}", type=type)
    return parser


def _read_whole_numbers_first(parser: ArgumentParser) -> None:
    """Let 1 be one batch and 1.0 all of them, where Lightning's types say that a setting is either.

    Which comes first in ``Optional[Union[int, float]]`` depends on what was imported before: typing keeps the first
    such type that any module writes, in whatever order, and gives it to all others.
    """
    for action in parser._actions:
        if isinstance(action, ActionTypeHint) and {int, float} <= {*get_args(action._typehint)}:
            action._typehint = Union[tuple(sorted(get_args(action._typehint), key=lambda part: part is float))]  # noqa: UP007


def _parsed(name: str, checked: Any) -> Any:
    """What the parser reads one key's checked value as; a study's arms have most values in common."""
    return copy.deepcopy(_parsed_text(name, json.dumps(_full_paths(checked, name), sort_keys=True)))


@lru_cache(maxsize=256)
def _parsed_text(name: str, text: str) -> Any:
    return _parser(name).parse_object({name: json.loads(text)})[name]


def _full_paths(node: Any, key: str = "") -> Any:
    """The same plain data with alignlab's own classes by their full path.

    Args:
        key: The node's. Where two kinds have a class of the same name (PLoRA), it tells which is meant: the one called
            so, else the one that comes first in ``kinds``.
    """
    if isinstance(node, Mapping):
        full = {name: _full_paths(item, name) for name, item in node.items()}
        having = [kind for kind in kinds() if node.get("class_path") in kind.classes()]
        if having:
            kind = min(having, key=lambda each: each.word != key)
            full["class_path"] = f"{kind.package}.{node['class_path']}"
        return full
    return [_full_paths(item) for item in node] if isinstance(node, list) else node


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _content(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in ("wandb", "python_path")}
    # Where they are not set, it is as if there were no such settings, which is how older runs know themselves.
    kept = {name: value for name, value in kept.items() if name not in ("command", "pairs") or value is not None}
    kept["backbone"] = {
        name: value
        for name, value in kept["backbone"].items()
        if name != "features" and (name, value) != ("text_tower", None)
    }
    return kept | {"stages": {name: _content(stage) for name, stage in config.get("stages", {}).items()}}
