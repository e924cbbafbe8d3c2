"""costsheet: the fairness audit as a table, one row an arm: its budget, its costs, and what did not match."""

from collections.abc import Callable
from dataclasses import dataclass

from alignlab.experiment.units import scaled
from alignlab.study.audit import MATCHED, arm_costs, total_costs, tried, unmatched
from alignlab.study.costs import Costs
from alignlab.study.display import duration
from alignlab.study.results import Results
from alignlab.study.sheets import Item, Sheet
from alignlab.study.wording import count, number


@dataclass(frozen=True)
class Column:
    """A number of every arm.

    Args:
        compared: With the ratio to the arm that it is compared with.
    """

    title: str
    value: Callable[[Costs], float | None]
    text: Callable[[float], str]
    compared: bool = True


def _sum(*values: float | None) -> float | None:
    return None if None in values else sum(values)


STEPS = Column("steps", lambda costs: costs.steps, number, compared=False)
SAMPLES = Column("samples", lambda costs: costs.samples, number, compared=False)
TRAINED = Column("trained weights", lambda costs: costs.trained, number, compared=False)
SHORT = (
    STEPS,
    SAMPLES,
    TRAINED,
    Column("FLOPs", lambda costs: _sum(costs.forward, costs.backward), lambda value: scaled(value).strip()),
    Column("time", lambda costs: _sum(costs.training, costs.evaluation), duration),
)
"""The columns of a terminal."""

ALL = (
    STEPS,
    SAMPLES,
    TRAINED,
    Column("all weights", lambda costs: costs.total, number, compared=False),
    Column("tokens", lambda costs: costs.tokens, number),
    Column("FLOPs forward", lambda costs: costs.forward, lambda value: scaled(value).strip()),
    Column("FLOPs backward", lambda costs: costs.backward, lambda value: scaled(value).strip()),
    Column("training", lambda costs: costs.training, duration),
    Column("evaluation", lambda costs: costs.evaluation, duration),
    Column("peak memory", lambda costs: costs.memory, lambda value: f"{number(value)} MiB"),
)


def cost_sheet(results: Results, columns: tuple[Column, ...] = ALL) -> Sheet | None:
    """What each arm used up and cost, and whether it is matched; None where nothing is finished."""
    arms = [arm for arm in results.arms if results.done(arm)]
    if not arms:
        return None
    costs = {arm: arm_costs(results, arm) for arm in results.arms}
    columns = tuple(column for column in columns if any(column.value(costs[arm]) is not None for arm in arms))
    tries = {arm: tried(results, arm) for arm in arms}
    header = ["arm", "budget", *(column.title for column in columns)]
    return Sheet(
        title="Budget and costs",
        note=_note(results),
        header=tuple(map(Item, header + (["settings tried"] if results.tuning is not None else []))),
        rows=tuple(
            (
                Item(results.label(arm), arm=arm),
                _matched(results, arm),
                *(_place(results, arm, column, costs) for column in columns),
                *([Item(str(tries[arm]))] if tries[arm] is not None else []),
            )
            for arm in arms
        ),
    )


def _note(results: Results) -> str:
    total, stages = total_costs(results), any(cell.stages for cell in results.finished)
    sentences = ["Means over the finished cells of each arm, in brackets what they are to the arm it is compared with."]
    if stages:
        sentences.append(
            "What earlier stages cost is in it, in every arm that builds on them; what is the arm's own stands behind "
            "it where that is less."
        )
    whole = _sum(total.training, total.evaluation)
    if whole is not None:
        cells = count(len({cell.directory for cell in results.finished}), "cell")
        shared = ", with each stage counted once," if stages else ""
        flops = _sum(total.forward, total.backward)
        told = "" if flops is None else f" and {scaled(flops)}FLOPs of training"
        sentences.append(f"All {cells} together{shared} took {duration(whole)}{told}.")
    return " ".join((*sentences, MATCHED))


def _matched(results: Results, arm: str) -> Item:
    reference = results.reference(arm)
    if arm == reference:
        return Item("–")
    if not any(cell.finished and cell.pair in _finished(results, reference) for cell in results.of(arm)):
        return Item("not compared yet")
    found = unmatched(results, arm)
    if known := [each.subject for each in found if each.known]:
        return Item(f"not matched: {', '.join(known)}", "wrong")
    return Item("not known", "wrong") if found else Item("matched", "right")


def _finished(results: Results, arm: str) -> set:
    return {cell.pair for cell in results.of(arm) if cell.finished}


def _place(results: Results, arm: str, column: Column, costs: dict[str, Costs]) -> Item:
    value, own = column.value(costs[arm]), column.value(arm_costs(results, arm, stages=False))
    if value is None:
        return Item("n/a")
    reference = results.reference(arm)
    theirs = column.value(costs[reference]) if column.compared and arm != reference else None
    text = column.text(value) + (f" ({value / theirs:.2f}×)" if theirs else "")
    less = own is not None and own < value and column.text(own) != column.text(value)
    return Item(text + (f", own {column.text(own)}" if less else ""))
