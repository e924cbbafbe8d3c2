"""Findings: what a certificate says of each property."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["holds", "fails", "n/a"]


@dataclass(frozen=True)
class Finding:
    """What was found of one property.

    Args:
        deviation: The largest relative deviation seen; None where nothing was compared.
        bound: What it may be.
        note: Where the deviation is, why the property is not applicable, or what was raised.
    """

    property: str
    verdict: Verdict
    deviation: float | None = None
    bound: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Certificate:
    """Everything that was found of one objective."""

    objective: str
    findings: Sequence[Finding]

    @property
    def holds(self) -> bool:
        """Whether no property fails."""
        return all(finding.verdict != "fails" for finding in self.findings)

    def __getitem__(self, name: str) -> Finding:
        return next(finding for finding in self.findings if finding.property == name)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"objective": self.objective, "holds": self.holds, "findings": [asdict(each) for each in self.findings]}


def compare(name: str, deviations: dict[str, float], bound: float) -> Finding:
    """The finding of a property that holds when no deviation is larger than the bound.

    Args:
        deviations: What was compared -> how far it was off; not a number is off beyond all bounds.
    """
    where = max(deviations, key=lambda each: _size(deviations[each]))
    worst = deviations[where]
    if _size(worst) <= bound:
        return Finding(name, "holds", worst, bound)
    # What rounds to float32 is off by its precision, which is not an error of the mathematics.
    hint = "; does it round to float32 somewhere? alignlab.functional.upcast keeps float64" if worst < 1e-5 else ""
    return Finding(name, "fails", worst, bound, f"worst: {where}{hint}")


def _size(deviation: float) -> float:
    return float("inf") if deviation != deviation else deviation
