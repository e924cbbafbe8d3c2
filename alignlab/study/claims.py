"""claims: what a study is expected to show, said in its file before it runs, and known again by a hash."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal

from alignlab.study.keys import meant

KEYS = ("arm", "against", "metric", "direction", "smallest", "says", "source")


@dataclass(frozen=True)
class Claim:
    """That one arm has more, or less, of a metric than another.

    Args:
        against: The arm that it is compared with, by (start, seed).
        direction: ``higher`` or ``lower``.
        smallest: The smallest difference that matters, in the metric's own unit, positive.
        says: What the paper says, in words; None where the claim is the study's own.
        source: Where it says so.
    """

    arm: str
    against: str
    metric: str
    direction: Literal["higher", "lower"]
    smallest: float
    says: str | None = None
    source: str | None = None

    @property
    def hash(self) -> str:
        """Of what decides the verdict; words may be mended."""
        deciding = {key: value for key, value in asdict(self).items() if key not in ("says", "source")}
        return sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Registered:
    """A claim, with when the study was first run with it.

    Args:
        date: ISO 8601, UTC.
        seen: Cells of the claim's two arms that were finished by then in the study's directory, those of settings that
            the study no longer has included, and of a tuned arm those at its default: 0 where it was made before it
            could be known. Cells that somebody has deleted are not counted.
        dropped: Finished cells of the two arms that the study had and no longer has: what an arm is has been changed
            in knowledge of them.
    """

    claim: Claim
    date: str
    seen: int
    dropped: int = 0


def read_claims(
    value: Any, arms: Mapping[str, Sequence[str]], against: Mapping[str, str], baseline: str, faults: list[str]
) -> tuple[Claim, ...]:
    """Check the study's key ``claims``; what is wrong is left out of the result.

    Args:
        arms: What each name stands for: an arm's for itself, one as it is written for it at every point of the axes.
        against: What arms are compared with that are not compared with the baseline.
        faults: Takes one line a fault.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        faults.append(f"claims: expected a list, each {{arm, metric, direction, smallest}}, got {value!r}")
        return ()
    claims = []
    for number, item in enumerate(value, 1):
        wrong = list(_wrong(item, arms))
        if not wrong:
            arm = arms[str(item["arm"])][0]
            other = arms[str(item["against"])][0] if "against" in item else against.get(arm, baseline)
            wrong = [f"against: {other!r} is the arm itself"] if other == arm else []
        if wrong:
            faults += [f"claims: number {number}: {fault}" for fault in wrong]
        else:
            claims.append(Claim(**{**item, "arm": arm, "against": other, "smallest": float(item["smallest"])}))
    hashes = [claim.hash for claim in claims]
    faults += [
        f"claims: {c.arm} on {c.metric} stands there twice" for i, c in enumerate(claims) if c.hash in hashes[:i]
    ]
    return tuple(claims)


def _wrong(item: Any, arms: Mapping[str, Sequence[str]]) -> Iterable[str]:
    if not isinstance(item, dict):
        yield f"expected {{arm, metric, direction, smallest}}, got {item!r}"
        return
    yield from (f"unknown key {key!r}; there is {', '.join(KEYS)}" for key in item if key not in KEYS)
    yield from (f"{key} is missing" for key in ("arm", "metric", "direction", "smallest") if key not in item)
    for key in ("arm", "against"):
        if key in item and str(item[key]) not in arms:
            yield f"{key}: no arm is called {item[key]!r}{meant(str(item[key]), arms)}"
        elif key in item and len(stands := arms[str(item[key])]) > 1:
            yield f"{key}: {item[key]} stands for {len(stands)} arms: {'; '.join(stands)}; name one of them"
    if item.get("direction", "higher") not in ("higher", "lower"):
        yield f"direction: expected higher or lower, got {item['direction']!r}"
    smallest = item.get("smallest", 1.0)
    if isinstance(smallest, bool) or not isinstance(smallest, int | float) or not 0 < smallest < float("inf"):
        yield f"smallest: expected a number above 0, in the metric's unit, got {smallest!r}"
    yield from (
        f"{key}: expected text, got {item[key]!r}"
        for key in ("metric", "says", "source")
        if not isinstance(item.get(key, ""), str)
    )


def register(
    claims: Iterable[Claim],
    before: Iterable[Mapping[str, Any]],
    finished: Mapping[str, int],
    dropped: Mapping[str, int],
) -> list[dict[str, Any]]:
    """What the manifest says of the claims; those that it held before keep their date.

    Args:
        before: What the manifest said so far.
        finished: By arm, finished cells from which its results may be known.
        dropped: By arm, those of them that the study no longer has.
    """
    known = {item["hash"]: item for item in before}
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = []
    for claim in claims:
        seen = finished.get(claim.arm, 0) + finished.get(claim.against, 0)
        first = known.get(claim.hash, {"date": now, "seen": seen})
        gone = dropped.get(claim.arm, 0) + dropped.get(claim.against, 0)
        told = {"hash": claim.hash, "date": first["date"], "seen": first["seen"], "dropped": gone}
        lines.append({**asdict(claim), **told})
    return lines


def registered(lines: Iterable[Mapping[str, Any]]) -> tuple[Registered, ...]:
    """Claims as a manifest holds them."""
    return tuple(map(registered_of, lines))


def registered_of(line: Mapping[str, Any]) -> Registered:
    """A claim as a manifest, or a record, holds it."""
    claim = Claim(**{key: line[key] for key in KEYS})
    return Registered(claim, line["date"], line["seen"], line.get("dropped", 0))
