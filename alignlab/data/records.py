"""records: many small records in little memory, checked whole at the start and made examples on access."""

import hashlib
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from alignlab.batch import Example
from alignlab.data.base import Split
from alignlab.data.files import listed, missing, read_json, read_text
from alignlab.errors import InputError

SPACE = re.compile(r"[ \t\n\r]*")

Keep = Callable[[Any], Any]
"""From a record to what of it is kept; raises InputError, without naming the record, where it is malformed."""


class Packed(Sequence[Any]):
    """JSON values as bytes in one buffer, parsed on access.

    They take the room of their text, a fraction of what Python's objects take, and one object is not copied into
    workers by being counted.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        self.buffer, self.ends = bytearray(), array("Q", [0])
        for value in values:
            self.append(value)

    def append(self, value: Any) -> None:
        self.buffer += json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="surrogatepass")
        self.ends.append(len(self.buffer))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> Any:
        place = range(len(self))[index]
        part = self.buffer[self.ends[place] : self.ends[place + 1]]
        return json.loads(part.decode(errors="surrogatepass"))


class Lines(Sequence[Any]):
    """The records of JSON Lines files, of which only the places are in memory; a line is read and parsed on access.

    Args:
        paths: The files, one after the other.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.files, self.starts = tuple(paths), array("L"), array("Q")
        for number, path in enumerate(self.paths):
            place = 0
            with path.open("rb") as lines:
                for line in lines:
                    if line.strip():
                        self.files.append(number)
                        self.starts.append(place)
                    place += len(line)

    def texts(self) -> Iterator[bytes]:
        """The lines as they are, in order, each file read once."""
        for path in self.paths:
            with path.open("rb") as lines:
                yield from (line for line in lines if line.strip())

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Any:
        with self.paths[self.files[index]].open("rb") as file:
            file.seek(self.starts[index])
            return parsed(file.readline())


class Made(Sequence[Example]):
    """Examples made of records on access.

    Args:
        make: From a place among all records to its example.
        places: Those of this split.
    """

    def __init__(self, make: Callable[[int], Example], places: Sequence[int]) -> None:
        self.make, self.places = make, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:
        return self.make(self.places[index])


def parsed(line: bytes | str) -> Any:
    """One line as JSON; raises InputError where it is none."""
    try:
        return json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"no JSON: {error}") from None


def json_list(path: Path, key: str, form: str) -> Iterator[Any]:
    """The items of a JSON file that a config's key names, parsed one by one: all at once they take several times more.

    Args:
        form: What the file has to be, for messages.
    """
    text, decode = read_text(path, key), json.JSONDecoder().raw_decode
    place = SPACE.match(text).end()
    if text[place : place + 1] != "[":
        raise InputError(f"{path} holds a {type(read_json(path, key)).__name__}; {form}")
    place, mark = SPACE.match(text, place + 1).end(), ","
    while mark == "," and text[place : place + 1] != "]":
        try:
            item, place = decode(text, place)
        except json.JSONDecodeError:
            break
        yield item
        place = SPACE.match(text, place).end()
        mark, place = text[place : place + 1], SPACE.match(text, place + 1).end()
    if mark != "]" or place < len(text):
        read_json(path, key)  # an empty list passes; else it says what is wrong where


def files_of(path: str, key: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that a setting names: one file, all of a kind in a folder, or those that a pattern with ``*`` fits.

    Raises:
        InputError: There is none.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    patterns = [(place, f"*{suffix}") for suffix in suffixes] if place.is_dir() else [(place.parent, place.name)]
    if found := sorted({file for folder, pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        return found
    if place.is_dir():
        raise InputError(f"{key}: the folder {path} has no {' or '.join(suffixes)} file")
    if "*" in path:
        raise InputError(f"{key}: no file fits {path}")
    raise InputError(f"{key}: {missing(place, 'file')}")


def checked(records: Iterable[Any], keep: Keep, where: str, what: str = "record") -> Iterator[Any]:
    """What of each record is kept, one after the other; after the last one all faults are raised as one InputError."""
    faults, count = [], 0
    for count, record in enumerate(records, start=1):
        try:
            kept = keep(record)
        except InputError as error:
            id = record.get("id") if isinstance(record, dict) else None
            faults.append(f"{what} {count - 1}{'' if id is None else f' (id {id!r})'}: {error}")
        else:
            yield kept
    if faults:
        raise InputError(f"{where}: {len(faults)} of {count} {what}s are malformed\n" + listed(faults))
    if not count:
        raise InputError(f"{where} holds no {what}")


def numbered(ids: Iterable[str]) -> list[str]:
    """The ids, each that comes again with its number: ``7``, ``7#2``."""
    seen: Counter[str] = Counter()
    unique = []
    for id in ids:
        seen[id] += 1
        unique.append(id if seen[id] == 1 else f"{id}#{seen[id]}")
    return unique


def check_fractions(who: str, val: float, test: float) -> None:
    """Raise InputError if nothing is left to train on."""
    if not (0 <= val and 0 <= test and val + test < 1):
        raise InputError(
            f"{who} needs val_fraction and test_fraction of at least 0 and less than 1 together, "
            f"got val_fraction = {val}, test_fraction = {test}"
        )


def drawn(keys: Sequence[str], *, val: float, test: float, where: str) -> dict[Split, Sequence[int]]:
    """Places of the records of each split, drawn by a hash of their keys, e.g. the names of their pictures.

    Records of one key share a split, whatever their order and without a seed. Within a split they stand in the order of
    that hash, so the first ones are a fair sample.

    Args:
        val: Share of the keys, rounded up.
        test: Share of the keys, rounded up.
        where: For messages.
    """
    groups: dict[str, array[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, array("L")).append(place)
    names = by_hash(groups)
    num_test, num_val = math.ceil(test * len(names)), math.ceil(val * len(names))
    if num_test + num_val >= len(names):
        raise InputError(
            f"{where} is about {len(names)} picture(s), of which val_fraction = {val} and test_fraction = {test} take "
            f"{num_val} and {num_test}, so none is left to train on; set one to 0 or give it more records"
        )
    bounds = {"test": (0, num_test), "val": (num_test, num_test + num_val), "train": (num_test + num_val, None)}
    return {
        split: array("L", [place for name in names[slice(*bounds[split])] for place in groups[name]])
        for split in bounds
    }


def by_hash(names: Iterable[str]) -> list[str]:
    """Names in the order of a hash, so that the first ones are a fair sample."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest())
