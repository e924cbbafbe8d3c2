"""mined: a file of hard negatives, JSON lines: first what they were mined from and how, then a line a query."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from alignlab.batch import Content, Example
from alignlab.data.identity import target_hash, words
from alignlab.errors import InputError

FORMAT, VERSION = "alignlab mined negatives", 1

NUM_KEPT = 2**16
"""Targets that are kept in memory: data that draw their pictures would else draw one for each negative."""


class Mined:
    """Reads a file of mined negatives; read whole when first used.

        {"format": "alignlab mined negatives", "version": 1, "splits": {"train": 20000, "val": 512}, ...}
        {"split": "train", "id": "train-0", "target": "8d0c2f41a96be770", "positive": 0.71,
         "negatives": [{"id": "train-81", "index": 81, "score": 0.69}], "dropped": {"filter": 2}}

    Args:
        path: The file. The lines of a split are in the order of its examples.

    Raises:
        InputError: At first use: there is no such file, or it holds something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._targets: dict[tuple[str, int], Content] = {}

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """The first line: what the negatives were mined from, and how."""
        if not self.path.is_file():
            raise InputError(f"data.mined: there is no file {self.path}; `alignlab mine` makes one")
        with self.path.open(encoding="utf-8", errors="replace") as file:
            try:
                first = json.loads(file.readline())
            except ValueError:
                first = {}
        first = first if isinstance(first, dict) else {}
        if (first.get("format"), first.get("version")) != (FORMAT, VERSION):
            raise InputError(f"data.mined: {self.path} is no file that this alignlab's `alignlab mine` made")
        return first

    def of(self, split: str, index: int, examples: Sequence[Example]) -> tuple[Content, ...]:
        """The targets mined for the example at an index.

        Args:
            examples: Those of the split.

        Raises:
            InputError: The file was made of other examples.
        """
        size = self.provenance["splits"].get(split)
        if size != len(examples):
            raise InputError(
                f"{self.path} was made of {size or 'no'} examples in the {split} split, which has {len(examples)} "
                f"here; {self._remedy}"
            )
        self._check(split, index, examples[index])
        places = self._rows[split][1][index].tolist()
        return tuple(self._target(split, place, examples) for place in places if place >= 0)

    def _target(self, split: str, place: int, examples: Sequence[Example]) -> Content:
        if (split, place) in self._targets:
            return self._targets[split, place]
        example = examples[place]
        self._check(split, place, example)
        if len(self._targets) < NUM_KEPT and all(isinstance(part, str | Path) for part in example.target):
            self._targets[split, place] = example.target
        return example.target

    def _check(self, split: str, index: int, example: Example) -> None:
        if int(self._rows[split][0][index]) != target_hash(split, example):
            raise InputError(
                f"{self.path} was made of other examples: the one at {index} of the {split} split is {example.id!r} "
                f"here, with the target {words(example.target)!r}; {self._remedy}"
            )

    @cached_property
    def _rows(self) -> dict[str, tuple[numpy.ndarray, numpy.ndarray]]:
        """By split: the hashes of the targets (n,), and the places of the negatives (n, k), -1 after the last one."""
        width = self.provenance["settings"]["num_negatives"]
        rows = {
            split: (numpy.zeros(size, dtype="u8"), numpy.full((size, width), -1, dtype="i8"))
            for split, size in self.provenance["splits"].items()
        }
        filled = dict.fromkeys(rows, 0)
        try:
            with self.path.open(encoding="utf-8") as file:
                next(file)
                for text in file:
                    line = json.loads(text)
                    split, places = line["split"], [negative["index"] for negative in line["negatives"]]
                    targets, negatives = rows[split]
                    targets[filled[split]] = int(line["target"], 16)
                    negatives[filled[split], : len(places)] = places
                    filled[split] += 1
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"data.mined: {self.path} is damaged: {error!r}") from None
        if lacking := [split for split, size in self.provenance["splits"].items() if filled[split] != size]:
            raise InputError(f"data.mined: {self.path} is damaged: lines of {', '.join(lacking)} are missing")
        return rows

    @property
    def _remedy(self) -> str:
        model = self.provenance["model"]
        return f"mine those of the present data with: alignlab mine CONFIG --output FILE --model {model}"
