"""payoff: what the arms of a study reached, beside what their training cost."""

from dataclasses import dataclass

from alignlab.study.audit import mismatches
from alignlab.study.comparison import Trade, compare
from alignlab.study.results import CellResult, Results
from alignlab.study.statistics import Interval

OPERATIONS = "training GFLOPs, stages included"
SECONDS = "seconds of training, stages included"

ALIKE = 1.02
"""Costs nearer to each other than this ratio are the same: there is nothing to weigh."""


@dataclass(frozen=True)
class Payoffs:
    """One metric against what it cost.

    Args:
        cost: What is counted: operations where every finished cell counted them, else seconds.
        trades: Of each arm that has the metric: cost, then metric.
        unmatched: Arms whose comparison is not matched.
    """

    metric: str
    cost: str
    trades: tuple[Trade, ...]
    unmatched: frozenset[str]


def payoffs(results: Results, metric: str) -> Payoffs | None:
    """What the arms reached on a metric and paid for it; None where fewer than two have it, or all paid alike."""
    cells = {arm: [cell for cell in results.of(arm) if metric in cell.scores] for arm in results.arms}
    scored = [cell for found in cells.values() for cell in found]
    counted = all(operations(cell) is not None for cell in scored)
    price, cost = (operations, OPERATIONS) if counted else (seconds, SECONDS)
    trades = []
    for arm, found in cells.items():
        prices = [price(cell) for cell in found]
        if prices and None not in prices and sum(prices) > 0:
            paid = Interval(sum(prices) / len(prices), None, None)
            trades.append(Trade(arm, ((), ()), (paid, compare(results, arm, metric).score)))
    unmatched = frozenset(arm for arm in results.others if mismatches(results, arm))
    paid = [trade.means[0].mean for trade in trades]
    differ = len(trades) > 1 and max(paid) > ALIKE * min(paid)
    return Payoffs(metric, cost, tuple(trades), unmatched) if differ else None


def operations(cell: CellResult) -> float | None:
    """Forward and backward operations of a cell's training, stages included, in billions; None where not known."""
    costs = cell.whole_costs
    return None if None in (costs.forward, costs.backward) else (costs.forward + costs.backward) / 1e9


def seconds(cell: CellResult) -> float | None:
    """Seconds of a cell's training and of its stages; None where that is not known."""
    return cell.whole_costs.training
