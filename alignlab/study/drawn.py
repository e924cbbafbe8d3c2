"""drawn: every drawing of a report, made once for the page and for files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignlab.study.comparison import trades
from alignlab.study.curves import curve_plot
from alignlab.study.entries import Entry
from alignlab.study.figures import Drawing
from alignlab.study.payoff import payoffs
from alignlab.study.pictures import pictures
from alignlab.study.plots import effect_plot, score_plot
from alignlab.study.results import Results
from alignlab.study.scatter import payoff_plot, tradeoff_plot
from alignlab.study.similarities import matrix_plot

MOST = 12
"""Metrics that are drawn; a study that has more names those that it is about."""


@dataclass(frozen=True)
class Drawn:
    """What a report draws: by metric; the trade-off, if there is one; by arm; by evaluator."""

    effects: dict[str, Drawing]
    scores: dict[str, Drawing]
    payoffs: dict[str, Drawing]
    tradeoff: Drawing | None
    curves: dict[str, Drawing]
    matrices: tuple[Drawing, ...]

    @property
    def all(self) -> Iterator[Drawing]:
        for group in (self.effects, self.scores, self.payoffs, self.curves):
            yield from group.values()
        yield from self.matrices
        if self.tradeoff is not None:
            yield self.tradeoff


def draw(results: Results, entries: Mapping[str, Sequence[Entry]]) -> Drawn:
    """Draw a study's results.

    Args:
        entries: Of all arms on every metric of the tables.
    """
    drawable = {metric: row for metric, row in entries.items() if any(entry.score for entry in row)}
    drawable = dict([*drawable.items()][:MOST])
    found = {metric: payoffs(results, metric) for metric in drawable}
    traded, wide = trades(results), is_wide(results)
    curves = {arm: curve_plot(results, arm, wide=wide) for arm in results.arms}
    return Drawn(
        effects={m: effect_plot(results, row) for m, row in drawable.items() if any(e.difference for e in row)},
        scores={metric: score_plot(results, row) for metric, row in drawable.items()},
        payoffs={metric: payoff_plot(results, each) for metric, each in found.items() if each is not None},
        tradeoff=tradeoff_plot(results, traded) if traded else None,
        curves={arm: curve for arm, curve in curves.items() if curve is not None},
        matrices=tuple(map(matrix_plot, pictures(results).similarities)),
    )


def is_wide(results: Results) -> bool:
    """Whether learning curves stand two a row, not three."""
    return len(results.arms) in (1, 2, 4)
