"""breakdown: scores by the kind of question, such as colours and counts, of all arms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.study.calibration import gain
from alignlab.study.comparison import Entry, compare
from alignlab.study.results import Results


@dataclass(frozen=True)
class Breakdown:
    """One evaluator's kinds of questions.

    Args:
        kinds: Metrics, and how many items a cell has of each.
        rows: Of each arm, an entry a kind; None where no cell has it.
        strongest: The largest difference in the table, without its sign; above 0.
    """

    evaluator: str
    kinds: dict[str, int]
    rows: dict[str, tuple[Entry | None, ...]]
    strongest: float

    def strength(self, entry: Entry) -> float:
        """How much better, or worse where negative, an arm is, in [-1, 1] of the largest difference."""
        return 0.0 if entry.difference is None else gain(entry.metric, entry.difference.mean) / self.strongest


def kinds_of(items: Sequence[Mapping[str, Any]], evaluator: str) -> dict[str, int]:
    """Metrics of some of the items alone, the mean of whose scores they are, with their numbers of items."""
    counts: dict[str, int] = {}
    apart = set()
    for item in items:
        for name, value in item.get("metrics", {}).items():
            counts[name] = counts.get(name, 0) + 1
            if value != item["score"]:
                apart.add(name)
    found = {name: count for name, count in counts.items() if count < len(items) and name not in apart}
    return {f"{evaluator}/{name}": count for name, count in found.items()} if len(found) > 1 else {}


def breakdown(results: Results, evaluator: str, samples: Iterable[Sequence[Mapping[str, Any]]]) -> Breakdown | None:
    """Scores by kind; None where there are no kinds.

    Args:
        samples: The evaluator's items of some cells, from which its kinds are known.
    """
    kinds: dict[str, int] = {}
    for items in samples:
        kinds |= kinds_of(items, evaluator)
    kinds = {metric: count for metric, count in kinds.items() if metric in results.all_metrics}
    if not kinds:
        return None
    rows = {arm: tuple(_entry(results, arm, metric) for metric in kinds) for arm in results.arms}
    rows = {arm: row for arm, row in rows.items() if any(row)}
    differences = [abs(entry.difference.mean) for row in rows.values() for entry in row if entry and entry.difference]
    return Breakdown(evaluator, kinds, rows, max(differences, default=0.0) or 1.0)


def _entry(results: Results, arm: str, metric: str) -> Entry | None:
    return compare(results, arm, metric) if results.values(arm, metric) else None
