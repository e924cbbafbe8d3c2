"""pairs: which answers make a preference pair, and files of pairs as trl reads them."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import Image

from alignlab.backbones.pictures import open_image
from alignlab.batch import Part, Turn

END = "</s>"
"""What LLaVA's answers end with."""

DROPPED = ("equal", "equal_after_cleaning", "too_short")
"""Why a pair is dropped: the first of these that holds."""

GROUP_ROWS = 256
"""Pairs that are held in memory, and stand together in a file."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, cleaned.

    Args:
        index: The place of the answers among those given.
    """

    index: int
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Built:
    """The pairs that are kept, in order, and how many were dropped for each reason in ``DROPPED``."""

    kept: tuple[Pair, ...]
    dropped: dict[str, int]


def cleaned(answer: str) -> str:
    """An answer without end marks and outer white space."""
    return answer.replace(END, "").strip()


def seva_cleaned(answer: str) -> str:
    """An answer as SeVa's scripts clean it: end marks and line breaks vanish, so words around a break join."""
    return answer.replace(END, "").replace("\n", "")


def num_words(answer: str) -> int:
    """Length in words, where no tokenizer is at hand."""
    return len(answer.split())


def build_pairs(
    chosen: Sequence[str],
    rejected: Sequence[str],
    *,
    clean: Callable[[str], str] = cleaned,
    drop_equal: Literal["clean", "raw"] = "clean",
    min_tokens: int = 1,
    length: Callable[[str], int] = num_words,
) -> Built:
    """Pair answers of one prompt each, and drop the pairs that teach nothing.

    ``drop_equal = "raw"`` with ``seva_cleaned`` is SeVa's filter (data/step3/make_pair_*.py), which compares the
    answers as they came: pairs that become equal by cleaning stay in, and neither side of them can win.

    Args:
        chosen: The better answers.
        rejected: The worse answers, in the same order.
        clean: What is done to every answer that is kept.
        drop_equal: Drop what is equal as it came; with ``clean`` also what is equal but for white space once cleaned.
        min_tokens: Drop a pair of which a cleaned side is shorter.
        length: Of a cleaned answer, in tokens.

    Raises:
        ValueError: There are not as many chosen answers as rejected ones.
    """
    kept, dropped = [], dict.fromkeys(DROPPED, 0)
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        pair = Pair(index, clean(one), clean(other))
        if one == other:
            dropped["equal"] += 1
        elif drop_equal == "clean" and pair.chosen.split() == pair.rejected.split():
            dropped["equal_after_cleaning"] += 1
        elif min(length(pair.chosen), length(pair.rejected)) < min_tokens:
            dropped["too_short"] += 1
        else:
            kept.append(pair)
    return Built(tuple(kept), dropped)


def trl_row(id: str, prompt: Sequence[Turn], pair: Pair, quality: str | None) -> dict[str, Any]:
    """A pair as a row of a file for ``trl``: structured content, in which every picture stands at its place.

    Args:
        prompt: The turns up to the answer.
        quality: Whether the chosen answer is in truth ``better``, ``equal`` or ``worse``; None: not known.
    """
    images = [part for turn in prompt for part in turn.content if not isinstance(part, str)]
    return {
        "id": id,
        "images": [{"bytes": _encoded(part), "path": None} for part in images],
        "prompt": [_message(turn) for turn in prompt],
        "chosen": [_message(Turn("assistant", (pair.chosen,)))],
        "rejected": [_message(Turn("assistant", (pair.rejected,)))],
        "quality": quality,
    }


def write_parquet(file: BinaryIO, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of ``trl_row`` as a parquet file, pictures inside, that ``datasets`` reads with their types."""
    import pyarrow
    from datasets import Features, List, Value
    from datasets import Image as Picture
    from pyarrow.parquet import ParquetWriter

    text = Value("string")
    messages = List({"role": text, "content": List({"type": text, "text": text})})
    sides = {"prompt": messages, "chosen": messages, "rejected": messages}
    schema = Features({"id": text, "images": List(Picture()), **sides, "quality": text}).arrow_schema
    remaining = iter(rows)
    with ParquetWriter(file, schema) as writer:
        while group := list(islice(remaining, GROUP_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def read_parquet(path: Path, most: int) -> list[dict[str, Any]]:
    """The first rows of a file of ``write_parquet``, pictures as bytes, without decoding any."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=max(most, 1))
        return next(batches).to_pylist() if most and file.metadata.num_rows else []


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of a row's messages, without its pictures."""
    blocks = (block for message in messages for block in message["content"])
    return " ".join(block["text"] for block in blocks if block["type"] == "text")


def _message(turn: Turn) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "text": None}
        for part in turn.content
    ]
    return {"role": turn.role, "content": content}


def _encoded(part: Part) -> bytes:
    """The bytes of a picture's file, or where others may read those differently, of an upright RGB picture as PNG."""
    if isinstance(part, Path) and _is_plain(part):
        return part.read_bytes()
    encoded = io.BytesIO()
    open_image(part).save(encoded, format="PNG")
    return encoded.getvalue()


def _is_plain(path: Path) -> bool:
    with Image.open(path) as image:
        upright = image.getexif().get(Image.ExifTags.Base.Orientation, 1) == 1
        return image.format in ("JPEG", "PNG") and image.mode == "RGB" and upright
