"""keys: checks that several keys of a study's YAML have in common."""

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from alignlab.experiment.reading import near


def meant(word: str, words: Collection[str]) -> str:
    """What may have been meant, else what there is."""
    return near(word, words) or f"; there is {', '.join(words)}"


def slug(name: str) -> str:
    """A name as a part of a path."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "unnamed"


def files(study: Path, key: str, value: Any, faults: list[str]) -> tuple[Path, ...]:
    """The experiment files that a key names, relative to the study's own."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        faults.append(f"{key}: expected an experiment file or a list of them, got {value!r}")
        return ()
    return tuple(study.parent / name for name in names)


def distinct(key: str, names: Iterable[str], faults: list[str]) -> None:
    """Names become directories, and some file systems do not tell capitals from small letters."""
    seen: dict[str, str] = {}
    for name in names:
        key_on_disk = slug(name).lower()
        if key_on_disk in seen:
            faults.append(
                f"{key}: {seen[key_on_disk]!r} and {name!r} would share a directory; give them different names"
            )
        seen[key_on_disk] = name


def seeds(value: Any, key: str, faults: list[str]) -> tuple[int, ...]:
    """Distinct whole numbers from 0 on."""
    whole = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole:
        faults.append(f"{key}: expected a list of whole numbers from 0 on, got {value!r}")
        return ()
    twice = sorted({seed for seed in value if value.count(seed) > 1})
    if twice:
        faults.append(f"{key}: {', '.join(map(str, twice))} stands there more than once; a seed counts once")
    return tuple(value)
