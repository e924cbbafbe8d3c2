"""LlavaJson: conversations about pictures, from LLaVA's JSON format and a folder of images."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

from alignlab.batch import Content, Example, Turn
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures, listed, picture_folder, read_json
from alignlab.data.loading import Loading
from alignlab.errors import InputError

MARKER = "<image>"
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


class LlavaJson(AlignmentData):
    """Multi-turn, multi-image and text-only conversations; an ``<image>`` in a text is where a picture stands.

        [{"id": "1", "image": "a/b.jpg", "conversations": [
            {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}]

    ``image`` may be absent or a list. The splits are drawn by a hash of the first picture's name (of the id, where
    there is none): all records of one picture share a split, and neither a seed nor the order of the file matters.
    Within a split, records stand in the order of that hash, so the first ones are a fair sample. An id that comes again
    is numbered (``7``, ``7#2``), since LLaVA's own files name several records after one picture. All records are
    checked and all pictures looked for at the start; a picture is decoded when a batch needs it.

    Args:
        path: The JSON file.
        image_folder: What the records' image paths are relative to.
        val_fraction: Share of the pictures held out for validation, rounded up.
        test_fraction: Share of the pictures held out for evaluation, rounded up.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation",)

    def __init__(
        self,
        *,
        path: str,
        image_folder: str,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        if not (0 <= val_fraction and 0 <= test_fraction and val_fraction + test_fraction < 1):
            raise InputError(
                f"{type(self).__name__} needs val_fraction and test_fraction of at least 0 and less than 1 together, "
                f"got {val_fraction = }, {test_fraction = }"
            )
        self.folder = picture_folder(image_folder)
        self.source = Path(path).stem
        records = _read(Path(path))
        self._check(records, path)
        check_pictures(self.folder, [name for record in records for name in _pictures(record)], self.unreadable)
        self.records = _split(_numbered(records), val=val_fraction, test=test_fraction, path=path)

    def examples(self, split: Split) -> Sequence[Example]:
        return _Lazy(self, self.records[split])

    def example(self, record: dict[str, Any]) -> Example:
        """Make one record an example. Raises InputError, without naming the record, where it is malformed."""
        paths = [self.folder / name for name in _pictures(record)]
        turns = _turns(record)
        markers = sum(value.count(MARKER) for _, value in turns)
        if markers != len(paths):
            raise InputError(f"its texts hold {markers} {MARKER} marker(s), but 'image' names {len(paths)} picture(s)")
        remaining = iter(paths)
        conversation = tuple(Turn(ROLES[role], _content(value, remaining)) for role, value in turns)
        return Example(str(record["id"]), conversation=conversation, source=self.source)

    def _check(self, records: list[Any], path: str) -> None:
        faults = []
        for index, record in enumerate(records):
            try:
                if not isinstance(record, dict):
                    raise InputError(f"it is a {type(record).__name__}, not an object")
                if record.get("id") is None:
                    record["id"] = f"record-{index}"
                self.example(record)
            except InputError as error:
                id = f" (id {record['id']!r})" if isinstance(record, dict) else ""
                faults.append(f"record {index}{id}: {error}")
        if faults:
            raise InputError(f"{path}: {len(faults)} of {len(records)} records are malformed\n" + listed(faults))


class LlavaPairs(LlavaJson):
    """LLaVA's JSON where every record is one picture with one answer, e.g. captions: also ``query`` and ``target``.

    The query is the picture alone, the target (and caption) the answer alone, whatever the question was.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "query", "target", "captions")

    def example(self, record: dict[str, Any]) -> Example:
        example = super().example(record)
        answers = [turn.content for turn in example.conversation if turn.role == "assistant"]
        if len(example.images) != 1 or len(answers) != 1 or not isinstance(answers[0][0], str):
            raise InputError(
                f"LlavaPairs needs one picture and one answer a record, got {len(example.images)} and {len(answers)}; "
                "LlavaJson reads any conversation"
            )
        return Example(
            example.id,
            conversation=example.conversation,
            query=example.images,
            target=answers[0],
            captions=(answers[0][0],),
            source=example.source,
        )


class _Lazy(Sequence):
    """Records as examples, made on access."""

    def __init__(self, data: LlavaJson, records: list[dict[str, Any]]) -> None:
        self.data, self.records = data, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return self.data.example(self.records[index])


def _read(path: Path) -> list[Any]:
    records = read_json(path, "data.path")
    if not isinstance(records, list):
        raise InputError(f"{path} holds a {type(records).__name__}; LLaVA's format is a list of records")
    if not records:
        raise InputError(f"{path} holds no record")
    return records


def _pictures(record: dict[str, Any]) -> list[str]:
    images = record.get("image")
    names = [] if images is None else images if isinstance(images, list) else [images]
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"'image' must be a path or a list of paths, got {images!r}")
    return names


def _turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise InputError(f"'conversations' must be a list of turns, got {turns!r}; its keys are {', '.join(record)}")
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or "from" not in turn:
            raise InputError(f"a turn must be {{'from': ..., 'value': text}}, got {turn!r}")
        if turn["from"] not in ROLES:
            raise InputError(f"unknown role {turn['from']!r}; the roles are {', '.join(ROLES)}")
    roles = [turn["from"] for turn in turns]
    asked = roles[1:] if roles[0] == "system" else roles
    if not asked or asked != ["human", "gpt"] * (len(asked) // 2):
        raise InputError(f"turns must go human, gpt, human, gpt (after one system at most), got {', '.join(roles)}")
    if any(not turn["value"].strip() for turn in turns if turn["from"] == "gpt"):
        raise InputError("an answer of gpt is empty")
    return [(turn["from"], turn["value"]) for turn in turns]


def _content(value: str, pictures: Iterator[Path]) -> Content:
    """Text with a picture at every marker; the white space around markers belongs to the chat template."""
    first, *rest = (text.strip() for text in value.split(MARKER))
    parts: list[str | Path] = [first]
    for text in rest:
        parts += [next(pictures), text]
    return tuple(part for part in parts if part != "")


def _numbered(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    numbered = []
    for record in records:
        id = str(record["id"])
        seen[id] += 1
        numbered.append({**record, "id": id if seen[id] == 1 else f"{id}#{seen[id]}"})
    return numbered


def _split(records: list[dict[str, Any]], *, val: float, test: float, path: str) -> dict[Split, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((_pictures(record) or [record["id"]])[0], []).append(record)
    names = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    num_test, num_val = math.ceil(test * len(names)), math.ceil(val * len(names))
    if num_test + num_val >= len(names):
        raise InputError(
            f"{path} is about {len(names)} picture(s), of which val_fraction = {val} and test_fraction = {test} take "
            f"{num_val} and {num_test}, so none is left to train on; set one to 0 or give it more records"
        )
    bounds = {"test": (0, num_test), "val": (num_test, num_test + num_val), "train": (num_test + num_val, None)}
    return {split: [r for name in names[slice(*bounds[split])] for r in groups[name]] for split in bounds}
