"""From YAML files and overrides to one nested mapping, with the place every key came from."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from alignlab.errors import InputError
from alignlab.experiment.noting import note

CLASS_KEYS = ("class_path", "init_args")

Key = tuple[str, ...]


def read(path: Path | str | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config file with its ``base`` files merged under it and overrides like ``objective.window=5`` on top.

    The folders of the files stand in ``python_path``, so that a class beside a config is found.
    """
    config: dict[str, Any] = {}
    folders: list[str] = []
    for file, content in _files(Path(path)) if path is not None else ():
        config = merge(config, content)
        folders.insert(0, str(file.resolve().parent))
    own = config.get("python_path")
    if own is None or isinstance(own, list):
        config["python_path"] = list(dict.fromkeys([*(own or ()), *folders]))
    for text in overrides:
        key, value = parse_override(text)
        config = put(config, key, value, (), text)
    return config


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one config over another: mappings merge, lists and scalars replace.

    Where the override names another class, the arguments of the base's class go.
    """
    return _merge_mappings(base, override, ())


def dump(config: Mapping[str, Any]) -> str:
    """Write a config as YAML that ``read`` gives back unchanged."""
    return yaml.dump(
        dict(config), Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True
    )


def show(value: Any) -> str:
    """A value as YAML in one line."""
    return (
        yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, sort_keys=False)
        .removesuffix("...\n")
        .strip()
    )


def places(path: Path | str | None, overrides: Sequence[str] = ()) -> dict[Key, str]:
    """Say for every key of a config where it was written: ``file:line``, or the command line."""
    found: dict[Key, str] = {(): "command line" if path is None else str(path)}
    for file, _ in _files(Path(path)) if path is not None else ():
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=_Loader)
        found.update({key: f"{file}:{line}" for key, line in _lines(root, ())} if root else {})
    found.update({_bare(parse_override(text)[0]): f"override {text}" for text in overrides})
    return found


def place_of(key: Key, found: Mapping[Key, str]) -> str:
    """The place of a key, else of what holds it; a stage's key may stand in the main part."""
    bare = _bare(key)
    if bare not in found and (below := [place for other, place in found.items() if other[: len(bare)] == bare]):
        return below[-1]
    if bare[:1] == ("stages",) and bare not in found and bare[2:] in found:
        return found[bare[2:]]
    while bare not in found:
        bare = bare[:-1]
    return found[bare]


def closest(name: str, options: Collection[str]) -> str | None:
    """The option that is spelled most like the name, if one is close."""
    lower = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return lower[matches[0]] if matches else None


def near(name: str, options: Collection[str]) -> str:
    """``; did you mean 'x'?`` where one of the options is close, else nothing."""
    close = closest(name, options)
    return "" if close is None else f"; did you mean {close!r}?"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (1e-4 is a float; no, on and 1:30 are text), and no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key.start_mark)
            twin = first.setdefault((key.tag, key.value), key)
            if twin is not key:
                problem = f"the key {key.value!r} stands twice, first in line {twin.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read back as text; never writes aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value, 0) if node.value[:2] in ("0o", "0x") else int(node.value)


def _add_scalars() -> None:
    number = r"(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    scalars = (
        ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
        ("float", rf"[-+]?{number}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
        ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("merge", "<<", "<"),
    )
    for tag, pattern, first in scalars:
        for owner in (_Loader, _Dumper):
            owner.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))
    _Loader.add_constructor("tag:yaml.org,2002:int", _integer)


_add_scalars()


def _files(path: Path, chain: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """The files a config is made of, bases first, each with its content."""
    if path.resolve() in [file.resolve() for file in chain]:
        raise InputError(f"{chain[0]}: base files go in a circle: {' -> '.join(map(str, (*chain, path)))}")
    content = load(path, chain[-1] if chain else None)
    bases = content.pop("base", None)
    bases = [bases] if isinstance(bases, str) else bases or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: base: expected a file or a list of files, got {bases!r}")
    own = content.get("python_path")
    if isinstance(own, list):
        content["python_path"] = [str((path.parent / str(folder)).resolve()) for folder in own]
    below = [pair for base in bases for pair in _files(path.parent / base, (*chain, path))]
    return [*below, (path, content)]


def load(path: Path, asked_by: Path | None = None) -> dict[str, Any]:
    """Read one YAML file by itself.

    Args:
        asked_by: The file that names it as its base.
    """
    if not path.is_file():
        raise InputError((f"{asked_by}: base: " if asked_by else "") + _missing(path))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = " (indent with spaces)" if "'\\t'" in str(error.problem) else ""
        if error.context is not None and error.context_mark is not None and error.context_mark.line < mark.line:
            hint = f" ({error.context} from line {error.context_mark.line + 1})"
        raise InputError(f"{path}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}{hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML text file: {str(error).splitlines()[0]}") from None
    note(path)
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{path}: expected `key: value` lines, got {content!r:.60}")
    return content or {}


def _missing(path: Path) -> str:
    if path.is_dir():
        inside = "; give " + str(path / "config.yaml") if (path / "config.yaml").is_file() else ""
        return f"{path}: expected a YAML file, this is a folder{inside}"
    if not path.parent.is_dir():
        return f"{path}: no such file; there is no folder {path.parent}"
    files = (file for file in sorted(path.parent.iterdir()) if file.suffix in (".yaml", ".yml") and file.is_file())
    names = {file.stem: file.name for file in files}
    close = closest(path.stem, names)
    listed = f"; {path.parent} has {', '.join(list(names.values())[:10])}" if names else ""
    hint = f"; did you mean {names[close]!r}?" if close else listed
    return f"{path}: no such file{hint}"


def _lines(node: yaml.Node, key: Key) -> list[tuple[Key, int]]:
    """Every key below a YAML node with its line, keys as ``_bare`` gives them."""
    if isinstance(node, yaml.MappingNode):
        children = [((*key, str(name.value)), name, value) for name, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [((*key, str(index)), value, value) for index, value in enumerate(node.value)]
    else:
        children = []
    own = [(_bare(child), name.start_mark.line + 1) for child, name, _ in children if _bare(child) != _bare(key)]
    return own + [line for child, _, value in children for line in _lines(value, child)]


def _bare(key: Key) -> Key:
    """A key without class_path and init_args, which an override may leave out."""
    return tuple(part for part in key if part not in CLASS_KEYS)


def parse_override(text: str) -> tuple[Key, Any]:
    """Split ``key=value``, the value being YAML."""
    name, equals, value = text.partition("=")
    key = tuple(name.strip().split("."))
    if not equals or not all(key):
        raise InputError(f"override {text!r}: expected key=value, e.g. optimization.lr=1e-3")
    if key[0] == "base":
        raise InputError(f"override {text!r}: base is a key of files; give the other file as the config")
    try:
        return key, yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error).splitlines()[0]
        raise InputError(f"override {text!r}: the value is not YAML: {problem}; quote it if it is text") from None


def put(node: Any, key: Key, value: Any, place: Key, text: str) -> Any:
    """A copy of ``node`` with ``value`` laid over what is at ``key``; ``place`` is where the node itself is."""
    if not key:
        return _merge(node, value, place)
    head, rest = key[0], key[1:]
    if isinstance(node, list):
        if not head.isdecimal() or int(head) >= len(node):
            what = f"{'.'.join(place)} is a list of {len(node)}"
            raise InputError(f"override {text!r}: {what}; name one of its elements by its index, from 0")
        changed = put(node[int(head)], rest, value, (*place, head), text)
        return [changed if index == int(head) else item for index, item in enumerate(node)]
    if isinstance(node, str) or _takes_class(place) or _is_class(node):
        node = _long(node)
        if head not in CLASS_KEYS:
            return put(node, ("init_args", *key), value, place, text)
    if node is not None and not isinstance(node, Mapping):
        raise InputError(f"override {text!r}: {'.'.join(place)} is {node!r} and has nothing below it")
    node = node or {}
    return {**node, head: put(node.get(head), rest, value, (*place, head), text)}


def _merge(base: Any, override: Any, place: Key) -> Any:
    both = isinstance(base, str | Mapping) and isinstance(override, str | Mapping)
    if both and (_takes_class(place) or _is_class(base) or _is_class(override)):
        return _merge_classes(base, override, place)
    if isinstance(base, Mapping) and isinstance(override, Mapping):
        return _merge_mappings(base, override, place)
    return override


def _merge_mappings(base: Mapping[str, Any], override: Mapping[str, Any], place: Key) -> dict[str, Any]:
    over = {
        name: _merge(base[name], value, (*place, str(name))) if name in base else value
        for name, value in override.items()
    }
    return {**base, **over}


def _merge_classes(base: Any, override: Any, place: Key) -> Any:
    long_base, long_override = _long(base), _long(override)
    if "class_path" in long_base and "class_path" in long_override:
        if _last_name(long_base["class_path"]) != _last_name(long_override["class_path"]):
            return override
    return _merge_mappings(long_base, long_override, place)


def _last_name(class_path: Any) -> Any:
    """The bare name of one of alignlab's classes, any other path whole."""
    return class_path.rpartition(".")[2] if str(class_path).startswith("alignlab.") else class_path


def _takes_class(place: Key) -> bool:
    """Whether a class stands at this place of every config."""
    if place[:1] == ("stages",):
        place = place[2:]
    return place in (("objective",), ("adapter",), ("data",)) or (len(place) == 2 and place[0] == "evaluators")


def _is_class(node: Any) -> bool:
    """Whether a value is a class with its arguments, in the long form."""
    return isinstance(node, Mapping) and bool(node) and ("class_path" in node or set(node) <= set(CLASS_KEYS))


def _long(node: Any) -> dict[str, Any]:
    """A class with its arguments in the long form: a mapping."""
    if isinstance(node, str):
        return {"class_path": node}
    return {name: value for name, value in (node or {}).items() if name != "init_args" or value is not None}
