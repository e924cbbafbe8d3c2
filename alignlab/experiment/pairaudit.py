"""pairaudit: what is known of a folder of preference pairs, for a person and as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alignlab.data.base import Split

NUM_SHOWN = 5
"""Pairs of a split that are kept in the audit for a person to look at."""

TRUTHS = ("better", "equal", "worse")


@dataclass(frozen=True)
class SplitAudit:
    """What became of the examples of one split.

    Args:
        asked: Examples; each is either kept or dropped.
        kept: Pairs in the file.
        dropped: Examples by reason: those of ``build_pairs``, an answer that was ``cut``, ``no_picture`` to corrupt.
        lengths: Of the kept pairs' ``chosen`` and ``rejected`` answers, the ``mean`` and ``median`` in tokens, and the
            share that is ``cut``: ended only because an answer may be no longer. Empty where none is kept.
        truth: Share of kept pairs whose chosen answer is in truth ``better``, ``equal`` or ``worse``; empty where the
            data do not know.
        samples: A few kept pairs, spread evenly: ``id``, ``prompt``, ``chosen``, ``rejected``, ``quality``.
    """

    asked: int
    kept: int
    dropped: Mapping[str, int]
    lengths: Mapping[str, Mapping[str, float]]
    truth: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Audit:
    """What is known of a folder of pairs, by split; plain data inside, so that ``asdict`` gives JSON."""

    splits: Mapping[Split, SplitAudit]

    @property
    def kept(self) -> int:
        """Pairs of all splits."""
        return sum(each.kept for each in self.splits.values())


def show(audit: Audit) -> None:
    """Print a few pairs, and what was kept and dropped."""
    console = Console()
    samples = [sample for each in audit.splits.values() for sample in each.samples][:NUM_SHOWN]
    if samples:
        table = Table(title="a sample of the pairs", title_justify="left", show_lines=True)
        columns = ("id", "prompt", "chosen", "rejected", "quality")
        for column in columns:
            table.add_column("in truth" if column == "quality" else column)
        for sample in samples:
            table.add_row(*(escape("not known" if sample[column] is None else sample[column]) for column in columns))
        console.print(table)
    table = Table("", *audit.splits, title="what was built", title_justify="left")
    rows = [_said(each) for each in audit.splits.values()]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "") for row in rows))
    console.print(table)


REASONS = {
    "equal": "both answers are equal",
    "equal_after_cleaning": "equal but for white space",
    "too_short": "an answer is too short",
    "cut": "an answer was cut",
    "no_picture": "no picture",
}


def _said(audit: SplitAudit) -> dict[str, str]:
    said = {"examples asked": f"{audit.asked}", "pairs kept": f"{audit.kept}"}
    said |= {f"dropped: {REASONS[reason]}": f"{count}" for reason, count in audit.dropped.items()}
    for side, of in audit.lengths.items():
        said[f"{side}: mean and median length in tokens, share cut"] = (
            f"{of['mean']:.1f}, {of['median']:g}, {of['cut']:.1%}"
        )
    return said | {f"chosen answer in truth {truth}": f"{share:.1%}" for truth, share in audit.truth.items()}
