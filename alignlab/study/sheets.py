"""sheets: the tables that every output of a report shows alike: calibration by the oracle, placebo, blind audit."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from alignlab.study.calibration import ERRORS, HIGHEST, LOWEST, calibrate, effect, share, tenths
from alignlab.study.comparison import compare
from alignlab.study.naming import HALLUCINATED, LOWER_IS_BETTER, SPREAD, Blind
from alignlab.study.results import Results
from alignlab.study.statistics import mean_interval
from alignlab.study.wording import MINUS, bounds, signed


class Item(NamedTuple):
    """One place of a sheet.

    Args:
        tone: Colours the text as good or bad news.
        arm: Whose colour stands before the text.
    """

    text: str
    tone: Literal["", "right", "wrong"] = ""
    arm: str | None = None


@dataclass(frozen=True)
class Sheet:
    """A table of texts: the metric, then what is said of it or of whom, then numbers."""

    title: str
    note: str
    header: tuple[Item, ...]
    rows: tuple[tuple[Item, ...], ...]


def calibration_sheets(results: Results) -> list[Sheet]:
    """What the oracle and the placebo of a study say of its headline metrics, as far as it has them."""
    if not results.finished:
        return []
    sheets = [_oracle(results)] if results.oracle else []
    sheets += [_placebo(results)] if results.placebo else []
    apart = {*results.against, *results.against.values()}  # of other data, say
    judged = [arm for arm in results.others if arm not in results.parts and arm not in apart]
    judged = judged or ([results.placebo] if results.placebo else [])
    return sheets + ([_shares(results, judged)] if results.oracle and judged else [])


def _oracle(results: Results) -> Sheet:
    baseline, oracle = results.baseline, results.oracle
    titles = (f"{oracle} {MINUS} {baseline} (standard error)", "in standard errors", "pairs")
    return Sheet(
        title=f"Calibration: {oracle}, the oracle, against {baseline}",
        note="Whether a metric shows what the oracle knows, over the starts and seeds that both arms have. Accepted "
        f"where the oracle is better by at least {ERRORS} standard errors and the mean of {baseline} is between "
        f"{LOWEST:.2f} and {HIGHEST:.2f}. Less is better of {', '.join(LOWER_IS_BETTER + HALLUCINATED)}; more of all "
        f"else, also of {', '.join(SPREAD)}.",
        header=(*_items("metric", "verdict"), Item(baseline, arm=baseline), Item(oracle, arm=oracle), *_items(*titles)),
        rows=tuple(_calibration(results, metric) for metric in results.metrics),
    )


def _calibration(results: Results, metric: str) -> tuple[Item, ...]:
    found = calibrate(results, metric)
    if found is None:
        verdict = Item("not accepted: no start and seed has it in both arms", "wrong")
        return Item(metric), verdict, *_items(*["n/a"] * 4, "0")
    error = "n/a" if found.error is None else f"{found.error:.3f}"
    verdict = Item(f"not accepted: {'; '.join(found.objections)}", "wrong")
    return (
        Item(metric),
        verdict if found.objections else Item("accepted", "right"),
        Item(f"{found.baseline:.3f}"),
        Item(f"{found.oracle:.3f}"),
        Item(f"{signed(found.difference.mean)} ({error})"),
        Item("n/a" if found.errors is None else tenths(found.errors)),
        Item(str(found.pairs)),
    )


def _placebo(results: Results) -> Sheet:
    rows = []
    for metric in results.metrics:
        difference = compare(results, results.placebo, metric).difference
        numbers = f"{signed(difference.mean)} {bounds(difference)}" if difference else "n/a"
        words, told = effect(results, metric)
        rows.append((Item(metric), Item(words, "wrong" if told else ""), Item(numbers)))
    difference = f"{results.placebo} {MINUS} {results.baseline}"
    return Sheet(
        title=f"Placebo: {results.placebo} against {results.baseline}",
        note="What the motions of a method do without its information; differences are paired by start and seed, with "
        "95 % intervals. Arms that cannot be told apart may differ all the same, as far as the interval reaches.",
        header=_items("metric", "verdict", difference),
        rows=tuple(rows),
    )


def _shares(results: Results, arms: Sequence[str]) -> Sheet:
    beside = results.placebo if results.placebo not in arms else None
    rows = []
    for metric in results.metrics:
        placebo = [Item(share(results, beside, metric))] if beside else []
        rows += [(Item(metric), Item(arm, arm=arm), Item(share(results, arm, metric)), *placebo) for arm in arms]
    baseline, gap = results.baseline, f"{results.oracle} {MINUS} {results.baseline}"
    return Sheet(
        title="Share of the oracle's gap closed",
        note=f"(arm {MINUS} {baseline}) / ({gap}), of the means over common starts and seeds, with Fieller's 95 % "
        f"interval. The gap is established where the interval of {gap} excludes 0.",
        header=_items("metric", "arm", "share closed", *(["by the placebo"] if beside else [])),
        rows=tuple(rows),
    )


def audit_sheet(results: Results, metrics: Collection[str]) -> Sheet | None:
    """The blind audit of those metrics that have one; None where none has."""
    found = [metric for metric in results.audits if metric in metrics]
    if not found:
        return None
    hows = list(dict.fromkeys(how for metric in found for how in results.audits[metric]))
    return Sheet(
        title="Blind audit",
        note="Means of the same scores without sight of what is asked about. Where a blind score comes near the "
        "sighted one, the metric does not show that anything was seen.",
        header=_items("metric", "arm", "sighted", *(how.replace("_", " ") for how in hows)),
        rows=tuple(_audit(results, metric, arm, hows) for metric in found for arm in results.arms),
    )


def _audit(results: Results, metric: str, arm: str, hows: Sequence[str]) -> tuple[Item, ...]:
    sighted = results.values(arm, metric).values()
    blind = [results.blind(arm, Blind(metric, how)) for how in hows]
    return (Item(metric), Item(arm, arm=arm), *(_mean(values) for values in (sighted, *blind)))


def _mean(values: Collection[float]) -> Item:
    return Item(f"{mean_interval([*values]).mean:.3f}" if values else "n/a")


def _items(*texts: str) -> tuple[Item, ...]:
    return tuple(map(Item, texts))
