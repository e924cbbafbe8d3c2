"""WebDataset: pictures with captions in tar files, read from end to end, as the library webdataset packs them."""

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Unpack

from alignlab.batch import Example, PictureBytes
from alignlab.data.base import AlignmentData, Split
from alignlab.data.loading import Loading
from alignlab.data.records import Made, files_of
from alignlab.data.stream import Stream
from alignlab.errors import InputError

PICTURES = ("jpg", "jpeg", "png", "webp")
SHARDS = (".tar", ".tar.gz", ".tgz")

HEAD = 1000
"""Examples of the shards to train on that are indexed, to be looked at."""

Place = tuple[int, int]
"""The offset of a member's bytes in its shard, and how many there are."""


class WebDataset(AlignmentData):
    """Pictures with captions in tar files ("shards"), streamed.

        000000.tar: 000000001.jpg, 000000001.txt, 000000001.json, 000000002.jpg, ...

    Neighbouring members whose names are the same up to the first dot are one sample: a picture (jpg, jpeg, png or
    webp), and its caption in a ``txt`` or in a field of a ``json``. Other members, pickles among them, are not read,
    nor those whose name begins with a dot or has none. With ``unreadable = skip`` a sample may lack its picture, and is
    skipped.
    The training shards are read in order, each from its beginning to its end; of them, the first 1000 samples can be
    indexed, too, to be looked at, if they are not compressed. Shards for validation and evaluation are indexed whole.
    All shards have to be there at the start, and the first sample of each split has to be whole; the others are checked
    as they come.

    Args:
        path: A shard, a folder of shards, or a pattern like ``cc3m/0*.tar``.
        val: The shards to validate on, in the same way, not compressed; None: there is no validation.
        test: The shards to evaluate on.
        caption: The member that holds the caption, ``txt``; or a field of a JSON member, like ``json:caption``.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "query", "target", "captions")

    def __init__(
        self,
        *,
        path: str,
        val: str | None = None,
        test: str | None = None,
        caption: str = "txt",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        self.caption = caption
        self.kinds = (*PICTURES, caption.partition(":")[0])
        self.shards = files_of(path, "data.path", SHARDS)
        held: dict[Split, str] = {split: some for split, some in (("val", val), ("test", test)) if some is not None}
        found = {split: files_of(some, f"data.{split}", SHARDS) for split, some in held.items()}
        for split, some in found.items():
            if shared := sorted({*some} & {*self.shards}):
                raise InputError(f"data.{split}: {shared[0]} is among the shards of data.path, too")
        for some in (self.shards, *found.values()):
            if next(self.samples(some[0]), None) is None:
                raise InputError(f"{some[0]} holds no sample: no {', '.join(PICTURES)} with a caption ({caption})")
        self.indexed = {split: list(_indexed(some)) for split, some in found.items()}

    def examples(self, split: Split) -> Sequence[Example]:
        if split == "train" and split not in self.indexed:
            self.indexed[split] = list(islice(_indexed(self.shards), HEAD))
        return Made(partial(self._at, split), range(len(self.indexed.get(split, ()))))

    def stream(self) -> Stream:
        return _Shards(self)

    def samples(self, shard: Path) -> Iterator[Example]:
        """The examples of a shard, read in order.

        Raises:
            InputError: It is no tar file, or a sample lacks its picture or its caption.
        """
        for key, members in _grouped(shard, self.kinds):
            yield self._example(shard, key, members)

    def _at(self, split: Split, index: int) -> Example:
        shard, key, places = self.indexed[split][index]
        members = {}
        with shard.open("rb") as file:
            for kind, (offset, size) in places.items():
                if kind not in self.kinds:
                    continue
                file.seek(offset)
                members[kind] = file.read(size)
        return self._example(shard, key, members)

    def _example(self, shard: Path, key: str, members: Mapping[str, bytes]) -> Example:
        where = f"{shard}, {key}"
        kind = next((kind for kind in PICTURES if kind in members), None)
        if kind is None and self.unreadable == "stop":
            raise InputError(f"{where}: it has no picture ({', '.join(PICTURES)}), only {', '.join(members)}")
        try:
            said = self._said(members, where)
        except InputError:
            if self.unreadable == "stop":
                raise
            said, kind = "-", None  # skipped, as one that has no picture
        picture = PictureBytes(b"" if kind is None else members[kind], f"{where}.{kind or PICTURES[0]}")
        return Example.answering(
            f"{shard.name.partition('.')[0]}/{key}",
            picture,
            self.caption_prompt,
            said,
            query=(picture,),
            target=(said,),
            captions=(said,),
            source=shard.parent.name,
        )

    def _said(self, members: Mapping[str, bytes], where: str) -> str:
        kind, _, field = self.caption.partition(":")
        if kind not in members:
            raise InputError(f"{where}: it has no {kind}, which data.caption names, only {', '.join(members)}")
        try:
            text = members[kind].decode()
            said = json.loads(text)[field] if field else text
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{where}: its {self.caption} cannot be read: {error!r}") from None
        if not isinstance(said, str) or not said.strip():
            raise InputError(f"{where}: its {self.caption} must be a text, got {said!r}")
        return said.strip()


class _Shards(Stream):
    """The shards to train on."""

    def __init__(self, data: WebDataset) -> None:
        self.data, self.num_shards = data, len(data.shards)

    def shard(self, index: int) -> Iterator[Example]:
        return self.data.samples(self.data.shards[index])


def _indexed(shards: Sequence[Path]) -> Iterator[tuple[Path, str, dict[str, Place]]]:
    """The samples of shards: where in them their members stand."""
    for shard in shards:
        yield from ((shard, *sample) for sample in _grouped(shard, (), indexed=True))


def _grouped(shard: Path, kinds: Sequence[str], *, indexed: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples of a shard in order: what their members' names begin with, and each member's bytes by its kind.

    Args:
        kinds: What is read; of other members only the kind is known.
        indexed: In place of the bytes, where they stand, as a ``Place``; the shard must not be compressed.

    Raises:
        InputError: It is no tar file, or ends too early.
    """
    now, members = None, {}
    try:
        with tarfile.open(shard, "r:" if indexed else "r|*") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, kind = _named(member.name)
                if key.endswith("/") or not key or not kind:  # like ._1.jpg or README, of which webdataset reads none
                    continue
                if key != now and members:
                    yield now, members
                    members = {}
                now = key
                if indexed:
                    members[kind] = (member.offset_data, member.size)
                else:
                    members[kind] = tar.extractfile(member).read() if kind in kinds else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        hint = "; what is validated or evaluated on must not be compressed" if indexed else ""
        raise InputError(f"{shard} cannot be read as a tar file: {error}{hint}") from None
    if members:
        yield now, members


def _named(path: str) -> tuple[str, str]:
    """What a member's sample is called, and what kind of member it is: its name up to the first dot, and the rest."""
    folder, slash, name = path.rpartition("/")
    key, _, kind = name.partition(".")
    return f"{folder}{slash}{key}", kind.lower()
