"""StudyFile: the study's YAML, checked key by key; every fault is found before any is reported."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.experiment.reading import load, near, parse_override, put
from alignlab.study.claims import Claim, read_claims
from alignlab.study.naming import audited

KEYS = (
    "base",
    "overrides",
    "arms",
    "starts",
    "seeds",
    "baseline",
    "oracle",
    "placebo",
    "metrics",
    "tradeoff",
    "claims",
)


@dataclass(frozen=True)
class Start:
    """A checkpoint to start from; the path is None where every arm keeps its own."""

    name: str
    path: str | None


@dataclass(frozen=True)
class StudyFile:
    """What a study's YAML says, with its configs not yet merged.

    Args:
        description: The comment at the head of the file.
        base: The experiment that all arms share.
        overrides: Changes to the base for all arms.
        arms: Changes by arm; a key ``base`` names experiment files that are laid over the base first.
        arm_seeds: Those of arms that do not have all of the study's.
        against: What arms are compared with that are not compared with the baseline.
        starts: Checkpoints; empty where the base's is the only one.
        seeds: Distinct whole numbers.
        baseline: The arm that the others are compared with: plain training.
        oracle: The arm that knows the truth, None where no arm does.
        placebo: The arm that does a method's motions without its information, None where no arm does.
        metrics: Headline metrics; empty for all.
        tradeoff: A metric of what is gained and one of what it costs, drawn against each other, and if wanted a third
            one, as which the points are large; empty for none.
        claims: What the study is expected to show.
        last: Changes from the command line (``key=value``), laid over every cell last.
    """

    path: Path
    description: str
    base: tuple[Path, ...]
    overrides: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    arm_seeds: dict[str, tuple[int, ...]]
    against: dict[str, str]
    starts: tuple[Start, ...]
    seeds: tuple[int, ...]
    baseline: str
    oracle: str | None
    placebo: str | None
    metrics: tuple[str, ...]
    tradeoff: tuple[str, ...]
    claims: tuple[Claim, ...]
    last: tuple[str, ...]


def read(path: Path, changes: Sequence[str], faults: list[str]) -> StudyFile:
    """Read and check a study file; what is wrong is left out of the result.

    Args:
        path: The YAML.
        changes: ``key=value`` from the command line; a key of the study file itself changes it, others every cell.
        faults: Takes one line a fault.
    """
    content = load(path)
    last = []
    for change in changes:
        key, value = parse_override(change)
        if key[0] in KEYS:
            content = put(content, key, value, (), change)
        else:
            last.append(change)
    faults += [f"unknown key {key!r}{meant(str(key), KEYS)}" for key in content if key not in KEYS]
    overrides = content.get("overrides") or {}
    if not isinstance(overrides, dict):
        faults.append(f"overrides: expected a mapping of experiment keys, got {overrides!r}")
        overrides = {}
    arms = _arms(content.get("arms"), faults)
    parts = _parts(content, next(iter(arms), ""), faults)
    seeds = _seeds(content.get("seeds", [0]), "seeds", faults)
    arm_seeds = {
        arm: _arm_seeds(arm, keys.pop("seeds"), seeds, faults) for arm, keys in arms.items() if "seeds" in keys
    }
    against = {arm: str(keys.pop("against")) for arm, keys in arms.items() if "against" in keys}
    faults += _incomparable({arm: arm_seeds.get(arm, seeds) for arm in arms}, against, parts)
    return StudyFile(
        path=path,
        description=_description(path),
        base=files(path, "base", content.get("base"), faults),
        overrides=overrides,
        arms=arms,
        arm_seeds=arm_seeds,
        against=against,
        starts=_starts(content.get("starts"), faults),
        seeds=seeds,
        **parts,
        metrics=_metrics(content.get("metrics") or [], "metrics", faults),
        tradeoff=_tradeoff(content.get("tradeoff") or [], faults),
        claims=read_claims(content.get("claims"), list(arms), against, parts["baseline"], faults),
        last=tuple(last),
    )


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


def _description(path: Path) -> str:
    """The comment at the head of the file, without the command that often stands at its end."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(re.split(r"\s{2,}alignlab ", line.lstrip("# "))[0].strip())
    return " ".join(line for line in lines if line and not line.startswith("alignlab "))


def _arms(value: Any, faults: list[str]) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not value:
        faults.append(f"arms: expected a mapping of at least one name to its overrides, got {value!r}")
        return {}
    arms = {}
    for name, overrides in value.items():
        if not isinstance(name, str):
            faults.append(f"arms: a name must be text, got {name!r}; put it in quotes")
        if isinstance(overrides, dict | None):
            arms[str(name)] = dict(overrides or {})
        else:
            faults.append(f"arm {name}: expected a mapping of experiment keys, got {overrides!r}")
    _distinct("arms", map(str, value), faults)
    return arms


def _starts(value: Any, faults: list[str]) -> tuple[Start, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        faults.append(f"starts: expected a list of at least one checkpoint path, got {value!r}")
        return ()
    starts = []
    for item in value:
        pair = {"name": Path(item).name, "path": item} if isinstance(item, str) else item
        if (
            isinstance(pair, dict)
            and pair.keys() == {"name", "path"}
            and all(isinstance(x, str) for x in pair.values())
        ):
            starts.append(Start(pair["name"], pair["path"]))
        else:
            faults.append(f"starts: expected a path or {{name: ..., path: ...}}, got {item!r}")
    _distinct("starts", [start.name for start in starts], faults)
    return tuple(starts)


def _distinct(key: str, names: Iterable[str], faults: list[str]) -> None:
    """Names become directories, and some file systems do not tell capitals from small letters."""
    seen: dict[str, str] = {}
    for name in names:
        key_on_disk = slug(name).lower()
        if key_on_disk in seen:
            faults.append(
                f"{key}: {seen[key_on_disk]!r} and {name!r} would share a directory; give them different names"
            )
        seen[key_on_disk] = name


def _seeds(value: Any, key: str, faults: list[str]) -> tuple[int, ...]:
    whole = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole:
        faults.append(f"{key}: expected a list of whole numbers from 0 on, got {value!r}")
        return ()
    twice = sorted({seed for seed in value if value.count(seed) > 1})
    if twice:
        faults.append(f"{key}: {', '.join(map(str, twice))} stands there more than once; a seed counts once")
    return tuple(value)


def _arm_seeds(arm: str, value: Any, seeds: tuple[int, ...], faults: list[str]) -> tuple[int, ...]:
    own = _seeds(value, f"arm {arm}: seeds", faults)
    if others := [str(seed) for seed in own if seed not in seeds]:
        faults.append(f"arm {arm}: seeds: {', '.join(others)} is not among the study's seeds, {list(seeds)}")
    return tuple(seed for seed in own if seed in seeds)


def _incomparable(
    seeds: dict[str, tuple[int, ...]], against: dict[str, str], parts: dict[str, str | None]
) -> Iterator[str]:
    """What keeps an arm from being compared with another; ``seeds`` has those of every arm."""
    plays = {arm: part for part, arm in parts.items() if arm is not None}
    for arm, other in against.items():
        if other == arm:
            yield f"arm {arm}: against: it is itself"
        elif other not in seeds:
            yield f"arm {arm}: against: no arm is called {other!r}{meant(other, seeds)}"
        if arm in plays:
            yield f"arm {arm}: against: it is the {plays[arm]}, which is compared with the baseline alone"
    for arm, own in seeds.items():
        reference = against.get(arm, parts["baseline"])
        if set(own) - set(seeds.get(reference, own)):
            yield f"arm {arm} has seeds that {reference}, which it is compared with, lacks; give that one all of them"


def _parts(content: dict[str, Any], first: str, faults: list[str]) -> dict[str, str | None]:
    """The arms that play a part: the baseline, which is the first arm unless one is named, the oracle, the placebo."""
    written = content.get("arms")
    parts: dict[str, str | None] = {}
    for part in ("baseline", "oracle", "placebo"):
        value = content.get(part)
        name = None if value is None else str(value)
        if name is not None and isinstance(written, dict) and value not in list(written):
            faults.append(f"{part}: no arm is called {value!r}{meant(name, [str(arm) for arm in written])}")
        faults += [
            f"{part}: {name!r} is the {other} already; an arm plays one part"
            for other, taken in parts.items()
            if taken is not None and taken == name
        ]
        parts[part] = first if name is None and part == "baseline" else name
    return parts


def _metrics(value: Any, key: str, faults: list[str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        faults.append(f"{key}: expected a list of names such as caption/exact, got {value!r}")
        return ()
    for audit in filter(None, map(audited, value)):
        faults.append(f"{key}: a blind score stands beside its metric in the report; name {audit.metric} instead")
    return tuple(value)


def _tradeoff(value: Any, faults: list[str]) -> tuple[str, ...]:
    names = _metrics(value, "tradeoff", faults)
    if names and (len(names) not in (2, 3) or len(set(names)) != len(names)):
        faults.append(
            "tradeoff: expected two metrics, of what is gained and of what it costs, or with one for the size of the "
            f"points three, all different, got {value!r}"
        )
        return ()
    return names
