"""naming: what the name of a metric says of it."""

from typing import NamedTuple

SIZES = ("tokens", "bits", "bits_entropy")
"""Last words of the names of metrics that are compared by their ratios: twice as many bits, not eight more."""

LOWER_IS_BETTER = ("perplexity", "nats", "error", "distance", "unparsed", "kl", "log_ratio", *SIZES)
"""Last words of the names of metrics of which less is better."""

SPREAD = ("code_perplexity",)
"""Last words of those of which more is better for all that: how many codes are in use, in effect."""

HALLUCINATED = ("chair/sentence", "chair/instance")
"""Metrics of which less is better, too."""

LEVELS = (
    *("yes_ratio", "chair/mentions", "chair/length", "perplexity_start", "tokens_std", "drawing/tokens"),
    "cosine_constant",
)
"""Ends of the names of metrics that say what was answered, not how well."""


Pair = tuple[str, int]
"""Start and seed: what two arms share."""


class Blind(NamedTuple):
    """A metric, and how it was scored again without the right picture, e.g. ``text_only``."""

    metric: str
    how: str


def audited(name: str) -> Blind | None:
    """What ``<evaluator>/blind/<how>/<score>`` audits: ``<evaluator>/<score>``; None for any other name."""
    evaluator, found, rest = name.partition("/blind/")
    how, _, score = rest.partition("/")
    return Blind(f"{evaluator}/{score}", how) if score else None


def is_chance(metric: str) -> bool:
    """Whether a metric is no merit but a level, such as ``retrieval/chance_r1`` or how often the answer is yes."""
    score = metric.rpartition("/")[2]
    return score.startswith("chance_") or metric.endswith(LEVELS)


def lower_is_better(metric: str) -> bool:
    """Whether little of a metric is good, by the last word of its name: ``text/perplexity``, ``box/mean_error``."""
    return not _ends(metric, SPREAD) and (metric in HALLUCINATED or _ends(metric, LOWER_IS_BETTER))


def is_size(metric: str) -> bool:
    """Whether a metric is drawn on an axis of ratios."""
    return _ends(metric, SIZES)


def _ends(metric: str, words: tuple[str, ...]) -> bool:
    return f"_{metric.rpartition('/')[2]}".endswith(tuple(f"_{word}" for word in words))
