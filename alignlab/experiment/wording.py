"""Types and values in plain words, and what shape of value a type takes."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse.typing import NonNegativeInt, PositiveInt

from alignlab.experiment.catalogue import Kind, an, kind_of
from alignlab.experiment.reading import show

SCALARS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
    NonNegativeInt: "a whole number, at least 0",
    PositiveInt: "a whole number, at least 1",
}
MAPPINGS = (dict, Mapping)


def shown(value: Any) -> str:
    """A value in a message, as YAML would have it, with its type in words."""
    words = {**SCALARS, dict: "a mapping", list: "a list"}
    text = show(value) if isinstance(value, bool | int | float | list | dict) else repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return (
        "null"
        if value is None
        else text
        if isinstance(value, bool)
        else f"{text} ({words.get(type(value), 'unknown')})"
    )


def in_words(annotation: Any) -> str:
    """A type in plain words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    kind = wanted_kind(annotation)
    if annotation in SCALARS:
        return SCALARS[annotation]
    if kind is not None:
        return an(kind.word)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin in (Union, types.UnionType):
        ordered = sorted(inner, key=lambda member: (member is type(None), get_origin(member) is Literal))
        others = [in_words(member) for member in ordered if get_origin(member) is not Literal]
        allowed = (
            in_words(Literal[tuple(dict.fromkeys(map(str, choices(annotation))))]) if choices(annotation) else None
        )
        return " or ".join(dict.fromkeys([allowed, *others] if allowed else others))
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)} ({', '.join(in_words(item) for item in inner)})"
    if is_sequence(origin) and inner:
        return f"a list, each {in_words(inner[0])}"
    if origin in MAPPINGS and inner:
        return f"a mapping of {in_words(inner[0])} to {in_words(inner[1])}"
    if annotation in (Any, inspect.Parameter.empty):
        return "anything"
    if origin is Callable:
        return "a function by its path (my_module.name)"
    return an(annotation.__name__) if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def condensed(text: str) -> str:
    """What jsonargparse says, without its frame and the members of a union that did not apply."""
    noise = (
        "Parser key",
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Given value",
        "Problem with given class_path",
        "Expected a <class",
    )
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    kept = [line.replace("Expected a dot import path string", "no such class") for line in lines]
    return "; ".join(dict.fromkeys(line for line in kept if line and not line.startswith(noise)))[:300]


def wanted_kind(annotation: Any) -> Kind | None:
    """The kind of class that is asked for, built at once or from a backbone later."""
    if get_origin(annotation) is Callable:
        return kind_of(get_args(annotation)[1])
    return kind_of(annotation)


def choices(annotation: Any) -> list[Any]:
    """The values that a Literal allows, also inside a union."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return [choice for member in get_args(annotation) for choice in choices(member)]
    return []


def is_sequence(of: Any) -> bool:
    return (
        isinstance(of, type) and issubclass(of, list | tuple | set | frozenset | Sequence) and not issubclass(of, str)
    )


def is_container(annotation: Any) -> bool:
    return is_sequence(get_origin(annotation)) or get_origin(annotation) in MAPPINGS


def takes_mapping(annotation: Any) -> bool:
    of = get_origin(annotation) or annotation
    return of in MAPPINGS or of is Callable or (isinstance(of, type) and of not in SCALARS and not is_sequence(of))


def names_class(annotation: Any) -> bool:
    """Whether a text may be the path of a class or function that is not alignlab's."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(takes_mapping(member) and get_origin(member) not in MAPPINGS for member in members)
