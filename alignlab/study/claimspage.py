"""claimspage: what papers say, beside what studies found, as one Markdown page made from records."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignlab.study.ablations import Ablation, Agreement, Published, agreements, mirror, read_published, tally
from alignlab.study.claims import Claim
from alignlab.study.display import duration
from alignlab.study.file import read
from alignlab.study.records import Outcome, Record, read_records
from alignlab.study.wording import bounds, count, score, setting, signed

HEAD = """\
# Claims

What papers say of their objectives, and what studies found of it. This page is made from the records of the studies:
`{command}`.

{about}\
**Supported** and **not supported** are said by one rule, the report's, of the paired difference and its 95 % interval,
against the smallest effect that was said to matter; all else is **inconclusive**. A claim was registered *before* the
results if the study was first run with it before any cell of its two arms, or of the same untuned, was finished in the
study's directory, else *after* so many of them; cells that an arm had before its settings were changed are told, too.
The cost of a cell counts its stages. Intervals of mirrored ablations are over starts (or seeds) alone, without the
variance of the items, which those of claims hold.
"""
EMPTY, UNKNOWN = "–", "no record yet"


@dataclass(frozen=True)
class Test:
    """A claim of a study, and what came of it.

    Args:
        file: The study's YAML; None where nobody knows it.
        outcome: None where no record answers the claim, and then ``record`` is None, too.
    """

    study: str
    file: Path | None
    claim: Claim
    record: Record | None
    outcome: Outcome | None

    @property
    def method(self) -> str:
        """Whose claim it is: what its source begins with; the study's own where it names none."""
        return self.claim.source.partition(",")[0].strip() if self.claim.source else "Claims of our own"


def write_claims(folder: Path, page: Path, *, studies: Path | None = None, published: Path | None = None) -> None:
    """Write the page of claims; see ``claims_page``."""
    text = claims_page(folder, page, studies=studies, published=published)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def claims_page(folder: Path, page: Path, *, studies: Path | None = None, published: Path | None = None) -> str:
    """The page of claims.

    Args:
        folder: Has the records.
        page: Where the page is going to be, for its links.
        studies: A folder of studies whose claims are listed, too, where no record answers them.
        published: A file of published ablations, which are compared with the lab's.

    Raises:
        InputError: One of them cannot be read.
    """
    records = {record.name: record for record in read_records(folder)}
    told = Published("", ()) if published is None else read_published(published)
    tests = _answered(records.values())
    tests += [] if studies is None else _unanswered(studies, {(test.study, test.claim.hash) for test in tests})
    options = [f" --{key} {_plain(value)}" for key, value in (("studies", studies), ("published", published)) if value]
    command = f"alignlab study claims {_plain(folder)}{''.join(options)} --output {_plain(page)}"
    lines = [HEAD.format(command=command, about=f"{told.about}\n\n" if told.about else "").rstrip()]
    names = sorted({test.method for test in tests} | {each.method for each in told.ablations}, key=str.lower)
    lines += _at_a_glance(names, tests)
    for name in names:
        lines += ["", f"## {name}"]
        lines += _said([test for test in tests if test.method == name], page)
        lines += [line for each in told.ablations if each.method == name for line in _ablation(each, records)]
    return "\n".join([*lines, *_studies(records.values(), tests, page)]) + "\n"


def _answered(records: Iterable[Record]) -> list[Test]:
    return [
        Test(record.name, Path(record.file) if record.file else None, outcome.registered.claim, record, outcome)
        for record in records
        for outcome in record.outcomes
    ]


def _unanswered(studies: Path, answered: Collection[tuple[str, str]]) -> list[Test]:
    """The claims of the files in a folder that are not among those that records answer, by study and hash."""
    found = [(path, claim) for path in sorted(studies.glob("*.yaml")) for claim in read(path, (), []).claims]
    return [
        Test(path.stem, path, claim, None, None) for path, claim in found if (path.stem, claim.hash) not in answered
    ]


def _at_a_glance(names: Sequence[str], tests: Iterable[Test]) -> list[str]:
    """One line a method: how many of the tests say what."""
    found: dict[str, Counter[str]] = {name: Counter() for name in names}
    for test in tests:
        found[test.method][test.outcome.verdict if test.outcome else UNKNOWN] += 1
    words = ("supported", "not supported", "inconclusive", UNKNOWN)
    rows = [[name, *(str(counts[word] or EMPTY) for word in words)] for name, counts in found.items()]
    return ["", "## At a glance", "", "Tests of claims, by what came out:", "", *_table(["", *words], rows)]


def _said(tests: Sequence[Test], page: Path) -> list[str]:
    """What a method's paper says, each sentence once, and the tests of it."""
    grouped: dict[str, list[Test]] = {}
    for test in tests:
        says = test.claim.says or f"{test.claim.arm} against {test.claim.against}: {_expected(test.claim)}"
        grouped.setdefault(says, []).append(test)
    lines = []
    for says, own in grouped.items():
        sources = "; ".join(dict.fromkeys(test.claim.source for test in own if test.claim.source))
        lines += ["", f"> {says}" + (f" ({_linked(sources)})" if sources else ""), ""]
        header = ["study", "compared", "expected", "found", "verdict", "registered", "cost of a cell"]
        lines += _table(header, [_row(test, page) for test in own])
    return lines


def _row(test: Test, page: Path) -> list[str]:
    claim = test.claim
    head = [_link(test.study, test.file, page), f"*{claim.arm}* against *{claim.against}*", _expected(claim)]
    if test.outcome is None:
        return [*head, EMPTY, UNKNOWN, EMPTY, EMPTY]
    outcome = test.outcome
    found = EMPTY
    if outcome.difference is not None:
        means = test.record.means(claim.against, claim.arm, claim.metric)
        found = f"{means[0]:.3f} → {means[1]:.3f}: {signed(outcome.difference.mean)} {bounds(outcome.difference)}"
    verdict = f"**{outcome.verdict}**: {outcome.why}"
    if outcome.needed:
        verdict += f" ({count(outcome.needed, test.record.unit)} would probably decide it)"
    seen = outcome.registered.seen
    when = f"after {count(seen, 'cell')} of the results" if seen else "before the results"
    when += f", {outcome.registered.date[:10]}"
    if outcome.registered.dropped:
        when += f"; {count(outcome.registered.dropped, 'finished cell')} with other settings left out since"
    return [*head, found, verdict, when, _cost(test.record, claim)]


def _expected(claim: Claim) -> str:
    return f"{claim.metric} {claim.direction}, by {setting(claim.smallest)}"


def _cost(record: Record, claim: Claim) -> str:
    """Time of the arm's cells, and how many times that of the other arm, in time and in operations."""
    seconds = record.cost(claim.arm, "seconds")
    if seconds is None:
        return EMPTY
    ratios = [
        f"{ours / theirs:.2f} × the {noun}"
        for noun, key in (("time", "seconds"), ("FLOPs", "flops"))
        if (ours := record.cost(claim.arm, key)) is not None and (theirs := record.cost(claim.against, key))
    ]
    return ", ".join([duration(seconds), *ratios])


def _ablation(ablation: Ablation, records: Mapping[str, Record]) -> list[str]:
    """A published ablation beside the lab's."""
    found = mirror(ablation, records)
    lines = ["", f"### Mirrored ablation: {ablation.asks}", "", f"Published: {_linked(ablation.source)}."]
    lines[-1] += f" Its scale: {ablation.scale}." if ablation.scale else ""
    lines[-1] += f" {ablation.note}" if ablation.note else ""
    head = "published" if ablation.scale else "published place"
    rows = []
    for row, value in found:
        told = row.published if row.published is not None else row.rank
        rows.append([row.name, setting(told), score(value) if value else UNKNOWN])
    pairs = agreements(ablation, records)
    lines += ["", *_table(["setting", head, f"lab: {ablation.metric}"], rows), "", tally(pairs)]
    return lines + [f"- {_agreement(pair)}" for pair in pairs if pair.sign == "the opposite"]


def _agreement(pair: Agreement) -> str:
    interval = "" if pair.difference.low is None else f" {bounds(pair.difference)}"
    return (
        f"The opposite: {pair.better.name} is the better one in the paper; against {pair.worse.name} the lab has "
        f"{signed(pair.difference.mean)}{interval}."
    )


def _studies(records: Iterable[Record], tests: Sequence[Test], page: Path) -> list[str]:
    """How each record was made, and how those that are missing would be."""
    rows = []
    for record in records:
        packages = record.setup.get("packages") or {}
        commit = ((record.setup.get("git") or {}).get("commit") or "")[:8]
        made = [f"{name} {packages[name]}" for name in ("alignlab", "torch") if packages.get(name)]
        made += [f"commit {commit}"] if commit else []
        took = EMPTY if record.seconds is None else f"{record.seconds / 3600:.1f} h of computation"
        notes = " ".join(record.notes) or EMPTY
        link = _link(record.name, Path(record.file) if record.file else None, page)
        rows.append([link, record.extent, took, f"`{record.command}`", ", ".join(made), record.recorded, notes])
    header = ["study", "extent", "took", "command", "made with", "recorded", "notes"]
    lines = ["", "## Studies", "", *_table(header, rows)] if rows else []
    recorded = {record.name for record in records}
    files = dict.fromkeys(test.file for test in tests if test.study not in recorded)
    if files:
        lines += ["", "## Not run with records yet", "", "The claims of these studies have no verdict:", ""]
        lines += [f"- {_link(file.stem, file, page)}: `alignlab study run {_plain(file)}`" for file in files]
    return lines


def _link(name: str, file: Path | None, page: Path) -> str:
    """A study's name, linked where its file is there."""
    if file is None or not file.is_file():
        return name
    return f"[{name}]({Path(os.path.relpath(file, page.parent)).as_posix()})"


def _linked(source: str) -> str:
    """With links to arXiv."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)


def _plain(path: Path) -> str:
    return path.as_posix()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [" | ".join(text.replace("|", "\\|").replace("\n", " ") for text in row) for row in (header, *rows)]
    return [f"| {lines[0]} |", "|" + " --- |" * len(header), *(f"| {line} |" for line in lines[1:])]
