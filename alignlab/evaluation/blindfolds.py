"""blindfolds: the same examples without sight of what they are about."""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from alignlab.batch import Content, Example, Part, PictureBytes

Blindfold = Literal["shuffled_images", "text_only"]


def exchanged(examples: Sequence[Example]) -> list[Example]:
    """Every example with the first picture of one of another group; where there are none, of another canonical caption.

    Which one is fixed by these, so every backbone sees the same. Empty where more than half of the examples share one:
    no exchange gives all of them another's.
    """
    said = [_said(example) for example in examples]
    # Equal captions side by side, in an order that has nothing to do with the words: neighbours are no near twins.
    order = sorted(range(len(said)), key=lambda index: (zlib.crc32(said[index].encode()), said[index], index))
    step = max(Counter(said).values())
    if 2 * step > len(said):
        return []
    givers = dict(zip(order, order[step:] + order[:step], strict=True))
    return [_showing(example, examples[givers[index]].images[:1]) for index, example in enumerate(examples)]


def pictureless(examples: Sequence[Example]) -> list[Example]:
    """Every example without its pictures."""
    return [_showing(example, ()) for example in examples]


BLINDFOLDS: dict[Blindfold, Callable[[Sequence[Example]], list[Example]]] = {
    "shuffled_images": exchanged,
    "text_only": pictureless,
}


def _said(example: Example) -> str:
    """What tells pictures apart: the group, else the canonical caption, the file, the example itself."""
    files = [str(part) for part in example.images if isinstance(part, Path | PictureBytes)]
    return example.group or next(iter((*example.captions[:1], *files, example.id)))


def _showing(example: Example, picture: tuple[Part, ...]) -> Example:
    """The example with the given picture, or nothing, in place of each of its own; its target stays."""

    def changed(content: Content) -> Content:
        return tuple(part for old in content for part in ((old,) if isinstance(old, str) else picture))

    turns = tuple(replace(turn, content=changed(turn.content)) for turn in example.conversation)
    return replace(example, conversation=turns, query=changed(example.query))
