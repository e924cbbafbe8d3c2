"""audit: whether the arms of a study had the same budget, and what each of them cost."""

from alignlab.study.results import Results
from alignlab.study.wording import number


def mismatches(results: Results, arm: str, reference: str | None = None) -> list[str]:
    """In what the budget of an arm differs from that of the arm it is compared with; empty where they are matched.

    Args:
        reference: That arm, where it is another than the study's own.
    """
    against = results.reference(arm) if reference is None else reference
    cell, other = results.shown(arm), results.shown(against)
    if cell is None or other is None:
        return []
    whose = f"{arm} and {against}"
    budgets = [(name, cell.metrics.get(name), other.metrics.get(name)) for name in ("steps", "samples")]
    if cell.trained and other.trained and abs(cell.trained / other.trained - 1) > 0.01:
        budgets.append(("trained parameters", cell.trained, other.trained))  # a learned scale is no matter
    notes = []
    if unknown := [name for name, *both in budgets if None in both]:
        notes.append(f"Not known whether {' and '.join(unknown)} of {whose} match: a command trains one of them.")
    for name, ours, theirs in budgets:
        if None not in (ours, theirs) and ours != theirs:
            notes.append(f"Not matched: {name} of {whose} differ ({number(ours)} against {number(theirs)}).")
    return notes
