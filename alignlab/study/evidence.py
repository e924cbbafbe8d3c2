"""evidence: what a report says of registered claims, of tests, and of arms before and after tuning."""

from collections.abc import Callable

from alignlab.study.calibration import gain
from alignlab.study.claims import Claim, Registered
from alignlab.study.comparison import compare
from alignlab.study.entries import Entry, measure
from alignlab.study.results import Results
from alignlab.study.sheets import Item, Sheet
from alignlab.study.verdicts import Judged, judge
from alignlab.study.wording import bounds, count, signed

TONES = {"supported": "right", "not supported": "wrong", "inconclusive": ""}


def judgements(results: Results) -> list[Judged]:
    """Every registered claim with its verdict, once there is anything to judge."""
    return [judge(results, registered) for registered in results.claims] if results.finished else []


def expected(claim: Claim) -> str:
    """What a claim says, in words."""
    return f"{claim.arm} {claim.direction} than {claim.against} on {claim.metric}, by {claim.smallest:g} or more"


def registration(registered: Registered) -> str:
    """When a claim was registered, and whether anything could be known by then."""
    date = registered.date.replace("T", " ").replace("Z", " UTC")
    known = f"after {count(registered.seen, 'cell')} of its arms had finished"
    when = known if registered.seen else "before any cell of its arms had finished"
    dropped = count(registered.dropped, "finished cell")
    since = f"; {dropped} of its arms, with other settings, left out since" if registered.dropped else ""
    return f"registered {date}, {when}{since}"


def grounds(judged: Judged, unit: str) -> str:
    """The difference and why the verdict is what it is.

    Args:
        unit: What the study counts, see ``Results.unit``.
    """
    difference = judged.entry.difference
    numbers = f"{signed(difference.mean)} {bounds(difference)}: " if difference else ""
    needed = judged.finding.needed
    more = "" if needed is None else f"; about {needed} {unit}s would decide it"
    return f"{numbers}{judged.finding.why}{more}"


def claims_sheet(results: Results) -> Sheet | None:
    """The registered claims; None where there is none to judge."""
    found = judgements(results)
    if not found:
        return None
    rows = []
    for judged in found:
        claim, verdict = judged.registered.claim, judged.finding.verdict
        words = grounds(judged, results.unit), f"{claim.hash}, {registration(judged.registered)}"
        rows.append((Item(expected(claim)), Item(verdict, TONES[verdict]), *map(Item, words)))
    note = "What the study was expected to show, said in its file; a hash knows a claim again."
    return Sheet("Registered claims", note, tuple(map(Item, ("claim", "verdict", "grounds", "hash"))), tuple(rows))


def evidence_sheet(results: Results) -> Sheet | None:
    """Tests of each arm on each metric of the tables; None where no difference is known."""
    entries = [compare(results, arm, metric) for metric in results.metrics for arm in results.others]
    entries = [entry for entry in entries if entry.difference is not None]
    if not entries:
        return None
    columns: dict[str, Callable[[Entry], str]] = {
        "difference": lambda entry: f"{signed(entry.difference.mean)} {bounds(entry.difference)}",
        "pairs": lambda entry: str(len(entry.differences)),
        "p": lambda entry: _decimal(entry.p, 4),
    }
    if any(entry.p_holm is not None for entry in entries):
        columns["p (Holm)"] = lambda entry: _decimal(entry.p_holm, 4)
    if any(entry.improvement is not None for entry in entries):
        columns["P(improvement)"] = lambda entry: _decimal(entry.improvement, 2)
    if any(entry.detectable is not None for entry in entries):
        columns["detectable"] = lambda entry: _decimal(entry.detectable)
    if any(entry.finding is not None for entry in entries):
        columns["finding"] = lambda entry: _finding(entry, results.unit)
    rows = tuple(
        (Item(entry.metric), Item(results.label(entry.arm), arm=entry.arm), *(Item(f(entry)) for f in columns.values()))
        for entry in entries
    )
    note = (
        "p of the exact sign-flip test; the same with Holm's correction for a metric's arms; how often the arm did "
        "better; the smallest difference that a study of this size would probably show."
    )
    return Sheet("Tests", note, tuple(map(Item, ("metric", "arm", *columns))), rows)


def _decimal(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}g}" if 0 < value < 10**-digits else f"{value:.{digits}f}"


def _finding(entry: Entry, unit: str) -> str:
    if entry.finding is None:
        return "n/a"
    needed = f"; about {entry.finding.needed} {unit}s would decide it" if entry.finding.needed is not None else ""
    return f"{entry.finding.verdict}: {entry.finding.why}{needed}"


def tuning_sheet(results: Results) -> Sheet | None:
    """Each tuned arm beside the same at its own default; None in a study that tunes nothing."""
    if not (results.tuned and results.finished):
        return None
    chosen = results.tuning.chosen if results.tuning else {}
    rows = [
        (
            Item(default, arm=default),
            Item(chosen.get(default) or ""),
            *(_change(results, arm, metric) for metric in results.metrics),
        )
        for arm, default in results.tuned.items()
    ]
    note = (
        "Mean scores of every arm at its own default, and behind the arrow with the setting that did best of those "
        "tried for it on validation data; coloured where the interval of the paired difference excludes 0."
    )
    return Sheet("Default and tuned", note, tuple(map(Item, ("arm", "chosen", *results.metrics))), tuple(rows))


def _change(results: Results, arm: str, metric: str) -> Item:
    default = results.tuned[arm]
    before, after = compare(results, default, metric).score, measure(results, arm, metric, default)
    if before is None or after.score is None:
        return Item("n/a")
    if results.copies(arm, default):
        return Item(f"{before.mean:.3f}")
    better = gain(metric, after.difference.mean) > 0 if after.clear else None
    tone = "" if better is None else "right" if better else "wrong"
    return Item(f"{before.mean:.3f} → {after.score.mean:.3f}", tone)
