"""readable: examples with their pictures decoded, and what stands in for one that has a picture nobody can read."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from PIL import Image, ImageFile

from alignlab.backbones.pictures import open_image
from alignlab.batch import Content, Example, Part, PictureBytes, Turn
from alignlab.errors import InputError, UnreadablePicture


@dataclass(frozen=True)
class Found:
    """An example that was asked for.

    Args:
        example: Its pictures are decoded.
        place: Where it stands; not where it was asked for, if it stands in for another one.
        skipped: Ids of those it stands in for.
    """

    example: Example
    place: int
    skipped: tuple[str, ...] = ()


class Readable(Sequence[Example]):
    """Examples with their pictures decoded, each when it is asked for.

    Args:
        examples: Those of a split.
        max_pixels: Pictures of more pixels are not decoded.
        skip: Give the next example that can be read instead of one that cannot, and do not stop. The order decides
            which that is, so it is the same in every run.

    Raises:
        InputError: On access, an example's picture cannot be read, or with ``skip`` none of all examples' can.
    """

    def __init__(self, examples: Sequence[Example], *, max_pixels: int, skip: bool) -> None:
        self.examples, self.max_pixels, self.skip = examples, max_pixels, skip

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.find(range(len(self))[index]).example

    def find(self, index: int, taken: Container[int] = ()) -> Found:
        """The example at an index, or what stands in for it: one that is ``taken`` only where no other can be read."""
        skipped: list[str] = []
        for place in self._places(index, taken):  # one by one: of millions, the first one is mostly enough
            name = f"at {place}"
            try:
                example = self.examples[place]
                name = example.id
                return Found(decoded(example, self.max_pixels), place, tuple(skipped))
            except UnreadablePicture as error:
                if not self.skip:
                    raise UnreadablePicture(f"example {name!r}: {error}") from None
                skipped.append(name)
        raise InputError(f"none of {len(self)} examples of a split can be read: {', '.join(skipped[:3])}, ...")

    def _places(self, index: int, taken: Container[int]) -> Iterator[int]:
        yield index
        others = range(index + 1, len(self)), range(index)
        yield from (place for place in chain(*others) if place not in taken)
        yield from (place for place in chain(*others) if place in taken)


def decoded(example: Example, max_pixels: int) -> Example:
    """An example with its pictures decoded, each file once.

    Raises:
        UnreadablePicture: One cannot be read.
    """
    known: dict[Path | int, Image.Image] = {}

    def opened(part: Part) -> Part:
        if not isinstance(part, Path | PictureBytes | ImageFile.ImageFile):  # a text, or decoded already
            return part
        name = part if isinstance(part, Path) else id(part)
        if name not in known:
            known[name] = open_image(part, max_pixels=max_pixels)
        return known[name]

    def content(parts: Content) -> Content:
        return tuple(map(opened, parts))

    def turns(conversation: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return tuple(replace(turn, content=content(turn.content)) for turn in conversation)

    return replace(
        example,
        conversation=turns(example.conversation),
        query=content(example.query),
        target=content(example.target),
        negatives=tuple(map(content, example.negatives)),
        text=turns(example.text),
        rejected=content(example.rejected),
    )


def first_readable(
    examples: Sequence[Example], count: int, *, max_pixels: int, skip: bool
) -> tuple[list[Example], list[str]]:
    """The first examples that can be read, as they are, and the ids of those left out before them.

    Raises:
        UnreadablePicture: One cannot be read, without ``skip``.
    """
    found: list[Example] = []
    left_out: list[str] = []
    for place in range(len(examples)):
        if len(found) == count:
            break
        name = f"at {place}"
        try:
            example = examples[place]
            name = example.id
            decoded(example, max_pixels)
            found.append(example)
        except UnreadablePicture as error:
            if not skip:
                raise UnreadablePicture(f"example {name!r}: {error}") from None
            left_out.append(name)
    return found, left_out
