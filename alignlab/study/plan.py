"""Study: arms x starts x seeds, expanded into cells and validated before the first one starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.study.cells import Cell, Maker, judged_arms, owners, refused, share, with_differences, with_tried
from alignlab.study.claims import Claim, register
from alignlab.study.file import StudyFile, read
from alignlab.study.keys import slug
from alignlab.study.layers import arm_configs
from alignlab.study.state import MANIFEST, METRICS, read_json, write_json
from alignlab.study.trials import make_trials, make_tuned, seen
from alignlab.study.tuning import Tuning, choose, tuned_name

__all__ = ["MANIFEST", "Cell", "Study", "default_directory"]


@dataclass(frozen=True)
class Study:
    """What is compared: every cell, resolved and valid.

    Args:
        directory: Holds ``study.json``, ``cells/`` and the report.
        cells: In the order of arms, starts, seeds; cells of the same content share one directory.
        notes: What a reader of the plan should know.
        tuned: The arms with the best of the settings that were tried, and whose they are; among ``arms``.
        tuning: What was tried, and what came out; None where nothing is tuned.
        trials: The cells of tuning, of no arm that is compared.
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
    tuned: dict[str, str] = field(default_factory=dict)
    tuning: Tuning | None = None
    trials: tuple[Cell, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether arms are missing until cells of tuning are done."""
        return self.tuning is not None and bool(self.tuning.pending)

    @property
    def unique(self) -> list[Cell]:
        """All cells to be computed, each content once, those of tuning first."""
        return list({cell.directory: cell for cell in (*self.trials, *self.cells)}.values())

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
        plan = _Plan.of(file, directory, faults)
        if faults:
            count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
            raise InputError(f"{path}: {count}\n" + "\n".join(f"  {fault}" for fault in faults))
        _check_owner(directory, path.stem)
        against = {**file.against, **plan.against}
        cells = with_differences(plan.cells, file.baseline, against)
        same = ("description", "seeds", "baseline", "oracle", "placebo", "metrics", "tradeoff", "claims")
        return cls(
            name=path.stem,
            directory=directory,
            arms=(*file.arms, *plan.tuned),
            starts=tuple(dict.fromkeys(cell.start for cell in cells)),
            against=against,
            cells=tuple(cells),
            notes=tuple(dict.fromkeys((*plan.notes, *_of_the_lab(cells)))),
            tuned=plan.tuned,
            tuning=plan.tuning,
            trials=tuple(with_tried(plan.trials, cells, file.baseline)),
            **{name: vars(file)[name] for name in same},
        )

    def save(self, command: str) -> None:
        """Write ``study.json``, from which a report is made without the YAML.

        Args:
            command: What the user typed.
        """
        _check_owner(self.directory, self.name)
        names = ("name", "description", "arms", "starts", "seeds", "against", "baseline", "oracle", "placebo")
        names += ("metrics", "tradeoff", "notes", "tuned")
        before = (read_json(self.directory / MANIFEST) or {}).get("claims", [])
        finished, dropped = self._known()
        manifest = {
            "command": command,
            **{name: vars(self)[name] for name in names},
            "claims": register(self.claims, before, finished, dropped),
            "tuning": None if self.tuning is None else self.tuning.manifest(),
            "cells": [self._line(cell) for cell in self.cells],
            "trials": [self._line(cell) for cell in self.trials],
        }
        write_json(self.directory / MANIFEST, manifest)

    def _known(self) -> tuple[dict[str, int], dict[str, int]]:
        """By arm, finished cells from which its results may be known, and those of them that are planned no longer."""
        planned = {arm: {cell.directory for cell in self.cells if cell.arm == arm} for arm in self.arms}
        tried = {cell.directory for cell in self.trials}  # of an arm's folder, too, but judged on validation data
        old = {arm: {file.parent for file in self._folder(arm).glob(f"*/{METRICS}")} - tried for arm in self.arms}
        known = {arm: old[arm] | {place for place in planned[arm] if (place / METRICS).is_file()} for arm in self.arms}
        for arm in () if self.tuning is None else self.tuning.settings:  # its results tell much of it when tuned
            known[tuned_name(arm)] = known.get(tuned_name(arm), set()) | known[arm]
        dropped = {arm: len(old[arm] - planned[arm]) for arm in self.arms}
        return {arm: len(places) for arm, places in known.items()}, dropped

    def _folder(self, arm: str) -> Path:
        """Of an arm's cells, but those that another arm had before."""
        return self.directory / "cells" / slug(arm)

    def _line(self, cell: Cell) -> dict[str, Any]:
        """A cell as the manifest holds it."""
        kept = {name: vars(cell)[name] for name in ("arm", "start", "seed", "digest", "differs")}
        return {**kept, "directory": cell.directory.relative_to(self.directory).as_posix()}


@dataclass(frozen=True)
class _Plan:
    """The cells that a study file comes to, and what is known of its tuning."""

    cells: tuple[Cell, ...]
    trials: tuple[Cell, ...]
    notes: tuple[str, ...]
    tuned: dict[str, str]
    against: dict[str, str]
    tuning: Tuning | None

    @classmethod
    def of(cls, file: StudyFile, directory: Path, faults: list[str]) -> "_Plan":
        """Make and check all cells.

        Args:
            faults: Takes one line a fault.
        """
        configs, tried = arm_configs(file, faults)
        maker, judged = Maker(file, directory), judged_arms(file, configs)
        cells, tuning, notes = maker.of_arms(configs, judged), None, []
        trials: list[Cell] = []
        tuned: dict[str, str] = {}
        against: dict[str, str] = {}
        if file.tune is not None:
            trains = [cell for cell in cells if cell.arm not in judged]
            trials, what = make_trials(maker, trains, configs, tried, faults)
            if not faults and not maker.wrong:
                tuning, notes = choose(what, file.tune.metric)
                notes += seen(trains)
                more, against = make_tuned(maker, tuning, cells, configs, tried)
                tuned = {tuned_name(arm): arm for arm in configs if tuning.chosen.get(arm) is not None}
                cells = [*cells, *more]
        shared, same = share(cells, judged)
        for cell, line in refused((*shared, *trials)):
            maker.wrong[line].append(cell.arm)
        faults[:] = dict.fromkeys(
            [*faults, *(f"{owners(names, file.arms)}: {line}" for line, names in maker.wrong.items())]
        )
        return cls(shared, tuple(trials), (*same, *notes), tuned, against, tuning)


def _of_the_lab(cells: Iterable[Cell]) -> list[str]:
    """What to know where the pictures are drawn."""
    if any(str(cell.config["data"].get("class_path")).rpartition(".")[2] == "Scenes" for cell in cells):
        return ["Results on the scenes lab are claims about the lab, not about natural images."]
    return []


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
