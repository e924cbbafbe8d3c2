"""pictures: what a study shows of how its methods work: scores by kind, similarity matrices, preference pairs."""

from dataclasses import dataclass

from alignlab.study.breakdown import Breakdown, breakdown
from alignlab.study.pairs import Pairs, pairs
from alignlab.study.results import Results
from alignlab.study.similarities import Similarities, similarities


@dataclass(frozen=True)
class Pictures:
    """Each part only where the cells have left it behind; the page's ``pictures.html.j2`` shows them."""

    breakdowns: tuple[Breakdown, ...]
    similarities: tuple[Similarities, ...]
    pairs: tuple[Pairs, ...]


def pictures(results: Results) -> Pictures:
    """Read what there is, first of one finished cell of each arm."""
    if "pictures" not in results.memory:
        results.memory["pictures"] = _read(results)
    return results.memory["pictures"]


def _read(results: Results) -> Pictures:
    cells = [cell for arm in results.arms if (cell := results.shown(arm)) is not None]
    broken, matrices = [], []
    for evaluator in dict.fromkeys(name for cell in cells for name in cell.evaluators):
        samples = [cell.items(evaluator) for cell in cells]
        broken.append(breakdown(results, evaluator, samples))
        if any("similarities" in item for items in samples for item in items):
            matrices.append(similarities(results, evaluator))
    found = (tuple(each for each in parts if each is not None) for parts in (broken, matrices))
    return Pictures(*found, tuple(pairs(results)))
