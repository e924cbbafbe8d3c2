"""page: a study's report as one HTML page that needs nothing else."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from alignlab.experiment import shading
from alignlab.study import gallery
from alignlab.study.audit import mismatches, total_costs
from alignlab.study.calibration import gain
from alignlab.study.comparison import caveats, compare, extent, paired, power, trade_note, verdict
from alignlab.study.costsheet import cost_sheet
from alignlab.study.display import duration
from alignlab.study.drawn import Drawn, draw, is_wide
from alignlab.study.entries import Entry
from alignlab.study.evidence import evidence_sheet, expected, grounds, judgements, registration, tuning_sheet
from alignlab.study.figures import ARMS, DARK, svg_for_page
from alignlab.study.naming import is_chance
from alignlab.study.payoff import OPERATIONS
from alignlab.study.pictures import pictures
from alignlab.study.plots import color_index
from alignlab.study.results import Results
from alignlab.study.sheets import audit_sheet, calibration_sheets
from alignlab.study.tables import expenses, shown, told
from alignlab.study.wording import bounds, number, score, setting, signed

FILTERS = {
    **{"score": score, "signed": signed, "bounds": bounds, "setting": setting, "told": told, "paired": paired},
    **{"expected": expected, "grounds": grounds, "registration": registration, "svg": svg_for_page, "number": number},
}


def html(results: Results, drawn: Drawn | None = None) -> str:
    """The report as one page that needs nothing else.

    Args:
        drawn: Its drawings, where they are made already.
    """
    environment = Environment(
        loader=PackageLoader("alignlab.study", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {**FILTERS, "breakable": _breakable, "tone": _tone}
    entries = rows(results, results.metrics)
    return environment.get_template("page.html.j2").render(
        results=results,
        entries=entries,
        drawn=drawn or draw(results, entries),
        palette={"light": ARMS, "dark": DARK},
        colors={arm: color_index(results, arm) for arm in results.arms},
        mismatched={arm: found for arm in results.others if (found := mismatches(results, arm))},
        wide=is_wide(results),
        walls=gallery.walls(results),
        shading=Markup(shading.STYLE),
        operations=OPERATIONS,
        **_words(results),
        **_sheets(results),
        **_origin(results),
    )


def rows(results: Results, metrics: Sequence[str]) -> dict[str, list[Entry]]:
    """Every metric's entries, of all arms."""
    return {metric: [compare(results, arm, metric) for arm in results.arms] for metric in metrics}


def _words(results: Results) -> dict[str, Any]:
    """What the page says in sentences."""
    return {
        "extent": extent(results),
        "judged": judgements(results),
        "verdicts": [verdict(results, arm) for arm in results.others if results.finished],
        "power": power(results),
        "caveats": caveats(results),
        "trade_note": trade_note(results) if results.tradeoff else None,
    }


def _sheets(results: Results) -> dict[str, Any]:
    """What the page says in tables beside the scores."""
    return {
        "more": rows(results, [metric for metric in results.all_metrics if metric not in results.metrics]),
        "evidence": evidence_sheet(results),
        "tuning": tuning_sheet(results),
        "audit": audit_sheet(results, results.metrics),
        "more_audits": audit_sheet(results, results.audits.keys() - set(results.metrics)),
        "calibrations": calibration_sheets(results),
        "costs": cost_sheet(results),
        "expenses": expenses,
        "pictures": pictures(results),
    }


def _origin(results: Results) -> dict[str, Any]:
    """Where the numbers come from."""
    total = total_costs(results)
    seconds = (total.training or 0) + (total.evaluation or 0)
    facts = [f"{len(results.finished)} of {len(results.cells)} cells finished"]
    facts += [f"{duration(seconds)} of computation"] if seconds else []
    versions = results.finished[0].versions if results.finished else {}
    return {
        "facts": facts,
        "commits": _commits(results),
        "packages": {name: version for name, version in versions.get("packages", {}).items() if version},
        "versions": _versions(versions),
        "place": shown,
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _commits(results: Results) -> list[str]:
    """The commits that the finished cells were computed at, and whether files had been changed."""
    found = [cell.versions.get("git") or {} for cell in results.finished]
    known = [git for git in found if git.get("commit")]
    return list(dict.fromkeys(git["commit"][:12] + (" with changes" if git.get("changed") else "") for git in known))


def _versions(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What a cell ran on, without its packages."""
    flat = []
    for key, value in found.items():
        if key != "packages":
            inner = value.items() if isinstance(value, dict) else [(key, value)]
            flat += [(name, str(item)) for name, item in inner if item not in (None, "", [])]
    return flat


def _tone(entry: Entry) -> str:
    """How a clear difference is coloured; what says nothing of merit has no colour."""
    if is_chance(entry.metric):
        return ""
    return "gain" if gain(entry.metric, entry.difference.mean) > 0 else "loss"


def _breakable(name: str) -> Markup:
    """A metric's name that may go on in the next line behind a slash or an underscore."""
    return Markup(str(Markup.escape(name)).replace("/", "/<wbr>").replace("_", "_<wbr>"))
