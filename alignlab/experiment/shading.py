"""shading: tokens in the colour of their weights, as HTML, for a study's report and for Weights & Biases."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

Bounds = tuple[float, float]
"""The weights at which a token has no colour, and all of it."""

# One hue, whose lightness also tells in grey; on all of it the text keeps a contrast of more than 4.5. Printers are
# asked for it, as browsers leave backgrounds out.
STYLE = """
.shaded, .shades { --shade: 86 156 214; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.shaded { white-space: pre-wrap; overflow-wrap: anywhere; }
.shaded span { background: rgb(var(--shade) / var(--share)); border-radius: 2px; }
.shades { white-space: nowrap; }
.shades i {
  display: inline-block; width: 72px; height: 0.8em; margin: 0 6px; vertical-align: -0.05em;
  border: 1px solid rgb(var(--shade)); border-radius: 3px;
  background: linear-gradient(to right, rgb(var(--shade) / 0), rgb(var(--shade)));
}
@media (prefers-color-scheme: dark) { .shaded, .shades { --shade: 36 104 166; } }
"""
"""What a page needs besides; it follows the reader's choice of a light or dark page."""

ALONE = """
body { margin: 0; padding: 8px; background: #ffffff; color: #1d2127; font: 14px/1.5 system-ui, sans-serif; }
p { margin: 0 0 6px; }
@media (prefers-color-scheme: dark) { body { background: #1b1e24; color: #e7e9ec; } }
"""


def is_weighed(item: Mapping[str, Any]) -> bool:
    """Whether an evaluator's item has weights and says between which bounds they lie."""
    return "weights" in item and "bounds" in item


def bounds_of(item: Mapping[str, Any]) -> Bounds:
    low, high = item["bounds"]
    return low, high


def shaded(weights: Sequence[Sequence[Any]], bounds: Bounds) -> Markup:
    """Tokens one behind the other, each the stronger coloured, the larger its weight, which a pointer shows.

    Args:
        weights: Text and weight of each token, with the space in front of it, which has no colour.
        bounds: Smaller and larger weights have the colour of these.
    """
    return Markup('<span class="shaded">{}</span>').format(Markup("").join(_spans(weights, bounds)))


def legend(bounds: Bounds) -> Markup:
    """Both ends of the colours, with what lies between."""
    return Markup('<span class="shades">{:g}<i></i>{:g}</span>').format(*bounds)


def page(item: Mapping[str, Any]) -> str:
    """An item's tokens and their legend as a page of their own."""
    bounds = bounds_of(item)
    parts = (Markup(STYLE + ALONE), legend(bounds), shaded(item["weights"], bounds))
    return str(Markup("<style>{}</style><p>weight {}</p><p>{}</p>").format(*parts))


def _spans(weights: Sequence[Sequence[Any]], bounds: Bounds) -> Iterator[Markup]:
    low, high = bounds
    for text, weight in weights:
        word = text.lstrip()
        yield Markup.escape(text[: len(text) - len(word)])
        if word:
            share = min(max((weight - low) / ((high - low) or 1), 0), 1)
            yield Markup('<span style="--share: {:.2f}" title="{:.2f}">{}</span>').format(share, weight, word)
