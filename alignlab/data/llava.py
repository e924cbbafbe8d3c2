"""LlavaJson: conversations about pictures, from LLaVA's JSON format and a folder of images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

from alignlab.batch import Content, Example, Turn
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures, picture_folder
from alignlab.data.loading import Loading
from alignlab.data.records import Made, Packed, check_fractions, checked, drawn, json_list
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
        check_fractions(type(self).__name__, val_fraction, test_fraction)
        self.folder = picture_folder(image_folder)
        self.source = Path(path).stem
        keys: list[str] = []
        pictures: set[str] = set()
        self.records = Packed(self._read(Path(path), keys, pictures))
        check_pictures(self.folder, pictures, self.unreadable)
        self.places = drawn(keys, val=val_fraction, test=test_fraction, where=path)

    def examples(self, split: Split) -> Sequence[Example]:
        return Made(self._at, self.places.get(split, ()))

    def _at(self, place: int) -> Example:
        return self.example(self.records[place])

    def _read(self, path: Path, keys: list[str], pictures: set[str]) -> Iterator[dict[str, Any]]:
        """The records, checked and with ids of their own; adds what each is split by, and the names of pictures."""
        seen: Counter[str] = Counter()

        def keep(record: Any) -> dict[str, Any]:
            if not isinstance(record, dict):
                raise InputError(f"it is a {type(record).__name__}, not an object")
            id = f"record-{len(keys)}" if record.get("id") is None else str(record["id"])
            seen[id] += 1
            kept = {name: record[name] for name in ("image", "conversations") if name in record}
            record = {"id": id if seen[id] == 1 else f"{id}#{seen[id]}", **kept}
            self.example(record)
            names = _pictures(record)
            keys.append((names or [record["id"]])[0])
            pictures.update(names)
            return record

        yield from checked(json_list(path, "data.path", "LLaVA's format is a list of records"), keep, str(path))

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
