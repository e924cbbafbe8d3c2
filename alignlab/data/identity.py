"""identity: short hashes that tell whether a file was made of these examples, and what chance is keyed by."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from alignlab.batch import Content, Example, Part


def id_hash(split: str, example: Example) -> int:
    """64 bits of what an example is called; ids are unique within a split alone."""
    return _hash([split, example.id])


def target_hash(split: str, example: Example) -> int:
    """64 bits of what an example is called and of its target: texts, and the names of picture files."""
    return _hash([split, example.id, [_named(part) for part in example.target]])


def seed_of(seed: int, id: str) -> int:
    """63 bits that seed what is drawn for one sample, whatever batch it comes in."""
    return _hash([seed, id]) >> 1


def fingerprint_of(hashes: Iterable[int]) -> str:
    """16 hexadecimal characters of hashes in order."""
    digest = hashlib.blake2b(digest_size=8)
    for each in hashes:
        digest.update(each.to_bytes(8, "little"))
    return digest.hexdigest()


def words(content: Content) -> str:
    """The texts of a content, joined."""
    return " ".join(part for part in content if isinstance(part, str))


def _named(part: Part) -> str | dict[str, str]:
    # A folder of pictures may move, and so may what holds one's bytes; a decoded picture has no name.
    return part if isinstance(part, str) else {"picture": part.name if isinstance(part, Path) else ""}


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest(), "little")
