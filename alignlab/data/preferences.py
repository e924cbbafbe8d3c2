"""Preferences: pairs of a better and a worse answer, from data sets in the formats of TRL."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

from lightning.pytorch.utilities import rank_zero_warn

from alignlab.batch import Example, Part, PictureBytes, Turn
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures
from alignlab.data.loading import Loading
from alignlab.data.tables import Named, open_files, picture_names, undecoded
from alignlab.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
"""What files and saved splits may call each split."""

TEXTS = ("id", "prompt", "question", "chosen", "rejected", "text")
"""The columns that are read of every row at the start; those of pictures are not."""

NEEDED = (
    "needs the columns chosen and rejected, either with prompt or each beginning with it, and images or image where "
    "there are pictures"
)


class Preferences(AlignmentData):
    """Pairs as TRL's trainers read them: ``images`` (or ``image``), ``prompt``, ``chosen``, ``rejected``.

        {"images": [...], "prompt": [{"role": "user", "content": "What is this?"}],
         "chosen": [{"role": "assistant", "content": "A cat."}],
         "rejected": [{"role": "assistant", "content": "A dog."}]}

    Conversations or plain text, content as a string or in blocks, a prompt of its own or the beginning that both sides
    share: TRL's own functions (``trl.data_utils``) say which is which, and put pictures whose places the text does not
    tell before the first question. A row without pictures is text alone. OpenBMB's names are understood: ``question``
    for the prompt (RLAIF-V), and ``text``, JSON of question, chosen and rejected (RLHF-V). Each side has to be one
    answer of the assistant.

    All texts are checked at the start; a picture is decoded when a batch needs it. Pairs whose sides are the same
    teach nothing and are dropped, with one warning that counts them. Where there is no validation split, a hash of the
    first picture's name draws it (of the row's id, where pictures have no names, or one and the same), so rows of one
    picture share a split. An id that comes again is numbered (``7``, ``7#2``).

    Args:
        path: A folder with ``train.parquet`` and ``val.parquet``, as ``alignlab pairs`` writes it; one that
            ``save_to_disk`` of datasets wrote; or one parquet, JSON or JSON Lines file. Paths of pictures are relative
            to it.
        val_fraction: Share of the pictures held out for validation where there is no such split, rounded up.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "rejected")

    def __init__(self, *, path: str, val_fraction: float = 0.05, **loading: Unpack[Loading]) -> None:
        super().__init__(**loading)
        if not 0 <= val_fraction < 1:
            raise InputError(f"Preferences needs val_fraction of at least 0 and less than 1, got {val_fraction}")
        self.source = Path(path).stem
        tables = {split: _Table(table, f"{path}, {split}", path) for split, table in _open(Path(path)).items()}
        seen: Counter[str] = Counter()
        pairs = {split: table.pairs(seen, self.unreadable) for split, table in tables.items()}
        if same := sum(table.num_same for table in tables.values()):
            rank_zero_warn(f"{path}: {same} pair(s) with the same answer on both sides teach nothing and are left out")
        if "val" not in pairs:
            tables["val"] = tables["train"]
            pairs["train"], pairs["val"] = _drawn(pairs["train"], val_fraction)
        if not pairs["train"]:
            raise InputError(f"{path} holds no pair to train on")
        self._splits = {split: _Lazy(tables[split], rows, self.source) for split, rows in pairs.items()}

    def examples(self, split: Split) -> Sequence[Example]:
        return self._splits.get(split, ())


class _Table:
    """The rows of one split.

    Args:
        where: For messages.
        path: What was asked for; names of picture files are relative to its folder.
    """

    def __init__(self, table: "Dataset", where: str, path: str) -> None:
        lacking = not {"chosen", "rejected"} <= set(table.column_names) and "text" not in table.column_names
        if lacking:
            raise InputError(f"{where}: Preferences {NEEDED}; it has {', '.join(table.column_names)}")
        self.where, self.num_same = where, 0
        self.folder = Path(path) if Path(path).is_dir() else Path(path).parent
        self.column = next((name for name in ("images", "image") if name in table.column_names), None)
        self.rows = undecoded(table, self.column)

    def pairs(self, seen: Counter[str], unreadable: Literal["stop", "skip"]) -> list[tuple[int, str, str]]:
        """Index, id and key (what is split apart) of every pair whose sides differ, all rows checked.

        Args:
            seen: The ids of earlier splits; takes these.
            unreadable: Whether files of pictures that cannot be read are refused.
        """
        faults, pairs, files, before = [], [], set(), sum(seen.values())
        for index, (row, pictures) in enumerate(self._texts()):
            id = str(row["id"]) if row.get("id") is not None else f"row-{before + index}"
            seen[id] += 1
            id = id if seen[id] == 1 else f"{id}#{seen[id]}"
            try:
                _, chosen, rejected = _read(row, [Path()] * len(pictures))
            except InputError as error:
                faults.append(f"row {index} (id {id!r}): {error}")
                continue
            files |= {name for name, is_file in pictures if is_file}
            if chosen == rejected:
                self.num_same += 1
            else:
                pairs.append((index, id, (pictures[0][0] if pictures else None) or id))
        if faults:
            shown = [f"  {fault}" for fault in faults[:3]] + ([f"  and {len(faults) - 3} more"] if faults[3:] else [])
            raise InputError(f"{self.where}: {len(faults)} of {index + 1} rows are malformed\n" + "\n".join(shown))
        check_pictures(self.folder, files, unreadable)
        return pairs

    def _texts(self) -> Iterator[tuple[dict[str, Any], list[Named]]]:
        """The texts of every row and what is known of its pictures, whose bytes are left alone."""
        texts = [name for name in TEXTS if name in self.rows.column_names]
        columns = [*texts, self.column] if self.column else texts
        for table in self.rows.select_columns(columns).with_format("arrow").iter(batch_size=1000):
            names = picture_names(table[self.column]) if self.column else [[] for _ in range(len(table))]
            yield from zip(table.select(texts).to_pylist(), names, strict=True)

    def turns(self, index: int) -> tuple[tuple[Turn, ...], str]:
        """The conversation of a row, pictures in their places, and the rejected answer."""
        row = self.rows[index]
        value = row.get(self.column) if self.column else None
        values = value if isinstance(value, list) else [] if value is None else [value]
        prompt, chosen, rejected = _read(row, [self._picture(each, index) for each in values])
        return (*prompt, Turn("assistant", (chosen,))), rejected

    def _picture(self, value: str | Mapping[str, Any], index: int) -> Part:
        if isinstance(value, Mapping) and value["bytes"] is not None:
            return PictureBytes(value["bytes"], f"of row {index} of {self.where}")
        return self.folder / (value["path"] if isinstance(value, Mapping) else value)


class _Lazy(Sequence[Example]):
    """Rows as examples, made on access."""

    def __init__(self, table: _Table, rows: list[tuple[int, str, str]], source: str) -> None:
        self.table, self.rows, self.source = table, rows, source

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        place, id, _ = self.rows[index]
        conversation, rejected = self.table.turns(place)
        return Example(id, conversation=conversation, rejected=(rejected,), source=self.source)


def _open(path: Path) -> dict[Split, "Dataset"]:
    """The tables there are, memory-mapped by datasets; train at least."""
    import datasets

    datasets.disable_progress_bars()
    if not path.exists():
        near = f"; {path.parent} has {', '.join(sorted(p.name for p in path.parent.iterdir())[:10])}"
        raise InputError(f"data.path: there is no {path}" + (near if path.parent.is_dir() else ""))
    try:
        if path.is_file():
            return {"train": open_files(path.suffix, [path])}
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            saved = datasets.load_from_disk(str(path))
            found = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            tables = {split: found[name] for split, names in SPLITS.items() for name in names if name in found}
        else:
            files = {
                split: sorted(
                    file for name in names for kind in (".", "-*.") for file in path.glob(f"{name}{kind}parquet")
                )
                for split, names in SPLITS.items()
            }
            tables = {split: open_files(".parquet", some) for split, some in files.items() if some}
    except InputError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error
        raise InputError(f"{path} cannot be read: {str(reason).strip().splitlines()[0]}") from error
    if "train" not in tables:
        raise InputError(
            f"{path} has neither train.parquet nor a train split that save_to_disk of datasets wrote; `alignlab pairs` "
            "writes such a folder"
        )
    return tables


def _read(row: Mapping[str, Any], pictures: Sequence[Part]) -> tuple[tuple[Turn, ...], str, str]:
    """The turns of the prompt with the pictures in their places, the chosen and the rejected answer.

    Raises:
        InputError: The row is none of TRL's formats, or has not as many places as pictures.
    """
    from trl.data_utils import maybe_extract_prompt, prepare_multimodal_messages

    row = _as_trl(row)
    if isinstance(row["chosen"], str) != isinstance(row["rejected"], str):
        raise InputError("one of chosen and rejected is text, the other a conversation")
    if "prompt" in row and isinstance(row["chosen"], str) and not isinstance(row["prompt"], str):
        raise InputError("prompt is a conversation, chosen and rejected are text")
    if "prompt" not in row and not (row["chosen"] and row["rejected"]):
        raise InputError("there is no prompt: no column of that name, and one side is empty")
    if row["chosen"] or row["rejected"]:
        # What TRL looks at to tell conversations from text is the first message, which an empty side lacks.
        row = row if "prompt" in row and not (row["chosen"] and row["rejected"]) else maybe_extract_prompt(row)
    prompt = row["prompt"]
    if not prompt:
        raise InputError("there is no prompt: neither one of the form of chosen and rejected, nor what both begin with")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    try:
        messages = prepare_multimodal_messages(prompt, list(pictures))
    except ValueError as error:
        raise InputError(str(error)) from None
    turns = tuple(Turn(message["role"], tuple(map(_content, message["content"]))) for message in messages)
    if turns[-1].role != "user" or any(turn.role == "tool" for turn in turns):
        raise InputError(f"a prompt ends with a question, got turns of {', '.join(turn.role for turn in turns)}")
    return turns, _answer("chosen", row["chosen"]), _answer("rejected", row["rejected"])


def _as_trl(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with TRL's names, without the keys that Arrow adds to messages, which have none."""
    if row.get("chosen") is None and isinstance(row.get("text"), str):
        try:
            row = json.loads(row["text"])
        except ValueError as error:
            raise InputError(f"its text is not JSON of question, chosen and rejected: {error}") from None
    prompt = next((row[name] for name in ("prompt", "question") if row.get(name) is not None), None)
    found = {"prompt": prompt, "chosen": row.get("chosen"), "rejected": row.get("rejected")}
    if lacking := [name for name in ("chosen", "rejected") if found[name] is None]:
        raise InputError(f"it has no {' and no '.join(lacking)}")
    return {name: _bare(value) for name, value in found.items() if value is not None}


def _bare(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _bare(item) for name, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _content(block: Mapping[str, Any]) -> Part:
    if block.get("type") not in ("text", "image"):
        raise InputError(f"content is text and pictures, got a block of the type {block.get('type')!r}")
    return block[block["type"]]


def _answer(side: str, value: str | list[dict[str, Any]]) -> str:
    """The text of a side."""
    if isinstance(value, str) or not value:
        return value or ""
    if [message["role"] for message in value] != ["assistant"]:
        roles = ", ".join(message["role"] for message in value)
        raise InputError(f"{side} must be one answer of the assistant after the prompt, got turns of {roles}")
    content = value[0].get("content", "")
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if any(block.get("type") != "text" for block in blocks):
        raise InputError(f"{side} holds more than text")
    return "".join(block.get("text", "") for block in blocks)


def _drawn(pairs: list[tuple[int, str, str]], val: float) -> tuple[list, list]:
    """Training and validation pairs, those of one key together; the order of the file stays."""
    if len({key for _, _, key in pairs}) == 1:  # all pictures are called the same, so that their names say nothing
        pairs = [(index, id, id) for index, id, _ in pairs]
    names = sorted({key for _, _, key in pairs}, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = set(names[: math.ceil(val * len(names))])
    return [pair for pair in pairs if pair[2] not in held_out], [pair for pair in pairs if pair[2] in held_out]
