"""Table: any data set of the library datasets, whose columns are named in the config."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from alignlab.batch import Example
from alignlab.data.base import FILLED, AlignmentData, Split
from alignlab.data.columns import Columns
from alignlab.data.files import check_pictures
from alignlab.data.loading import Loading
from alignlab.data.records import Made, checked, drawn, numbered
from alignlab.data.stream import Stream
from alignlab.data.tables import is_picture, open_tables, pictures, rows_of, undecoded
from alignlab.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""What data sets call each split, where the config does not say it."""

SHARE = 0.05
"""Held out where a data set has no such split."""

HEAD = 1000
"""Examples of a streamed split that are kept, to be judged on or looked at."""


class Table(AlignmentData):
    """Any data set of ``datasets``: files of parquet, CSV, JSON, JSON Lines or Arrow, a saved one, or one of the Hub.

        path: lmms-lab/textvqa
        columns: {image: image, question: question, answer: answer}

    The columns are named by what they fill. ``image`` with ``question`` and ``answer`` make a conversation;
    ``messages`` is a whole one (role and content, or LLaVA's from and value), with the pictures of ``image`` in the
    places that blocks or ``<image>`` mark; ``query``, ``target`` and ``negatives`` are contents of pictures and texts,
    for which several columns may be named, one after the other; ``captions`` make all of these with ``image``. Pairs of
    answers to prefer are read by ``Preferences``. A column of pictures is one whose feature says so, or one named under
    ``image``, of paths.

    Rows are memory-mapped and pictures are decoded when a batch needs them, so a data set may be larger than memory.
    All texts are checked and all picture files looked for at the start. An id that comes again is numbered.

    Streamed, rows are read in order from the files, which are the shards, or from the Hub, and are checked as they
    come; of val and test, and of train where it has to be indexed, there are the first 1000 rows.

    Args:
        path: A folder or file, or a name on the Hub.
        columns: Field -> column, or several.
        name: Which configuration of a data set on the Hub.
        image_folder: What paths of pictures are relative to; None: the folder of the data.
        splits: Which of the data set's splits is train, val and test, or the share of train that is, drawn by a hash of
            the first picture's name (of the id, where it has none). None: those of the same name, 0.05 where there is
            none.
        streaming: Read in order, without a copy on disk.
    """

    def __init__(
        self,
        *,
        path: str,
        columns: Mapping[str, str | list[str]],
        name: str | None = None,
        image_folder: str | None = None,
        splits: Mapping[str, str | float] | None = None,
        streaming: bool = False,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        tables = open_tables(path, name, streaming=streaming)
        place = Path(path)
        self.folder = Path(image_folder) if image_folder else place if place.is_dir() else place.parent
        self.path, self.source, self.streaming = path, place.stem, streaming
        chosen, shares = _chosen(tables, splits, path, streaming)
        first = chosen["train"] if "train" in chosen else next(iter(chosen.values()))
        features = first.features or {}
        there = first.column_names or list(next(iter(first), {}))
        shown = [column for column, feature in features.items() if is_picture(feature)]
        self.columns = Columns(columns, there, shown, self.caption_prompt)
        self.tables = {split: self._bare(table) for split, table in chosen.items()}
        self.heads: dict[Split, Sequence[Example]] = {}
        self.places: dict[Split, Sequence[int]] = {}
        self.ids: dict[Split, Sequence[str]] = {}
        if not streaming:
            self._check(shares)

    @property
    def supplies(self) -> tuple[str, ...]:
        """What the columns fill, and files."""
        filled = [field for name, field in FILLED.items() if vars(self)[name] is not None]
        return tuple(dict.fromkeys((*self.columns.supplies, *filled)))

    def examples(self, split: Split) -> Sequence[Example]:
        if self.streaming:
            if split not in self.heads and split in self.tables:
                self.heads[split] = tuple(islice(_Rows(self, split).all(), HEAD))
            return self.heads.get(split, ())
        return Made(partial(self._at, split), self.places.get(split, ()))

    def stream(self) -> Stream | None:
        return _Rows(self, "train") if self.streaming else None

    def example(self, id: str, row: Mapping[str, Any], where: str) -> Example:
        """The example of a row; raises InputError, without naming the row, where a cell is not what it has to be."""
        shown = {name: pictures(row[name], self.folder, f"{where}, {name}") for name in self.columns.shown}
        return self.columns.example(id, row, shown, self.source)

    def _bare(self, table: "Dataset | IterableDataset") -> "Dataset | IterableDataset":
        table = table.select_columns(list(self.columns.used))
        for column in self.columns.shown:
            table = undecoded(table, column)
        return table

    def _at(self, split: Split, place: int) -> Example:
        drawn_from = split if split in self.tables else "train"
        where = f"row {place} of {self.path}, {drawn_from}"
        return self.example(self.ids[drawn_from][place], self.tables[drawn_from][place], where)

    def _check(self, shares: Mapping[Split, float]) -> None:
        """Check the texts of all rows and look for the files of their pictures; draw the splits that there are not."""
        files: set[str] = set()
        for split, table in self.tables.items():
            keys: list[str] = []
            before = sum(map(len, self.ids.values()))
            named = checked(
                enumerate(rows_of(table, self.columns.texts, self.columns.shown), start=before),
                partial(self._keep, keys, files),
                f"{self.path}, {split}",
                "row",
            )
            self.ids[split] = numbered(named)
            self.places[split] = range(len(keys))
            if split == "train" and shares:
                keys = keys if len(set(keys)) > 1 else list(self.ids[split])  # all pictures are called the same
                where = f"{self.path}, {split}"
                found = drawn(keys, val=shares.get("val", 0.0), test=shares.get("test", 0.0), where=where)
                self.places |= {each: found[each] for each in ("train", *shares)}
        check_pictures(self.folder, files, self.unreadable)

    def _keep(self, keys: list[str], files: set[str], item: tuple[int, tuple[dict, dict]]) -> str:
        """The id of a row, which is checked; adds what it is split by and which files it names."""
        index, (texts, names) = item
        if bad := [name for each in names.values() for name, is_file in each if is_file and not name]:
            raise InputError(f"a picture must be a path or bytes, got {bad[0]!r}")
        files |= {name for each in names.values() for name, is_file in each if is_file}
        shown = {column: [Path(name or "") for name, _ in each] for column, each in names.items()}
        example = self.columns.example(f"row-{index}", texts, shown, self.source)
        named = [name for each in names.values() for name, _ in each if name]
        keys.append((named or [example.id])[0])
        return example.id


class _Rows(Stream):
    """The rows of a streamed split, in the shards that its files are."""

    def __init__(self, data: Table, split: Split) -> None:
        self.data, self.split, self.table = data, split, data.tables[split]
        self.num_shards = self.table.num_shards

    def shard(self, index: int) -> Iterator[Example]:
        return self._rows(self.table.shard(self.num_shards, index), f"shard {index} of {self.data.path}, {self.split}")

    def all(self) -> Iterator[Example]:
        """Every shard's, one after the other."""
        for index in range(self.num_shards):
            yield from self.shard(index)

    def _rows(self, table: "IterableDataset", where: str) -> Iterator[Example]:
        place = 0
        for batch in table.iter(batch_size=16):  # unlike the table itself, it is not dealt out to torch's workers again
            for cells in zip(*batch.values(), strict=True):
                here = f"row {place} of {where}"
                try:
                    yield self.data.example(here, dict(zip(batch, cells, strict=True)), here)
                except InputError as error:
                    raise InputError(f"{here}: {error}") from None
                place += 1


def _chosen(
    tables: Mapping[str, Any], splits: Mapping[str, str | float] | None, path: str, streaming: bool
) -> tuple[dict[Split, Any], dict[Split, float]]:
    """The tables of train, val and test, and the shares that are drawn where there is none."""
    if splits is None:
        found = {split: next((name for name in names if name in tables), None) for split, names in NAMES.items()}
        splits = {split: SHARE if name is None else name for split, name in found.items()}
        splits = {split: name for split, name in splits.items() if not (streaming and name == SHARE)}
        if found["train"] is None:
            raise InputError(f"data.splits: {path} has no split train; say which is, of {', '.join(tables)}")
    if unknown := [split for split in splits if split not in NAMES]:
        raise InputError(f"data.splits: there is no {unknown[0]!r}; there are {', '.join(NAMES)}")
    named = {split: name for split, name in splits.items() if isinstance(name, str)}
    if lacking := [name for name in named.values() if name not in tables]:
        raise InputError(f"data.splits: {path} has no split {lacking[0]!r}; it has {', '.join(tables)}")
    shares = {split: float(share) for split, share in splits.items() if split not in named}
    if shares and (streaming or "train" not in named):
        needed = "train by its name, of which they are shares" if not streaming else "splits by their names"
        raise InputError(f"data.splits: {', '.join(shares)}: {'streamed data need' if streaming else 'say'} {needed}")
    if not (all(0 <= share < 1 for share in shares.values()) and sum(shares.values()) < 1):
        raise InputError(f"data.splits: shares must be at least 0 and less than 1 together, got {shares}")
    return {split: tables[name] for split, name in named.items()}, shares
