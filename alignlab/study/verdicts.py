"""verdicts: the one rule by which a report says that a difference is there, is not, or that nobody knows."""

from dataclasses import dataclass

from alignlab.study.claims import Registered
from alignlab.study.comparison import Entry, Finding, compare
from alignlab.study.results import Results

RULE = "A claim is supported where the interval of the paired difference excludes 0 on the claimed side."


@dataclass(frozen=True)
class Judged:
    """A registered claim and what came of it."""

    registered: Registered
    entry: Entry
    finding: Finding


def judge(results: Results, registered: Registered) -> Judged:
    """Say whether a study supports a claim."""
    claim = registered.claim
    entry = compare(results, claim.arm, claim.metric)
    side = 1 if claim.direction == "higher" else -1
    if entry.clear and side * entry.difference.mean > 0:
        return Judged(registered, entry, Finding("supported", "the interval excludes 0"))
    if entry.clear:
        return Judged(registered, entry, Finding("not supported", "the difference goes the other way"))
    return Judged(registered, entry, Finding("inconclusive", "the interval includes 0", needed=12))
