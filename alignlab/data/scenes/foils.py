"""Foils: true and false captions that differ in one thing, so balanced that neither length nor language tells them.

What is replaced, swapped or added is drawn as in a world without bias, so that a true caption and its false twin are
equally likely as texts; relations, which are not, are thinned until they are. In a biased world (``co_occurrence``) the
true caption is the more usual one: there, in training, language does tell.
"""

from functools import cache
from itertools import combinations
from random import Random

from alignlab.data.scenes.language import Phrase, Statement, holds
from alignlab.data.scenes.world import ATTRIBUTES, GRID, HELD_OUT, LOOKS, SIZES, Scene, pick

TRIES = 8
"""How often a change that came out true is drawn again."""

Pair = tuple[Statement, Statement]
"""True, and perhaps false."""


def make_foils(caption: Statement, scene: Scene, random: Random) -> dict[str, Pair]:
    """A true and a false caption of a scene, by kind; a kind that finds none is left out.

    The true one is the canonical caption, but for ``add_attribute``, where it says the attribute of one object alone.

    Args:
        caption: The canonical one.
    """
    found = {}
    held_out = _num_held_out(caption)
    for kind, change in KINDS.items():
        for _ in range(TRIES):
            true, changed = change(caption, scene, random)
            if changed is None:
                break
            # As many held-out looks in both: a caption with fewer would be the likelier one for who never saw any.
            alike = _num_held_out(changed) == (held_out if true is caption else _num_held_out(true))
            if alike and changed is not true and not holds(changed, scene):
                found[kind] = (true, changed)
                break
    return found


def _num_held_out(statement: Statement) -> int:
    return sum([phrase[:2] in HELD_OUT for phrase in statement.phrases])


def _replace_object(caption: Statement, scene: Scene, random: Random) -> tuple[Statement, Statement | None]:
    return caption, _replace_word(caption, "shape", _any(caption, random), random)


def _replace_attribute(caption: Statement, scene: Scene, random: Random) -> tuple[Statement, Statement | None]:
    return caption, _replace_word(caption, pick(("color", "size"), random), _any(caption, random), random)


def _replace_relation(caption: Statement, scene: Scene, random: Random) -> tuple[Statement, Statement | None]:
    if not caption.relations:
        return caption, None
    index = int(random.random() * len(caption.relations))
    if random.random() >= _flip_rates(len(caption.phrases)).get((caption.relations, index), 0.0):
        return caption, None
    changed = Statement(caption.phrases, _flipped(caption.relations, index))
    return caption, None if holds(changed, scene) else changed


def _flipped(relations: tuple[str, ...], index: int) -> tuple[str, ...]:
    # Canonical captions never say "right of" or "below"; a false one that did would be known by its words alone.
    other = "above" if relations[index] == "left of" else "left of"
    return (*relations[:index], other, *relations[index + 1 :])


@cache
def _flip_rates(count: int) -> dict[tuple[tuple[str, ...], int], float]:
    """How often to keep a relation's flip so that each flip comes as often as the one back.

    Counted over all choices of cells. "left of" (one row) is never also "above"; "above" is "left of" too where the
    second object stands further right, and then its flip is not false.
    """
    possible: dict[tuple[tuple[str, ...], int], int] = {}
    for cells in combinations(range(GRID * GRID), count):
        neighbours = list(zip(cells, cells[1:], strict=False))
        relations = tuple("left of" if a // GRID == b // GRID else "above" for a, b in neighbours)
        for index, (a, b) in enumerate(neighbours):
            if relations[index] == "left of" or a % GRID >= b % GRID:
                possible[relations, index] = possible.get((relations, index), 0) + 1
    return {
        (relations, index): min(1.0, possible.get((_flipped(relations, index), index), 0) / times)
        for (relations, index), times in possible.items()
    }


def _swap_object(caption: Statement, scene: Scene, random: Random) -> tuple[Statement, Statement | None]:
    return caption, _swap(caption, "shape", random)


def _swap_attribute(caption: Statement, scene: Scene, random: Random) -> tuple[Statement, Statement | None]:
    return caption, _swap(caption, pick(("color", "size"), random), random)


def _swap(caption: Statement, attribute: str, random: Random) -> Statement | None:
    if not caption.relations:
        return None
    count = len(caption.phrases)
    first = int(random.random() * count)
    second = (first + 1 + int(random.random() * (count - 1))) % count
    a, b = getattr(caption.phrases[first], attribute), getattr(caption.phrases[second], attribute)
    return caption if a == b else _changed(caption, {first: {attribute: b}, second: {attribute: a}})


def _add_object(caption: Statement, scene: Scene, random: Random) -> tuple[Statement, Statement | None]:
    """As if to a caption that had left an object out: the true one adds it, the false one adds what is not there."""
    if not caption.relations:
        return caption, None
    shape, color = pick(LOOKS, random)
    if any(thing[:2] == (shape, color) for thing in scene.things):
        return caption, caption  # true: drawn again
    added = {"shape": shape, "color": color, "size": pick(SIZES, random)}
    return caption, _changed(caption, {_any(caption, random): added})


def _add_attribute(caption: Statement, scene: Scene, random: Random) -> tuple[Statement, Statement | None]:
    """To a caption without colours, or without sizes, add one."""
    attribute, index = pick(("color", "size"), random), _any(caption, random)
    others = {each: {attribute: None} for each in range(len(caption.phrases)) if each != index}
    true = _changed(caption, others)
    return true, _replace_word(true, attribute, index, random)


def _any(caption: Statement, random: Random) -> int:
    return int(random.random() * len(caption.phrases))


def _replace_word(caption: Statement, attribute: str, index: int, random: Random) -> Statement:
    said = getattr(caption.phrases[index], attribute)
    return _changed(
        caption, {index: {attribute: pick([word for word in ATTRIBUTES[attribute] if word != said], random)}}
    )


def _changed(caption: Statement, changes: dict[int, dict[str, str | None]]) -> Statement:
    phrases: list[Phrase] = list(caption.phrases)
    for index, change in changes.items():
        phrases[index] = phrases[index]._replace(**change)
    return Statement(tuple(phrases), caption.relations)


KINDS = {
    "replace_object": _replace_object,
    "replace_attribute": _replace_attribute,
    "replace_relation": _replace_relation,
    "swap_object": _swap_object,
    "swap_attribute": _swap_attribute,
    "add_object": _add_object,
    "add_attribute": _add_attribute,
}
