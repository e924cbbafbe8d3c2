"""StudyFile: the study's YAML, checked key by key; every fault is found before any is reported."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.experiment.reading import load, parse_override, put
from alignlab.study.arms import Arm, expand, incomparable, meanings, read_against, read_parts, read_written
from alignlab.study.axes import read_axes, read_exclude, read_points
from alignlab.study.claims import Claim, read_claims
from alignlab.study.keys import distinct, files, meant
from alignlab.study.keys import seeds as read_seeds
from alignlab.study.naming import audited
from alignlab.study.tuning import Tune, read_tune, tuned_name

KEYS = (
    "base",
    "overrides",
    "arms",
    "axes",
    "zip",
    "exclude",
    "tune",
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
        arms: By name, each at one point of the axes; among the keys of one, ``base`` names experiment files that are
            laid over the base first.
        tune: What is tried of every arm; None where nothing is tuned.
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
    arms: dict[str, Arm]
    tune: Tune | None
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
    seeds = read_seeds(content.get("seeds", [0]), "seeds", faults)
    arms = _arms(path, content, seeds, faults)
    parts = read_parts(content, arms, faults)
    against = read_against(content.get("baseline"), arms, parts, faults)
    faults += incomparable(
        {name: seeds if arm.seeds is None else arm.seeds for name, arm in arms.items()}, against, parts
    )
    starts = _starts(content.get("starts"), faults)
    tune = read_tune(path, content.get("tune"), arms, seeds, faults)
    if tune is not None:
        names = [start.name for start in starts]
        unknown = [name for name in tune.starts if name not in names]
        faults += [f"tune: starts: no start is called {name!r}{meant(name, names)}" for name in unknown]
    return StudyFile(
        path=path,
        description=_description(path),
        base=files(path, "base", content.get("base"), faults),
        overrides=overrides,
        arms=arms,
        tune=tune,
        against=against,
        starts=starts,
        seeds=seeds,
        **parts,
        metrics=_metrics(content.get("metrics") or [], "metrics", faults),
        tradeoff=_tradeoff(content.get("tradeoff") or [], faults),
        claims=_claims(content.get("claims"), arms, against, parts["baseline"], tune is not None, faults),
        last=tuple(last),
    )


def _arms(path: Path, content: dict[str, Any], seeds: tuple[int, ...], faults: list[str]) -> dict[str, Arm]:
    """The arms at every point of the axes."""
    axes = read_axes(path, content.get("axes"), faults)
    written = read_written(content.get("arms"), bool(axes), faults)
    points = read_points(axes, content.get("zip"), faults)
    exclude = read_exclude(content.get("exclude"), axes, list(filter(None, written)), faults)
    return expand(written, points, exclude, seeds, faults)


def _claims(
    value: Any, arms: Mapping[str, Arm], against: Mapping[str, str], baseline: str, tuned: bool, faults: list[str]
) -> tuple[Claim, ...]:
    """The claims; what is tuned is compared with what is tuned."""
    names, others = meanings(arms), dict(against)
    if tuned:
        names |= {tuned_name(name): [tuned_name(each) for each in stands] for name, stands in names.items()}
        others |= tuned_against(arms, against, baseline)
    return read_claims(value, names, others, baseline, faults)


def tuned_against(arms: Iterable[str], against: Mapping[str, str], baseline: str) -> dict[str, str]:
    """What tuned arms are compared with: the baseline with its own, others with what is tuned of theirs."""
    return {tuned_name(arm): tuned_name(against.get(arm, baseline)) for arm in arms if arm != baseline}


def _description(path: Path) -> str:
    """The comment at the head of the file, without the command that often stands at its end."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(re.split(r"\s{2,}alignlab ", line.lstrip("# "))[0].strip())
    return " ".join(line for line in lines if line and not line.startswith("alignlab "))


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
    distinct("starts", [start.name for start in starts], faults)
    return tuple(starts)


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
