"""audit: whether the arms of a study had the same budget, and what each of them cost."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from statistics import fmean

from alignlab.study.costs import Costs, together
from alignlab.study.examination import unlike
from alignlab.study.results import CellResult, Results
from alignlab.study.wording import number

TOLERANCE = 0.01
"""By what part of the smaller number trained weights may differ: a learned scale is no matter."""

MATCHED = (
    "Two arms are matched where optimizer steps and samples, those of earlier stages included, trained weights "
    f"(within {TOLERANCE:.0%}), the number of settings tried and what the evaluators ask are the same. Tokens, "
    "floating-point operations, time and memory are what an arm costs: told, not matched. Data and other settings are "
    "what arms differ in on purpose, and stand beside their names."
)
"""What the report means by matched, in words for its reader."""

BUDGET = {"steps": "steps", "samples": "samples", "trained": "trained parameters"}
"""What must be the same, by the name in ``Costs``, and how it is called."""


@dataclass(frozen=True)
class Mismatch:
    """One thing in which an arm and the arm it is compared with are not matched.

    Args:
        subject: What differs, in a word or two: samples, an evaluator's label.
        text: The whole sentence.
        known: False where nobody can tell whether it does.
    """

    subject: str
    text: str
    known: bool = True


def mismatches(results: Results, arm: str, reference: str | None = None, *, metric: str | None = None) -> list[str]:
    """In what the budget of an arm, or what it was asked, differs from another's, a sentence each.

    Args:
        reference: The arm that it is compared with; default the one that the study names.
        metric: Of the evaluators look at the one of this metric alone; default at all.

    Returns:
        Empty where the arms are matched, and where they have no start and seed in common.
    """
    return [each.text for each in unmatched(results, arm, reference, metric=metric)]


def unmatched(results: Results, arm: str, reference: str | None = None, *, metric: str | None = None) -> list[Mismatch]:
    """As ``mismatches``, with what each is about."""
    reference = results.reference(arm) if reference is None else reference
    pairs = [] if arm == reference else _pairs(results, arm, reference)
    if all(ours.directory == theirs.directory for ours, theirs in pairs):  # no pairs, or a tuned arm at its default
        return []
    whose = f"{arm} and {reference}"
    budgets = [(label, *_budget(pairs, name)) for name, label in BUDGET.items()]
    found = []
    if unknown := [label for label, ours, theirs in budgets[:2] if None in (ours, theirs)]:
        what = " and ".join(unknown)
        found.append(Mismatch(what, f"Not known whether {what} of {whose} match: {_why(pairs)}.", known=False))
    budgets.append(("settings tried", tried(results, arm), tried(results, reference)))
    for label, ours, theirs in budgets:
        if None not in (ours, theirs) and ours != theirs:
            numbers = f"{number(ours)} against {number(theirs)}"
            numbers += _by_part(*pairs[0]) if label == BUDGET["trained"] else ""
            found.append(Mismatch(label, f"Not matched: {label} of {whose} differ ({numbers})."))
    for label, words in _asked_otherwise(*pairs[0], metric):
        found.append(Mismatch(label, f"Not matched: {label} asks {whose} otherwise ({words})."))
    return found


def tried(results: Results, arm: str) -> int | None:
    """How many settings were tried for an arm before its own were chosen; None in a study that tunes nothing.

    An arm at its default has tried one.
    """
    if results.tuning is None:
        return None
    counts = results.tuning.tried
    if arm in results.tuned:
        return counts.get(arm, counts.get(results.tuned[arm], 1))
    return 1 if arm in results.tuned.values() else counts.get(arm, 1)


def _pairs(results: Results, arm: str, reference: str) -> list[tuple[CellResult, CellResult]]:
    """The finished cells of both arms, by start and seed."""
    others = {cell.pair: cell for cell in results.of(reference) if cell.finished}
    return [(cell, others[cell.pair]) for cell in results.of(arm) if cell.finished and cell.pair in others]


def _budget(pairs: list[tuple[CellResult, CellResult]], name: str) -> tuple[float | None, float | None]:
    """Both arms' values at the first pair where they differ, else at the first."""
    values = [tuple(getattr(cell.whole_costs, name) for cell in pair) for pair in pairs]
    allowed = TOLERANCE if name == "trained" else 0.0
    for ours, theirs in values:
        if None not in (ours, theirs) and abs(ours - theirs) > allowed * min(ours, theirs):
            return ours, theirs
    ours, theirs = values[0]
    return (ours, theirs) if None in (ours, theirs) else (ours, ours)  # within the tolerance


def _by_part(ours: CellResult, theirs: CellResult) -> str:
    """The parts whose trained weights differ, where the records name parts."""
    parts = [cell.whole_costs.parts for cell in (ours, theirs)]
    counts = {name: [each.get(name, 0) for each in parts] for each in parts for name in each} if all(parts) else {}
    told = [f"{name} {number(a)} against {number(b)}" for name, (a, b) in counts.items() if a != b]
    return f": {', '.join(told)}" if told else ""


def _why(pairs: list[tuple[CellResult, CellResult]]) -> str:
    if any("command" in cell.metrics for pair in pairs for cell in pair):
        return "a command trains one of them"
    return "the records of one of them, or of its stages, do not say"


def _asked_otherwise(ours: CellResult, theirs: CellResult, metric: str | None) -> Iterator[tuple[str, str]]:
    """Evaluators that both have, and what they asked otherwise."""
    for label, asked in ours.examinations.items():
        if label in theirs.examinations and metric in (None, *_metrics_of(ours, label)):
            if words := "; ".join(unlike(asked, theirs.examinations[label])):
                yield label, words


def _metrics_of(cell: CellResult, label: str) -> list[str]:
    return [name for name in cell.metrics["scores"] if name.startswith(f"{label}/")]


def arm_costs(results: Results, arm: str, *, stages: bool = True) -> Costs:
    """What an arm cost on average over its finished cells; what is not known of one is not known of the arm.

    Args:
        stages: With the stages that its cells build on, each counted in full, whoever else has a part in it.
    """
    cells = [cell.whole_costs if stages else cell.costs for cell in results.of(arm) if cell.finished]
    names = [each.name for each in fields(Costs) if each.name != "parts"]
    return Costs(**{name: _mean([getattr(each, name) for each in cells]) for name in names})


def _mean(values: list[float | None]) -> float | None:
    return None if None in values or not values else fmean(values)


def total_costs(results: Results) -> Costs:
    """What all finished cells cost together; a cell or a stage that several share is counted once."""
    places = {place: costs for cell in results.finished for place, costs in cell.stages.items()}
    places |= {cell.directory: cell.costs for cell in results.finished}
    return together(places.values())
