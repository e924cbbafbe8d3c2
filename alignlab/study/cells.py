"""cells: the experiments of a study, resolved, checked and each computed once."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignlab.errors import InputError
from alignlab.experiment.reading import merge
from alignlab.study.differences import differences, leaves
from alignlab.study.file import Start, StudyFile
from alignlab.study.keys import slug
from alignlab.study.layers import Configs, is_judged, own_start, placing
from alignlab.study.state import State, state


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


@dataclass
class Maker:
    """Makes the cells of a study, and keeps what is wrong with them.

    An experiment is resolved once; its other seeds and starts put their own values into what came out.

    Args:
        file: The study's.
        directory: The study's.
        wrong: The faults of cells that cannot be resolved, with their arms.
    """

    file: StudyFile
    directory: Path
    wrong: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def cells(
        self, name: str, config: dict[str, Any], starts: Sequence[Start], seeds: Sequence[int], place: str
    ) -> list[Cell]:
        """A config at every start with every seed.

        Args:
            name: Of the arm, or of what is tried of one.
            place: What the names of the directories begin with, below ``cells``.
        """
        from alignlab.experiment.config import digest, moved, resolve

        cells: list[Cell] = []
        first: dict[str, Any] | None = None
        for start in starts:
            for seed in seeds:
                written = merge(config, placing(self.file.path.stem, config, name, start, seed))
                try:
                    resolved = moved(first, written) if first and _is_there(start) else resolve(written)
                except InputError as error:
                    for line in lines(error):
                        self.wrong[line].append(name)
                    break  # another seed has the same faults
                first = first or resolved
                content = digest(resolved)
                folder = self.directory / "cells" / f"{place}{slug(start.name)}-seed{seed}-{content}"
                cells.append(Cell(name, start.name, seed, resolved, folder, content, dict(leaves(written))))
        return cells

    def of_arms(self, configs: Configs, judged: Collection[str]) -> list[Cell]:
        """The cells of all arms; those that are judged as they are begin at their own checkpoint."""
        starts, cells = self.starts(configs), []
        for arm, config in configs.items():
            own = self.file.arms[arm].seeds if arm in self.file.arms else None
            cells += self.of_arm(arm, config, starts, own or self.file.seeds or (0,), arm in judged)
        return cells

    def of_arm(
        self, arm: str, config: dict[str, Any], starts: Sequence[Start], seeds: Sequence[int], judged: bool
    ) -> list[Cell]:
        """One arm's cells."""
        if not judged:
            return self.cells(arm, config, starts, seeds, f"{slug(arm)}/")
        begun = self.cells(arm, config, [Start(own_start(config), None)], seeds, f"{slug(arm)}/")
        return [replace(cell, start=start.name) for start in starts for cell in begun]

    def starts(self, configs: Configs) -> tuple[Start, ...]:
        """The study's, or that of its baseline."""
        return self.file.starts or (Start(own_start(configs.get(self.file.baseline, {})), None),)


def _is_there(start: Start) -> bool:
    """Whether a start needs no message that only resolving words."""
    from alignlab.backbones import locate

    try:
        return start.path is None or bool(locate(start.path))
    except InputError:
        return False


def judged_arms(file: StudyFile, configs: Configs) -> set[str]:
    """The arms that are judged as they are."""
    return {arm for arm, config in configs.items() if is_judged(file.arms[arm].keys, config)}


def refused(cells: Sequence[Cell]) -> Iterator[tuple[Cell, str]]:
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
        return lines(error)
    return []


def lines(error: InputError) -> list[str]:
    """What an error says, each line once."""
    return list(dict.fromkeys(line.strip() for line in str(error).splitlines() if line.strip()))


def with_differences(cells: Sequence[Cell], baseline: str, against: Mapping[str, str]) -> list[Cell]:
    """Replace what was written for every cell by what is not that of the arm it is compared with."""
    configs = {(cell.arm, cell.start, cell.seed): cell.config for cell in cells}
    return [
        replace(cell, differs=differences(cell.config, reference, cell.differs))
        for cell in cells
        for reference in [configs[against.get(cell.arm, baseline), cell.start, cell.seed]]
    ]


def with_tried(trials: Sequence[Cell], cells: Sequence[Cell], baseline: str) -> list[Cell]:
    """Replace what was written for every cell of tuning by what is not the baseline's, but for what judges it."""
    configs = {cell.start: cell.config for cell in cells if cell.arm == baseline}
    return [
        replace(
            cell, differs=differences({**cell.config, "evaluators": reference["evaluators"]}, reference, cell.differs)
        )
        for cell in trials
        for reference in [configs[cell.start]]
    ]


def owners(names: Sequence[str], arms: Collection[str]) -> str:
    """Whose a fault is, in words; what is tried of an arm, or chosen, is named where the arm itself is right."""
    own = list(dict.fromkeys(name for name in names if name in arms))
    names = own or list(dict.fromkeys(names))
    return "every arm" if len(own) == len(arms) > 1 else ("arm " if len(names) == 1 else "arms ") + ", ".join(names)


def share(cells: list[Cell], judged: Collection[str]) -> tuple[tuple[Cell, ...], tuple[str, ...]]:
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
