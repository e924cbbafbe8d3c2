"""MMEB: queries and targets of many tasks, each a picture, a text or both, from the files of VLM2Vec."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

from alignlab.batch import Content, Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures, picture_folder
from alignlab.data.loading import Loading
from alignlab.data.records import Made, check_fractions, checked, drawn
from alignlab.data.tables import open_files
from alignlab.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

MARKER = "<|image_1|>"

TRAIN = ("qry", "qry_image_path", "pos_text", "pos_image_path")
NEGATIVES = ("neg_text", "neg_image_path")
EVAL = ("qry_text", "qry_img_path", "tgt_text", "tgt_img_path")


class _Subsets(AlignmentData):
    """What MMEB's two sets of files share: a folder a subset, pictures in one folder, ``<|image_1|>`` in texts."""

    def __init__(self, *, image_folder: str, **loading: Unpack[Loading]) -> None:
        super().__init__(**loading)
        self.folder = picture_folder(image_folder)
        self.tables: dict[str, Dataset] = {}

    def open(self, path: str, subsets: Sequence[str] | None, prefix: str, columns: Sequence[str]) -> None:
        """Memory-map the tables of the subsets and check all rows."""
        root = Path(path)
        there = sorted(folder.name for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
        if lacking := [name for name in subsets or () if name not in there]:
            raise InputError(f"data.subsets: {path} has no folder {lacking[0]!r}; it has {', '.join(there) or 'none'}")
        files = {name: _files(root / name, prefix) for name in subsets or there}
        files = {name: some for name, some in files.items() if some or subsets}
        if empty := [name for name, some in files.items() if not some] or ([] if files else [path]):
            raise InputError(
                f"data.path: {empty[0]} has no {prefix}*.parquet or {prefix}*.jsonl; MMEB has a folder for each subset"
            )
        names: set[str] = set()
        for subset, some in files.items():
            table = open_files(some[0].suffix, some)
            if lacking := [name for name in columns if name not in table.column_names]:
                have = ", ".join(table.column_names)
                raise InputError(f"{some[0]}: MMEB needs the columns {', '.join(columns)}; it has {have}")
            self.tables[subset] = table
            rows = table.select_columns([*columns, *(name for name in NEGATIVES if name in table.column_names)])
            for found in checked(rows, partial(self.contents, folder=Path()), str(some[0]), "row"):
                names |= {str(part) for content in found for part in content if isinstance(part, Path)}
        check_pictures(self.folder, names, self.unreadable)

    def contents(self, row: Mapping[str, Any], folder: Path) -> tuple[Content, ...]:
        """The query, the target and the negatives of a row; raises InputError where it is malformed."""
        raise NotImplementedError

    def example(self, subset: str, place: int) -> Example:
        query, target, *negatives = self.contents(self.tables[subset][place], self.folder)
        return Example(f"{subset}-{place}", query=query, target=target, negatives=tuple(negatives), source=subset)


class MMEB(_Subsets):
    """MMEB's training sets (Jiang et al. 2025, https://arxiv.org/abs/2410.05160), with hard negatives where they are.

        {"qry": "<|image_1|>\\nRepresent the given image.", "qry_image_path": "images/A/1.jpg",
         "pos_text": "A dog.", "pos_image_path": "", "neg_text": "A cat.", "neg_image_path": ""}

    One folder a subset, e.g. ``VisDial/original-00000-of-00001.parquet``, as released; JSON Lines of the same columns
    do, too. The subset is the ``source``. The rows are memory-mapped, all are checked at the start. Validation examples
    are drawn in each subset by a hash of the query's picture, or of its text where it has none.

    Args:
        path: The folder of the subsets' folders.
        image_folder: What the pictures' paths are relative to.
        subsets: Their names; None: all there are.
        prompts: Which of the released files, by how it begins: with the ``original`` instructions or diverse ones.
        val_fraction: Share of the pictures held out for validation, in each subset, rounded up.
    """

    supplies: ClassVar[tuple[str, ...]] = ("query", "target", "negatives")
    splits: ClassVar[tuple[Split, ...]] = ("train", "val")

    def __init__(
        self,
        *,
        path: str,
        image_folder: str,
        subsets: list[str] | None = None,
        prompts: Literal["original", "diverse_instruction"] = "original",
        val_fraction: float = 0.01,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(image_folder=image_folder, **loading)
        check_fractions("MMEB", val_fraction, 0.0)
        self.open(path, subsets, prompts, TRAIN)
        self.order: dict[Split, tuple[array, array]] = {split: (array("L"), array("L")) for split in ("train", "val")}
        self.names = list(self.tables)
        for number, (subset, table) in enumerate(self.tables.items()):
            keys = [image or text for image, text in _columns(table, "qry_image_path", "qry")]
            for split, places in drawn(keys, val=val_fraction, test=0.0, where=f"{path}, {subset}").items():
                if split in self.order:
                    self.order[split][0].extend([number] * len(places))
                    self.order[split][1].extend(places)

    def examples(self, split: Split) -> Sequence[Example]:
        return Made(partial(self._at, split), range(len(self.order[split][0]) if split in self.order else 0))

    def _at(self, split: Split, index: int) -> Example:
        subsets, places = self.order[split]
        return self.example(self.names[subsets[index]], places[index])

    def contents(self, row: Mapping[str, Any], folder: Path) -> tuple[Content, ...]:
        query = _content(row["qry"], row["qry_image_path"], folder, "qry")
        target = _content(row["pos_text"], row["pos_image_path"], folder, "pos_text")
        wrong = zip(*_even(row.get("neg_text"), row.get("neg_image_path")), strict=True)
        return query, target, *(_content(*each, folder, "neg_text") for each in wrong if any(each))


class MMEBEval(_Subsets):
    """MMEB's evaluation sets, for ``Ranking``: each query with its own candidates, of which the first one is right.

        {"qry_text": "<|image_1|>\\nIdentify the object.", "qry_img_path": "A/1.jpg",
         "tgt_text": ["dog", "cat"], "tgt_img_path": ["", ""]}

    One folder a subset, e.g. ``CIFAR-100/test-00000-of-00001.parquet``. The subset is the ``source``, by which
    ``Ranking`` gives its score. Examples go round the subsets, so the first ones are of all of them; nothing is trained
    on. A subset alone is judged as the authors do with ``num_examples`` of 1000.

    Args:
        path: The folder of the subsets' folders.
        image_folder: What the pictures' paths are relative to.
        subsets: Their names; None: all there are.
    """

    supplies: ClassVar[tuple[str, ...]] = ("query", "target", "negatives")
    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(
        self, *, path: str, image_folder: str, subsets: list[str] | None = None, **loading: Unpack[Loading]
    ) -> None:
        super().__init__(image_folder=image_folder, **loading)
        self.open(path, subsets, "test", EVAL)
        self.order = [(subset, place) for subset, place in _round(self.tables)]

    def examples(self, split: Split) -> Sequence[Example]:
        return Made(self._at, range(len(self.order) if split == "test" else 0))

    def _at(self, index: int) -> Example:
        return self.example(*self.order[index])

    def contents(self, row: Mapping[str, Any], folder: Path) -> tuple[Content, ...]:
        texts, paths = _even(row["tgt_text"], row["tgt_img_path"])
        if len(texts) < 2:
            raise InputError(f"it has {len(texts)} candidate(s); the first one is right and the others are wrong")
        candidates = (_content(*each, folder, "tgt_text") for each in zip(texts, paths, strict=True))
        return _content(row["qry_text"], row["qry_img_path"], folder, "qry_text"), *candidates


def _files(folder: Path, prefix: str) -> list[Path]:
    """The files of a subset, of one format."""
    found = (sorted(folder.glob(f"{prefix}*{suffix}")) for suffix in (".parquet", ".jsonl"))
    return next((some for some in found if some), [])


def _content(text: Any, path: Any, folder: Path, what: str) -> Content:
    """A text with its picture in the place of the marker, or before it; white space around both is left out."""
    if not isinstance(text, str | None) or not isinstance(path, str | None):
        raise InputError(f"its {what} must be a text and a path, got {text!r} and {path!r}")
    before, mark, after = (text or "").partition(MARKER)
    if mark and not path:
        raise InputError(f"its {what} has {MARKER} but no picture, in {text!r}")
    if MARKER in after:
        raise InputError(f"its {what} has more than one {MARKER}, in {text!r}")
    picture = [folder / path] if path else []
    parts = [before.strip(), *picture, after.strip()] if mark else [*picture, before.strip()]
    if not any(parts):
        raise InputError(f"its {what} has neither text nor picture")
    return tuple(part for part in parts if part != "")


def _even(texts: Any, paths: Any) -> tuple[list[Any], list[Any]]:
    """Two lists of one length; one that is empty is as long as the other one."""
    lists = [each if isinstance(each, list) else [each] for each in (texts, paths)]
    length = max(map(len, lists))
    filled = [each or [None] * length for each in lists]
    if len(filled[0]) != len(filled[1]):
        raise InputError(f"it has {len(filled[0])} texts, but {len(filled[1])} paths of pictures")
    return filled[0], filled[1]


def _columns(table: "Dataset", *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(*(table[name] for name in names), strict=True)


def _round(tables: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, int]]:
    """The first row of every table, then the second ones."""
    for place in range(max(map(len, tables.values()))):
        yield from ((name, place) for name, table in tables.items() if place < len(table))
