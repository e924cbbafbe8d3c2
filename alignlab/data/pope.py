"""POPEFiles: questions whether objects are there, in POPE's JSON Lines, one file a split, with a folder of pictures."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Unpack

from alignlab.batch import Example, Question
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures, listed, picture_folder, read_text
from alignlab.data.loading import Loading
from alignlab.errors import InputError

ANSWERS = ("yes", "no")


class Row(NamedTuple):
    """A line of a file."""

    id: Any
    image: str
    text: str
    label: str


class POPEFiles(AlignmentData):
    """Pictures with the questions of POPE's files (Li et al. 2023, https://arxiv.org/abs/2305.10355); to be judged on.

        {"question_id": 1, "image": "a/b.jpg", "text": "Is there a dog in the image?", "label": "yes"}

    One example a picture, with what all files ask about it. A question with the label yes that several files ask is
    asked once; one with the label no is of the kind of its file. Where the files differ in the yes questions about a
    picture, each of those sets is an example of its own, so that every split is judged on its own questions. Examples
    stand in the order of a hash of the picture's name, so the first ones are a fair sample. Rows are joined by picture
    and text, never by their place in the file. A picture about which a file asks for nothing absent adds nothing to
    that split.

    Args:
        image_folder: What the image paths are relative to.
        random: The file whose absent objects are drawn at random.
        popular: The file whose absent objects are those that are most often there.
        adversarial: The file whose absent objects are those that most often stand beside those that are there.
    """

    supplies: ClassVar[tuple[str, ...]] = ("query", "existence")
    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(
        self,
        *,
        image_folder: str,
        random: str | None = None,
        popular: str | None = None,
        adversarial: str | None = None,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        given = {"random": random, "popular": popular, "adversarial": adversarial}
        paths = {kind: path for kind, path in given.items() if path is not None}
        if not paths:
            raise InputError(f"POPEFiles needs a file for one of {', '.join(given)} at least, got none")
        folder = picture_folder(image_folder)
        rows = {kind: _read(Path(path), f"data.{kind}") for kind, path in paths.items()}
        _check_labels(rows, paths)
        check_pictures(folder, [row.image for each in rows.values() for row in each], self.unreadable)
        self.listed = tuple(_examples(rows, folder))

    def examples(self, split: Split) -> Sequence[Example]:
        return self.listed if split == "test" else ()


def _read(path: Path, key: str) -> list[Row]:
    """The rows of a file.

    Raises:
        InputError: The file is missing or empty, a row is malformed, or two have one id.
    """
    rows: dict[Any, Row] = {}
    faults = []
    lines = read_text(path, key).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = _row(line) if line.strip() else None
            if row is not None and row.id in rows:
                raise InputError(f"its question_id {row.id!r} has come before")
        except InputError as error:
            faults.append(f"line {number}: {error}")
        else:
            rows |= {} if row is None else {row.id: row}
    if faults:
        raise InputError(f"{path}: {len(faults)} of {len(lines)} lines are malformed\n" + listed(faults))
    if not rows:
        raise InputError(f"{path} holds no question")
    return list(rows.values())


def _row(line: str) -> Row:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"no JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise InputError(f"it is a {type(record).__name__}, not an object; POPE's format is one object a line")
    id, label = record.get("question_id"), record.get("label")
    if isinstance(id, bool) or not isinstance(id, int | str):
        raise InputError(f"'question_id' must be a number or a text, got {id!r}")
    for name in ("image", "text"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise InputError(f"{name!r} must be a text, got {record.get(name)!r}")
    if not isinstance(label, str) or label.lower() not in ANSWERS:
        raise InputError(f"'label' must be yes or no, got {label!r}")
    return Row(id, record["image"], record["text"], label.lower())


def _check_labels(rows: dict[str, list[Row]], paths: dict[str, str]) -> None:
    """Raise InputError where a question about a picture has the label yes and the label no."""
    seen: dict[tuple[str, str], tuple[str, str]] = {}
    faults = []
    for kind, row in _labelled(rows):
        label, before = seen.setdefault((row.image, row.text), (row.label, kind))
        if label != row.label:
            faults.append(f"{row.image}: {row.text!r}: {label} in {paths[before]}, {row.label} in {paths[kind]}")
    if faults:
        raise InputError(f"POPEFiles: {len(faults)} questions have two labels\n" + listed(faults))


def _labelled(rows: dict[str, list[Row]]) -> Iterator[tuple[str, Row]]:
    return ((kind, row) for kind, each in rows.items() for row in each)


def _examples(rows: dict[str, list[Row]], folder: Path) -> Iterator[Example]:
    asked: dict[str, dict[str, list[Row]]] = {}
    for kind, row in _labelled(rows):
        asked.setdefault(row.image, {}).setdefault(kind, []).append(row)
    for image in sorted(asked, key=lambda name: hashlib.sha256(name.encode()).digest()):
        absent: dict[tuple[str, ...], list[Question]] = {}  # by what is asked with the label yes
        for kind, each in asked[image].items():
            present = tuple(sorted(row.text for row in each if row.label == "yes"))
            absent.setdefault(present, []).extend(Question(row.text, "no", kind) for row in each if row.label == "no")
        for number, (present, questions) in enumerate(absent.items(), start=1):
            yield Example(
                image if number == 1 else f"{image}#{number}",
                query=(folder / image,),
                existence=(*(Question(text, "yes", "present") for text in present), *questions),
                source="pope",
            )
