"""audit: whether the arms of a study had the same budget, and what each of them cost."""

from alignlab.study.results import Results
from alignlab.study.wording import number


def mismatches(results: Results, arm: str) -> list[str]:
    """In what the budget of an arm differs from that of the arm it is compared with; empty where they are matched."""
    cell, reference = results.shown(arm), results.shown(results.reference(arm))
    if cell is None or reference is None:
        return []
    whose = f"{arm} and {results.reference(arm)}"
    budgets = [(name, cell.metrics.get(name), reference.metrics.get(name)) for name in ("steps", "samples")]
    if cell.trained and reference.trained and abs(cell.trained / reference.trained - 1) > 0.01:
        budgets.append(("trained parameters", cell.trained, reference.trained))  # a learned scale is no matter
    notes = []
    if unknown := [name for name, *both in budgets if None in both]:
        notes.append(f"Not known whether {' and '.join(unknown)} of {whose} match: a command trains one of them.")
    for name, ours, theirs in budgets:
        if None not in (ours, theirs) and ours != theirs:
            notes.append(f"Not matched: {name} of {whose} differ ({number(ours)} against {number(theirs)}).")
    return notes
