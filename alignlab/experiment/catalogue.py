"""The classes a config can name: where they are looked up, what they take, and what there is to list."""

import dataclasses
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_type_hints

import docstring_parser

from alignlab.errors import InputError
from alignlab.experiment.reading import near


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a class-valued key accepts.

    Args:
        word: What such a class is called in messages.
        base: The class it derives from.
        package: Where bare names are looked up.
        given: Arguments that alignlab passes, so a config must not.
    """

    word: str
    base: type
    package: str
    given: tuple[str, ...] = ()

    @cache  # noqa: B019  there are as many kinds as in ``kinds``, which stay
    def classes(self) -> Mapping[str, type]:
        """The package's classes of this kind, by bare name."""
        module = importlib.import_module(self.package)
        named = {name: vars(module)[name] for name in module.__all__}
        return {name: item for name, item in named.items() if self.accepts(item) and not _is_base(item)}

    def accepts(self, item: Any) -> bool:
        return isinstance(item, type) and issubclass(item, self.base) and item is not self.base


def _is_base(item: type) -> bool:
    """Whether a class leaves something to its subclasses; Lightning's modules may be made all the same."""
    return any(getattr(getattr(item, name, None), "__isabstractmethod__", False) for name in dir(item))


@cache
def kinds() -> tuple[Kind, ...]:
    """The kinds of classes in a config; imported late, because torch is."""
    from alignlab.adapters import Adapter
    from alignlab.data import AlignmentData, Corruption
    from alignlab.evaluation import Evaluator
    from alignlab.modules import Quantizer, Selection
    from alignlab.objectives import Contrast, Objective, Reference

    return (
        Kind("objective", Objective, "alignlab.objectives", given=("backbone",)),
        Kind("contrast", Contrast, "alignlab.objectives"),
        Kind("reference", Reference, "alignlab.objectives"),
        Kind("quantizer", Quantizer, "alignlab.modules", given=("dim",)),
        Kind("selection", Selection, "alignlab.modules", given=("dim",)),
        Kind("adapter", Adapter, "alignlab.adapters"),
        Kind("data module", AlignmentData, "alignlab.data"),
        Kind("corruption", Corruption, "alignlab.data"),
        Kind("evaluator", Evaluator, "alignlab.evaluation"),
    )


def kind_called(word: str) -> Kind:
    """The kind of this word."""
    return next(each for each in kinds() if each.word == word)


def kind_of(annotation: Any) -> Kind | None:
    """The kind that a type annotation asks for, if it is one of alignlab's."""
    fitting = (kind for kind in kinds() if isinstance(annotation, type) and issubclass(annotation, kind.base))
    return next(fitting, None)


def find(kind: Kind, name: str, folders: Sequence[str] = ()) -> tuple[str, type]:
    """Look a class up: a bare name in the kind's package, a dotted one anywhere.

    Args:
        folders: Searched for modules after the installed packages.

    Returns:
        The name it goes by in a resolved config (bare for alignlab's own), and the class.
    """
    classes = kind.classes()
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        if name not in classes:
            raise InputError(_not_there(kind, name, classes))
        return name, classes[name]
    module = _import(module_name, folders)
    if class_name not in vars(module):
        fitting = [other for other, item in vars(module).items() if kind.accepts(item)]
        listed = f" (its {kind.word}s: {', '.join(sorted(fitting))})" if fitting else f"; it has no {kind.word}"
        raise InputError(f"module {module_name} has no class {class_name}{near(class_name, fitting)}{listed}")
    found = vars(module)[class_name]
    if not kind.accepts(found):
        raise InputError(f"{name} is not {an(kind.word)}: it does not derive from {kind.package}.{kind.base.__name__}")
    return (class_name if classes.get(class_name) is found else name), found


def _not_there(kind: Kind, name: str, classes: Mapping[str, type]) -> str:
    listed = f" ({kind.package} has {', '.join(sorted(classes))})"
    if name == kind.base.__name__:
        return f"{name} is the base class{listed}"
    for other in kinds():
        if name in other.classes():
            return f"{name} is {an(other.word)}, not {an(kind.word)}{listed}"
    own = "" if near(name, classes) else f"; a class of your own is named with its module, as my_module.{name}"
    return f"there is no {kind.word} {name!r}{near(name, classes)}{listed}{own}"


def an(word: str) -> str:
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


def search(folders: Sequence[str]) -> None:
    """Let modules be imported from the folders and the current directory, after the installed packages."""
    for folder in (*folders, str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)


def folders_used(config: Any, folders: Sequence[str]) -> list[str]:
    """Those folders, or the current directory, that a module named in the config was loaded from."""
    loaded: set[str] = set()
    for text in _texts(config):
        module = sys.modules.get(text.partition(".")[0]) if "." in text else None
        if module is not None and module.__spec__ is not None and module.__name__ != "alignlab":
            origins = module.__spec__.submodule_search_locations or [module.__spec__.origin or ""]
            loaded |= {str(Path(origin).parent) for origin in origins}
    return [folder for folder in dict.fromkeys((*folders, str(Path.cwd()))) if folder in loaded]


def own_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Hash of the source of each module in ``python_path`` that a resolved config names a class of.

    Read from the files, whether or not they have been imported yet: every process must find the same.
    """
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in own_modules(config).items()}


def own_modules(config: Mapping[str, Any]) -> dict[str, Path]:
    """The file of each module in ``python_path`` that a resolved config names a class of."""
    files: dict[str, Path] = {}
    for text in _texts(config):
        parts = text.split(".")[:-1]
        if parts and all(part.isidentifier() for part in parts):
            for folder in config.get("python_path") or []:
                module = Path(folder).joinpath(*parts)
                found = [file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()]
                if found:
                    files[".".join(parts)] = found[0]
                    break
    return files


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping | list):
        for item in node.values() if isinstance(node, Mapping) else node:
            yield from _texts(item)


def _import(name: str, folders: Sequence[str]) -> ModuleType:
    search(folders)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"importing {name} failed: {error}") from error
        beside = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
        where = ", ".join(dict.fromkeys((*folders, str(Path.cwd()))))
        raise InputError(
            f"there is no module {name}{near(name, beside)} (looked for among installed packages and in {where})"
        ) from None
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({last.filename}, line {last.lineno})"
        raise InputError(f"importing {name} failed: {type(error).__name__}: {error}{where}".split("\n")[0]) from error
    _refuse_twin(name.partition(".")[0], folders)
    return module


def _refuse_twin(top: str, folders: Sequence[str]) -> None:
    """One process knows one module of a name; taking another folder's in its place would go unnoticed."""
    here = [
        folder
        for folder in folders
        if any((Path(folder) / file).is_file() for file in (f"{top}.py", f"{top}/__init__.py"))
    ]
    if here and top != "alignlab" and not folders_used(f"{top}.", here):
        loaded = sys.modules[top].__spec__.origin
        raise InputError(f"{here[0]} has a module {top}, but {loaded} of the same name comes first; rename yours")


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a class: its type, its default (``dataclasses.MISSING``: none) and its docstring's line."""

    annotation: Any
    default: Any
    doc: str = ""

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


@cache
def arguments(owner: type | Callable) -> dict[str, Argument]:
    """What a class is made from, or a function called with; where it takes ``**kwargs``, its bases' arguments too."""
    docs = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in _doc_parameters(owner)}
    if dataclasses.is_dataclass(owner):
        hints = get_type_hints(owner)
        return {
            field.name: Argument(hints[field.name], _field_default(field), docs.get(field.name, ""))
            for field in dataclasses.fields(owner)
            if field.init
        }
    found: dict[str, Argument] = {}
    for function in _makers(owner):
        parameters = [each for each in inspect.signature(function).parameters.values() if each.name != "self"]
        hints = _hints(function)
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
                doc = docs.get(parameter.name, "")
                found.setdefault(parameter.name, Argument(hints.get(parameter.name, Any), default, doc))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _makers(owner: type | Callable) -> list[Callable]:
    if inspect.isfunction(owner):
        return [owner]
    return [base.__init__ for base in owner.__mro__ if "__init__" in vars(base) and base is not object]


def _hints(function: Any) -> dict[str, Any]:
    """The annotations by name; one that only a type checker can resolve counts as any type."""
    function, hints = inspect.unwrap(function), {}
    for name, hint in function.__annotations__.items():
        try:
            hints |= get_type_hints(SimpleNamespace(__annotations__={name: hint}), function.__globals__)
        except NameError:
            hints[name] = Any
    return hints


def _field_default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _doc_parameters(owner: type | Callable) -> list[docstring_parser.DocstringParam]:
    """The documented arguments, the class's own before its bases'."""
    bases = [owner] if inspect.isfunction(owner) else reversed(owner.__mro__)
    docs = [base.__doc__ for base in bases if base.__module__ != "builtins" and base.__doc__]
    return [parameter for doc in docs for parameter in docstring_parser.parse(doc).params]
