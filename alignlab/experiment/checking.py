"""Checks of values against the types that signatures state; every problem is kept, none is raised."""

import copy
import inspect
import types
from argparse import ArgumentError
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from datetime import timedelta
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from alignlab.errors import InputError
from alignlab.experiment.catalogue import Argument, Kind, an, arguments, find, kind_of
from alignlab.experiment.reading import Key, near
from alignlab.experiment.wording import (
    MAPPINGS,
    choices,
    condensed,
    in_words,
    is_container,
    is_sequence,
    names_class,
    shown,
    takes_mapping,
    wanted_kind,
)

MANY = 12
"""More names than this are not listed where one of them is the likely one."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one key of a config."""

    key: Key
    message: str

    def __str__(self) -> str:
        return f"{'.'.join(self.key)}: {self.message}"


class Checker:
    """Checks values and fills defaults in; ``problems`` collects what is wrong, what comes back is plain data.

    Args:
        folders: Where modules are searched for, beside the installed packages.
    """

    def __init__(self, folders: Sequence[str] = ()) -> None:
        self.folders = tuple(folders)
        self.problems: list[Problem] = []

    def add(self, key: Key, message: str) -> None:
        self.problems.append(Problem(key, message))

    def arguments(
        self,
        owner: type | Callable,
        value: Any,
        key: Key,
        *,
        given: Collection[str] = (),
        refused: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Check the arguments of a class or a function and fill its defaults in.

        Args:
            given: Arguments that alignlab passes itself.
            refused: Arguments that alignlab sets itself, each with what to use instead.
        """
        refused = dict.fromkeys(given, "is passed by alignlab; leave it out") | dict(refused or {})
        table = {name: argument for name, argument in arguments(owner).items() if name not in refused}
        if value is not None and not isinstance(value, Mapping):
            self.add(key, f"expected a mapping of arguments of {owner.__name__}, got {shown(value)}")
            return {}
        value = {str(name): item for name, item in (value or {}).items()}
        for name in value:
            if name in refused:
                self.add((*key, name), refused[name])
            elif name not in table:
                hint = near(name, table)
                if not hint or len(table) <= MANY:
                    hint += f" (it takes {', '.join(table) or 'none'})"
                self.add((*key, name), f"{owner.__name__} has no argument {name!r}{hint}")
        checked = {}
        for name, argument in table.items():
            if name in value:
                checked[name] = self.argument(argument, value[name], (*key, name))
            elif argument.required:
                self.add((*key, name), f"missing; {owner.__name__} needs it ({in_words(argument.annotation)})")
        return {name: checked[name] if name in checked else item for name, item in _defaults(owner, table, checked)}

    def argument(self, argument: Argument, value: Any, key: Key) -> Any:
        """Check one argument; its default always passes, whatever the annotation says."""
        if argument.default is None and value is None:
            return None
        return self.value(argument.annotation, value, key)

    def value(self, annotation: Any, value: Any, key: Key) -> Any:
        """Check a value against a type, element by element where it holds others."""
        kind = wanted_kind(annotation)
        origin, inner = get_origin(annotation), get_args(annotation)
        if annotation in (Any, inspect.Parameter.empty):
            return plain(value)
        if origin in (Union, types.UnionType):
            return self._union(annotation, value, key)
        if value is None:
            return self._wrong(annotation, value, key) if annotation not in (None, type(None)) else None
        if kind is not None:
            return self.of_kind(kind, value, key)
        if is_dataclass(annotation) and isinstance(value, Mapping):
            return self.arguments(annotation, value, key)
        if is_sequence(origin) and inner and isinstance(value, list | tuple):
            return self._sequence(annotation, value, key)
        if origin in MAPPINGS and inner and isinstance(value, Mapping):
            for name in value:
                self._leaf(inner[0], name, (*key, str(name)))
            return {name: self.value(inner[1], item, (*key, str(name))) for name, item in value.items()}
        return self._leaf(annotation, value, key)

    def of_kind(self, kind: Kind, value: Any, key: Key) -> dict[str, Any] | None:
        """Check a class with its arguments; None where the class itself is wrong."""
        long = {"class_path": value} if isinstance(value, str) else value
        if not isinstance(long, Mapping) or not isinstance(long.get("class_path", ""), str):
            self.add(
                key,
                f"expected the name of {an(kind.word)} class, or class_path and init_args, got {shown(value)}",
            )
            return None
        for name in long:
            if name not in ("class_path", "init_args"):
                self.add(
                    (*key, str(name)),
                    f"unknown key {name!r}; beside class_path stands init_args, which holds the arguments",
                )
        if "class_path" not in long:
            self.add((*key, "class_path"), f"missing; {kind.package} has {', '.join(sorted(kind.classes()))}")
            return None
        try:
            name, found = find(kind, long["class_path"], self.folders)
        except InputError as error:
            self.add(key if isinstance(value, str) else (*key, "class_path"), str(error))
            return None
        checked = self.arguments(found, long.get("init_args"), (*key, "init_args"), given=kind.given)
        return {"class_path": name, "init_args": checked}

    def _union(self, annotation: Any, value: Any, key: Key) -> Any:
        """Keep the members that the value's shape allows, so that a message speaks of those alone."""
        members = get_args(annotation)
        if value is None:
            return None if type(None) in members else self._wrong(annotation, value, key)
        if isinstance(value, list | tuple):
            fitting = [member for member in members if is_sequence(get_origin(member) or member)]
        elif isinstance(value, Mapping):
            fitting = [member for member in members if takes_mapping(member)]
        else:
            fitting = [m for m in members if m is not type(None) and not is_container(m)]
        if len(fitting) == 1:
            return self.value(fitting[0], value, key)
        if type(value) in (int, float) and type(value) in fitting:
            return (
                value  # 1 is one batch, 1.0 are all; which type typing puts first depends on what was imported before
            )
        return self._leaf(Union[tuple(fitting)], value, key) if fitting else self._wrong(annotation, value, key)  # noqa: UP007

    def _sequence(self, annotation: Any, value: Sequence[Any], key: Key) -> list[Any]:
        inner = get_args(annotation)
        fixed = get_origin(annotation) is tuple and inner[-1] is not Ellipsis
        if fixed and len(value) != len(inner):
            self._wrong(annotation, value, key)
            return list(value)
        of_each = inner if fixed else inner[:1] * len(value)
        return [self.value(of, item, (*key, str(i))) for i, (of, item) in enumerate(zip(of_each, value, strict=True))]

    def _leaf(self, annotation: Any, value: Any, key: Key) -> Any:
        """Leave a value to jsonargparse: scalars, choices, and classes that are not alignlab's."""
        if type(value) is annotation:
            return value
        try:
            return plain(_parser(annotation).parse_object({"value": copy.deepcopy(value)}).value)
        except (ArgumentError, TypeError, ValueError, AttributeError) as error:
            foreign = isinstance(value, Mapping | str) and names_class(annotation)
            return self._wrong(annotation, value, key, condensed(str(error)) if foreign else "")

    def _wrong(self, annotation: Any, value: Any, key: Key, reason: str = "") -> None:
        options = [str(choice) for choice in choices(annotation)]
        hint = near(value, options) if isinstance(value, str) else ""
        if isinstance(value, float) and value.is_integer() and int in (annotation, *get_args(annotation)):
            hint = f"; write {int(value)}"
        because = f": {reason}" if reason and not hint else ""
        self.add(key, f"expected {in_words(annotation)}, got {shown(value)}{hint}{because}")


def _defaults(owner: type, table: Mapping[str, Argument], given: Collection[str]) -> list[tuple[str, Any]]:
    """The arguments that a config states, in the signature's order, each with its default as plain data."""
    known = _plain_defaults(owner)
    return [(name, copy.deepcopy(known.get(name))) for name in table if name in given or name in known]


@cache
def _plain_defaults(owner: type) -> dict[str, Any]:
    """Defaults as a config writes them; one that is no plain data stays with the class."""
    checker, found = Checker(), {}
    for name, argument in arguments(owner).items():
        if argument.default is MISSING:
            continue
        try:
            value = plain(argument.default)
        except TypeError:
            continue
        before = len(checker.problems)
        checked = checker.argument(argument, value, (name,))
        found[name] = checked if len(checker.problems) == before else value
    return found


def plain(value: Any) -> Any:
    """A value as YAML holds it: classes and functions by path, tuples as lists.

    An object that a config can name is its class with the arguments that it keeps under their names.

    Raises:
        TypeError: It is something that YAML cannot hold.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, int | float | str):
        return next(of(value) for of in (int, float, str) if isinstance(value, of))
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path | timedelta):
        return str(value)
    if (kind := kind_of(type(value))) is not None and set(arguments(type(value))) <= set(vars(value)):
        path = f"{type(value).__module__}.{type(value).__name__}"
        named = path if kind.classes().get(type(value).__name__) is not type(value) else type(value).__name__
        given = {name: plain(vars(value)[name]) for name in arguments(type(value))}
        return {"class_path": named, "init_args": given}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in vars(value).items()}
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"{value!r} has no plain form")


@cache
def _parser(annotation: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    return parser
