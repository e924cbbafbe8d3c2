"""verdicts: the one rule by which a report says that a difference is there, is not, or that nobody knows."""

from dataclasses import dataclass, replace

from alignlab.study.audit import mismatches
from alignlab.study.claims import Claim, Registered
from alignlab.study.entries import Entry, Finding, measure, row
from alignlab.study.power import MOST, units_needed
from alignlab.study.results import Results
from alignlab.study.wording import count, signed

RULE = (
    "A claim is not supported where the 95 % interval of the paired difference excludes every effect of the size that "
    "was declared to matter, on the claimed side. It is supported where the interval excludes 0, on the claimed side, "
    "all units (starts, or seeds where there is one start) agree in sign, and the comparison is matched. All else is "
    "inconclusive, the same difference in every unit included, as it tells no spread. A difference that "
    "nobody made a claim of is supported by the same rule, in its own direction, and never not supported, as no size "
    "was declared. The units said to be needed are those at which the interval would "
    "decide with a probability of 80 %, were the difference as large and as scattered as seen; signs may disagree even "
    "then."
)


@dataclass(frozen=True)
class Judged:
    """A registered claim and what came of it.

    Args:
        entry: The claim's arm on its metric, against the claim's other arm.
    """

    registered: Registered
    entry: Entry
    finding: Finding


def judge(results: Results, registered: Registered) -> Judged:
    """Say whether a study supports a claim."""
    claim = registered.claim
    if claim.arm in results.others and claim.against == results.reference(claim.arm):
        entry = row(results, claim.metric)[claim.arm]
    else:
        entry = measure(results, claim.arm, claim.metric, claim.against)
    finding = find(entry, results.unit, mismatches(results, claim.arm, claim.against, metric=claim.metric), claim)
    if finding is None:
        why = f"no start and seed of {claim.arm} and {claim.against} is finished that has the metric"
        finding = Finding("inconclusive", why)
    return Judged(registered, replace(entry, finding=finding), finding)


def find(entry: Entry, unit: str, unmatched: list[str], claim: Claim | None = None) -> Finding | None:
    """Apply the rule to one difference; None where there is none.

    Args:
        unit: What the units are called.
        unmatched: Why the comparison is not matched.
    """
    interval = entry.difference
    if interval is None:
        return None
    if interval.low is None:
        return Finding("inconclusive", f"a single {unit} allows no interval")
    if not interval.low < interval.high:
        return Finding("inconclusive", f"the same difference in every {unit} tells no spread")
    if claim is not None and (refuted := _refuted(entry, claim)):
        return Finding("not supported", " ".join([f"{refuted}.", *unmatched]) if unmatched else refuted)
    side = _side(entry, claim)
    agreeing = sum(side * value > 0 for value in entry.spread.units)
    total = len(entry.spread.units)
    if not entry.clear or side * interval.mean < 0:
        needed = units_needed(entry.spread, _distance(entry, claim))
        more = "" if needed else f"; not even {MOST} {unit}s would probably decide it"
        return Finding("inconclusive", _unclear(entry, claim) + more, needed)
    if agreeing < total:
        why = f"the interval excludes 0, but {total - agreeing} of {count(total, unit)} do not agree in sign"
        return Finding("inconclusive", why)
    if unmatched:
        return Finding(
            "inconclusive", f"the interval excludes 0, but the comparison is not matched: {_reasons(unmatched)}"
        )
    return Finding("supported", f"the interval excludes 0 and all {count(total, unit)} agree in sign")


def _reasons(unmatched: list[str]) -> str:
    """Sentences as the end of another."""
    return "; ".join(sentence.removeprefix("Not matched: ").removesuffix(".") for sentence in unmatched)


def _side(entry: Entry, claim: Claim | None) -> int:
    """Which differences speak for it: 1 the positive ones, -1 the negative ones."""
    if claim is not None:
        return 1 if claim.direction == "higher" else -1
    return 1 if entry.difference.mean >= 0 else -1


def _refuted(entry: Entry, claim: Claim) -> str | None:
    """Why a difference of the declared size, or of more, is excluded; None where it is not."""
    side = _side(entry, claim)
    farthest = side * (entry.difference.high if side > 0 else entry.difference.low)
    if farthest >= claim.smallest:
        return None
    if farthest < 0:
        return "the difference goes the other way"
    size = signed(side * claim.smallest)
    if entry.clear:
        return f"there is a difference, but the interval excludes {size}, the smallest that matters"
    return f"the interval excludes {size}, the smallest effect that matters"


def _distance(entry: Entry, claim: Claim | None) -> float:
    """From the mean to what the interval would have to exclude: 0 or, if that is farther, the declared size."""
    if claim is None:
        return abs(entry.difference.mean)
    mean = _side(entry, claim) * entry.difference.mean
    return max(mean, claim.smallest - mean)


def _unclear(entry: Entry, claim: Claim | None) -> str:
    if claim is None:
        return "the interval includes 0"
    return f"the interval includes both 0 and effects of {signed(_side(entry, claim) * claim.smallest)} and more"
