"""annotations: what the data know of an example beyond its sequences, prepared for the page of inspect."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import count, product
from typing import Any, NamedTuple

from alignlab.batch import Box, Content, Example, Point, Question
from alignlab.errors import InputError

WIDTH = 208
"""Width of a drawing in its own unit, which is a CSS pixel where the picture stands beside the text."""

TAG = 13
"""Height of a number's tag, in the drawing's unit."""

Edges = tuple[float, float, float, float]
"""Left, top, right, bottom, in the drawing's unit."""


class Word(NamedTuple):
    """A word of the last answer.

    Args:
        role: One of ``ROLES``; empty where the data do not say.
        number: Of the place that it names, if that is known.
    """

    text: str
    role: str
    number: int | None


class Run(NamedTuple):
    """Words in a row, which another text has too or has not."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Place:
    """A numbered place on a picture: an object's box, or a point.

    Args:
        name: The object's; None for a point.
        edges: The box; None for a point.
        point: The point, or the only one in the box, if there is one: x and y in the drawing's unit.
        tag: Where the number stands.
    """

    number: int
    name: str | None
    edges: Edges | None
    point: Point | None
    tag: Edges


def annotations(example: Example, canonical: Mapping[str, str]) -> dict[str, Any]:
    """Everything but the drawing, by the names under which the page's template reads it.

    Args:
        canonical: Synonym -> the word that it counts as.

    Raises:
        InputError: The last answer has another number of words than of roles or points.
    """
    target = _plain(example.target)
    return {
        "words": _words(example),
        "foils": [(foil.kind, *_compared(foil.true, foil.false, canonical)) for foil in example.foils],
        "questions": _by_kind(example.questions),
        "existence": _by_kind(example.existence),
        "negatives": [_compared(target, _own(content, example), canonical)[1] for content in example.negatives],
        "rejected": _compared(_answer(example), _plain(example.rejected), canonical)[1],
        "text": [(turn.role, _plain(turn.content)) for turn in example.text],
    }


def _plain(content: Content) -> str:
    return " ".join(part if isinstance(part, str) else "[image]" for part in content)


def _own(negative: Content, example: Example) -> str:
    """A negative without the parts that the target has as well, such as an instruction."""
    return _plain(tuple(part for part in negative if part not in example.target) or negative)


def places(example: Example, height: float) -> list[Place]:
    """Where boxes, points and their numbers are drawn on a picture of WIDTH x height."""
    points = {number: (x * WIDTH, y * height) for (x, y), number in _numbers(example).items()}
    boxes = [(b.left * WIDTH, b.top * height, b.right * WIDTH, b.bottom * height) for b in example.boxes]
    taken, found = list(boxes), []
    for number, (box, edges) in enumerate(zip(example.boxes, boxes, strict=True), start=1):
        tag = _tag(edges, _width(number), height, taken)
        taken.append(tag)
        found.append(Place(number, box.name, edges, points.get(number), tag))
    for number, (x, y) in points.items():
        if number > len(boxes):
            width = _width(number)
            tag = (x - width / 2, y - TAG / 2, x + width / 2, y + TAG / 2)
            found.append(Place(number, None, None, (x, y), tag))
    return found


def _numbers(example: Example) -> dict[Point, int]:
    """The number of each point: the box's, if it is alone in one, else its own, after those of the boxes."""
    owners = {point: _box(point, example.boxes) for point in example.points if point is not None}
    sharing = Counter(owners.values())
    free = count(len(example.boxes) + 1)
    return {point: next(free) if box is None or sharing[box] > 1 else box + 1 for point, box in owners.items()}


def _box(point: Point, boxes: Sequence[Box]) -> int | None:
    """The smallest box around a point."""
    x, y = point
    areas = {
        (box.right - box.left) * (box.bottom - box.top): index
        for index, box in enumerate(boxes)
        if box.left <= x <= box.right and box.top <= y <= box.bottom
    }
    return areas[min(areas)] if areas else None


def _width(number: int) -> float:
    return TAG + 6 * (len(str(number)) - 1)


def _tag(edges: Edges, width: float, height: float, taken: Sequence[Edges]) -> Edges:
    """Where a tag that touches the edges covers nothing taken; where all is full, in their upper left corner."""
    left, top, right, bottom = edges
    rows, columns = (top - TAG, bottom, top, bottom - TAG), (left, right - width, right, left - width)
    beside = [it for it in taken if it == edges or not _around(it, edges)]
    for y, x in product(rows, columns):
        tag = (x, y, x + width, y + TAG)
        if _around((0, 0, WIDTH, height), tag) and not any(_overlap(tag, it) for it in beside):
            return tag
    return left, top, left + width, top + TAG


def _around(a: Edges, b: Edges) -> bool:
    return a[0] <= b[0] and a[1] <= b[1] and b[2] <= a[2] and b[3] <= a[3]


def _overlap(a: Edges, b: Edges) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _answer(example: Example) -> str:
    """The text of the conversation's last answer."""
    answers = [turn.content for turn in example.conversation if turn.role == "assistant"]
    return " ".join(part for part in answers[-1] if isinstance(part, str)) if answers else ""


def _words(example: Example) -> list[Word]:
    """The last answer's words; none where the data know neither a role nor a point."""
    if not example.roles and not any(example.points):
        return []
    texts = _answer(example).split()
    roles = example.roles or ("",) * len(texts)
    points = example.points or (None,) * len(texts)
    if not len(texts) == len(roles) == len(points):
        raise InputError(
            f"example {example.id!r} needs a role and a point for each of its last answer's {len(texts)} words, "
            f"got {len(roles)} roles and {len(points)} points"
        )
    numbers = _numbers(example)
    return [Word(text, role, numbers.get(point)) for text, role, point in zip(texts, roles, points, strict=True)]


def _compared(first: str, second: str, canonical: Mapping[str, str]) -> tuple[list[Run], list[Run]]:
    """Both texts in runs of words that they share, if by a synonym, or do not share."""
    a, b = first.split(), second.split()
    counted = ([canonical.get(word, word) for word in words] for words in (a, b))
    codes = SequenceMatcher(None, *counted, autojunk=False).get_opcodes()
    spans = [(tag != "equal", a[start:end], b[begin:stop]) for tag, start, end, begin, stop in codes]
    return (
        [Run(" ".join(words), differs) for differs, words, _ in spans if words],
        [Run(" ".join(words), differs) for differs, _, words in spans if words],
    )


def _by_kind(questions: Sequence[Question]) -> Mapping[str, list[Question]]:
    kinds = dict.fromkeys(question.kind for question in questions)
    return {kind: [question for question in questions if question.kind == kind] for kind in kinds}
