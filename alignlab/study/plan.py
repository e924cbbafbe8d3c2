"""Study: arms x starts x seeds, expanded into cells and validated before the first one starts."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.experiment.reading import merge
from alignlab.study.claims import Claim, register
from alignlab.study.differences import differences, leaves
from alignlab.study.file import Start, StudyFile, read, slug
from alignlab.study.layers import arm_configs, is_judged, own_start, placing
from alignlab.study.state import MANIFEST, State, read_json, state, write_json


@dataclass(frozen=True)
class Cell:
    """One experiment of a study.

    Args:
        config: Resolved, as ``alignlab.experiment.run.run`` takes it.
        directory: The run directory. Its name holds the digest, so an edited study never writes over a finished cell.
        digest: Content hash of the config.
        differs: Config keys and values that are not those of the baseline arm.
    """

    arm: str
    start: str
    seed: int
    config: dict[str, Any]
    directory: Path
    digest: str
    differs: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.arm} · {self.start} · seed {self.seed}"

    @property
    def state(self) -> State:
        return state(self.directory, self.digest)


@dataclass(frozen=True)
class Study:
    """What is compared: every cell, resolved and valid.

    Args:
        directory: Holds ``study.json``, ``cells/`` and the report.
        cells: In the order of arms, starts, seeds; cells of the same content share one directory.
        notes: What a reader of the plan should know.
    """

    name: str
    description: str
    directory: Path
    arms: tuple[str, ...]
    starts: tuple[str, ...]
    seeds: tuple[int, ...]
    against: dict[str, str]
    baseline: str
    oracle: str | None
    placebo: str | None
    metrics: tuple[str, ...]
    tradeoff: tuple[str, ...]
    claims: tuple[Claim, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...]

    @classmethod
    def load(cls, path: Path, *, directory: Path | None = None, overrides: Sequence[str] = ()) -> "Study":
        """Read, expand and validate a study.

        Args:
            path: The study's YAML.
            directory: Where it is kept; default ``runs/<name of the file>``.
            overrides: ``key=value``, laid over every cell last; ``seeds=[0]`` and the file's other keys change those.

        Raises:
            InputError: All faults of the file and of all configs, one line each.
        """
        path = Path(path)
        directory = default_directory(path) if directory is None else Path(directory)
        faults: list[str] = []
        file = read(path, overrides, faults)
        wrong: dict[str, list[str]] = defaultdict(list)
        cells, notes = _share(*_expand(file, directory, faults, wrong))
        for cell, line in _refused(cells):
            wrong[line].append(cell.arm)
        faults += [f"{_owners(names, file.arms)}: {line}" for line, names in wrong.items()]
        if faults:
            count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
            raise InputError(f"{path}: {count}\n" + "\n".join(f"  {fault}" for fault in faults))
        _check_owner(directory, path.stem)
        cells = _with_differences(cells, file.baseline, file.against)
        if any(str(cell.config["data"].get("class_path")).rpartition(".")[2] == "Scenes" for cell in cells):
            notes = (*notes, "Results on the scenes lab are claims about the lab, not about natural images.")
        return cls(
            name=path.stem,
            description=file.description,
            directory=directory,
            arms=tuple(file.arms),
            starts=tuple(dict.fromkeys(cell.start for cell in cells)),
            seeds=file.seeds,
            against=file.against,
            baseline=file.baseline,
            oracle=file.oracle,
            placebo=file.placebo,
            metrics=file.metrics,
            tradeoff=file.tradeoff,
            claims=file.claims,
            cells=tuple(cells),
            notes=notes,
        )

    def save(self, command: str) -> None:
        """Write ``study.json``, from which a report is made without the YAML.

        Args:
            command: What the user typed.
        """
        _check_owner(self.directory, self.name)
        cells = [
            {
                "arm": cell.arm,
                "start": cell.start,
                "seed": cell.seed,
                "directory": cell.directory.relative_to(self.directory).as_posix(),
                "digest": cell.digest,
                "differs": cell.differs,
            }
            for cell in self.cells
        ]
        names = ("name", "description", "arms", "starts", "seeds", "against", "baseline", "oracle", "placebo")
        names += ("metrics", "tradeoff", "notes")
        before = (read_json(self.directory / MANIFEST) or {}).get("claims", [])
        finished = Counter(cell.arm for cell in self.cells if cell.state == "finished")
        claims = register(self.claims, before, finished)
        manifest = {"command": command, **{name: vars(self)[name] for name in names}, "claims": claims, "cells": cells}
        write_json(self.directory / MANIFEST, manifest)


def default_directory(path: Path) -> Path:
    """Where a study is kept if nothing else is said."""
    return Path("runs") / path.stem


def _check_owner(directory: Path, name: str) -> None:
    """A directory that holds anything else stays as it is."""
    if not directory.exists() or (directory.is_dir() and all(path.name[0] == "." for path in directory.iterdir())):
        return
    manifest = read_json(directory / MANIFEST)
    owner = "no study" if manifest is None else f"the study {manifest.get('name')!r}"
    if manifest is None or manifest.get("name") != name:
        raise InputError(
            f"{directory} holds {owner}, so the study {name!r} cannot be kept there; name another directory"
        )


def _expand(
    file: StudyFile, directory: Path, faults: list[str], wrong: dict[str, list[str]]
) -> tuple[list[Cell], set[str]]:
    """Every cell, resolved, and the arms that are judged as they are.

    Args:
        wrong: Takes the faults of cells that cannot be resolved, with their arms.
    """
    from alignlab.experiment.config import digest, resolve

    cells: list[Cell] = []
    arms = arm_configs(file, faults)
    starts = file.starts or (Start(own_start(arms.get(file.baseline, {})), None),)
    judged = {arm for arm, config in arms.items() if is_judged(file.arms[arm], config)}
    for (arm, config), start in itertools.product(arms.items(), starts):
        begin = Start(own_start(config), None) if arm in judged else start
        for seed in file.arm_seeds.get(arm, file.seeds) or (0,):
            try:
                written = merge(config, placing(file, config, arm, begin, seed))
                resolved = resolve(written)
            except InputError as error:
                for line in _lines(error):
                    wrong[line].append(arm)
                break  # another seed has the same faults
            content = digest(resolved)
            place = directory / "cells" / slug(arm) / f"{slug(begin.name)}-seed{seed}-{content}"
            cells.append(Cell(arm, start.name, seed, resolved, place, content, dict(leaves(written))))
    return cells, judged


def _refused(cells: Sequence[Cell]) -> Iterator[tuple[Cell, str]]:
    """What only making the objects shows, once for all seeds of a config; a finished cell has shown it."""
    from alignlab.experiment.config import digest

    unfinished = [cell for cell in cells if cell.state != "finished"]
    if not unfinished:
        return
    from alignlab.experiment.preflight import preflight
    from alignlab.experiment.run import quiet_libraries, refuse_foreign

    quiet_libraries()
    known: dict[str, list[str]] = {}
    stages: dict[str, Any] = {}
    for cell in unfinished:
        content = digest(_without_seed(cell.config))
        if content not in known:
            known[content] = _faults(preflight, cell.config, stages)
        for line in (*known[content], *_faults(refuse_foreign, cell.config, cell.directory)):
            yield cell, line


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "seed": None, "stages": {name: _without_seed(stage) for name, stage in config["stages"].items()}}


def _faults(check: Callable[..., None], *arguments: Any) -> list[str]:
    try:
        check(*arguments)
    except InputError as error:
        return _lines(error)
    return []


def _lines(error: InputError) -> list[str]:
    return list(dict.fromkeys(line.strip() for line in str(error).splitlines() if line.strip()))


def _with_differences(cells: Sequence[Cell], baseline: str, against: Mapping[str, str]) -> list[Cell]:
    """Replace what was written for every cell by what is not that of the arm it is compared with."""
    configs = {(cell.arm, cell.start, cell.seed): cell.config for cell in cells}
    return [
        replace(cell, differs=differences(cell.config, reference, cell.differs))
        for cell in cells
        for reference in [configs[against.get(cell.arm, baseline), cell.start, cell.seed]]
    ]


def _owners(names: list[str], arms: dict[str, Any]) -> str:
    names = list(dict.fromkeys(names))
    return "every arm" if len(names) == len(arms) > 1 else ("arm " if len(names) == 1 else "arms ") + ", ".join(names)


def _share(cells: list[Cell], judged: Collection[str]) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
    """Let cells of the same content, whatever their names, share the directory of the first: it is computed once."""
    first: dict[str, Cell] = {}
    shared, notes = [], {}
    for cell in cells:
        original = first.setdefault(cell.digest, cell)
        shared.append(replace(original, arm=cell.arm, start=cell.start, differs=cell.differs))
        if original.arm != cell.arm:
            notes[
                f"{cell.arm} is the same config as {original.arm}; it is computed once and stands under both names."
            ] = 0
        elif original.start != cell.start and cell.arm in judged:
            notes[f"{cell.arm} is judged as it is, once a seed, and is compared with others of every start."] = 0
        elif original.start != cell.start:
            notes[f"Start {cell.start} is the same as {original.start}; it is computed once."] = 0
    return tuple(shared), tuple(notes)
