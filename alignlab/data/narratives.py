"""LocalizedNarratives: descriptions spoken while a pointer showed what they are about, from Google's JSON Lines."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from typing import Any, ClassVar, Unpack

import numpy as np

from alignlab.batch import Example, Point
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures, picture_folder
from alignlab.data.loading import Loading
from alignlab.data.records import Lines, Made, check_fractions, checked, drawn, files_of, parsed
from alignlab.errors import InputError

INSTANT = 1e-5
"""Seconds; what is shorter has no duration to divide by."""


class LocalizedNarratives(AlignmentData):
    """Captions with a point for each word: where the pointer was while it was said.

        {"dataset_id": "mscoco_val2017", "image_id": "137576", "annotator_id": 93, "caption": "A dog runs.",
         "timed_caption": [{"utterance": "A dog", "start_time": 0.0, "end_time": 0.7}],
         "traces": [[{"x": 0.2, "y": 0.4, "t": 0.01}]]}

    Pont-Tuset et al. 2020, https://arxiv.org/abs/1912.03098. A word's point is the mean over time of the pointer's
    place between ``start_time`` and ``end_time``, the pointer moving straight from each point of all traces together to
    the next one in time, and is put into the picture where it lies outside. It is None where the word was not said (the
    written caption differs at places from the spoken one: words are matched in order, by their letters and digits, and
    where as many others stand in between, one by one), or was said before the first point or after the last one.

    Differs from the targets of PixelLLM (Xu et al. 2023, https://arxiv.org/abs/2312.09237): those take 16 samples in
    place of the integral, go on in a straight line before and after the traces, and give tokens to utterances by their
    relative place in the text, so that words slip where the two texts differ.

    Narratives of one picture share a split, drawn by a hash of its name, and a ``group``. The lines stay on disk; all
    are checked at the start.

    Args:
        path: A file, a folder of ``*.jsonl``, or a pattern like ``coco_train_localized_narratives-*.jsonl``.
        image_folder: The folder of pictures.
        file_name: A picture's file by its ``image_id``; None: ``{image_id:0>12}.jpg`` for COCO 2017, else
            ``{image_id}.jpg``.
        val_fraction: Share of the pictures held out for validation, rounded up.
        test_fraction: Share of the pictures held out for evaluation, rounded up.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "query", "target", "captions", "points", "group")

    def __init__(
        self,
        *,
        path: str,
        image_folder: str,
        file_name: str | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        check_fractions("LocalizedNarratives", val_fraction, test_fraction)
        self.folder, self.file_name = picture_folder(image_folder), file_name
        self.picture({"dataset_id": "", "image_id": "0"})  # a pattern that cannot be filled is known at once
        self.lines = Lines(files_of(path, "data.path", [".jsonl"]))
        found = checked(self.lines.texts(), lambda line: self._check(parsed(line)), path, "line")
        names, ids = zip(*found, strict=True)
        check_pictures(self.folder, names, self.unreadable)
        again: Counter[str] = Counter()
        self.numbers: dict[int, int] = {}  # of narratives whose id has come before
        for place, id in enumerate(ids):
            again[id] += 1
            if again[id] > 1:
                self.numbers[place] = again[id]
        self.places = drawn(names, val=val_fraction, test=test_fraction, where=path)

    def examples(self, split: Split) -> Sequence[Example]:
        return Made(self._at, self.places.get(split, ()))

    def picture(self, record: Mapping[str, Any]) -> str:
        """The name of a record's picture within the folder."""
        coco = record["dataset_id"].startswith("mscoco")
        pattern = self.file_name or ("{image_id:0>12}.jpg" if coco else "{image_id}.jpg")
        try:
            return pattern.format(image_id=record["image_id"])
        except (KeyError, IndexError, ValueError):
            raise InputError(f"data.file_name must be a pattern like {{image_id}}.jpg, got {pattern!r}") from None

    def _check(self, record: Any) -> tuple[str, str]:
        """The picture and the id of a well-formed record."""
        if not isinstance(record, dict):
            raise InputError(f"it is a {type(record).__name__}, not an object")
        for name in ("dataset_id", "image_id", "caption"):
            if not isinstance(record.get(name), str) or not record[name].strip():
                raise InputError(f"{name!r} must be a text, got {record.get(name)!r}")
        timed, traces = record.get("timed_caption"), record.get("traces")
        if not isinstance(timed, list) or not all(_is_timed(each) for each in timed):
            raise InputError("'timed_caption' must be a list of utterance, start_time and end_time")
        if not isinstance(traces, list) or not all(isinstance(trace, list) for trace in traces):
            raise InputError("'traces' must be a list of lists of points")
        if not all(_has_numbers(point, ("x", "y", "t")) for trace in traces for point in trace):
            raise InputError("a point of 'traces' must be numbers x, y and t")
        return self.picture(record), _id(record)

    def _at(self, place: int) -> Example:
        record = self.lines[place]
        name, said = self.picture(record), " ".join(record["caption"].split())
        picture = self.folder / name
        number = self.numbers.get(place)
        return Example.answering(
            _id(record) if number is None else f"{_id(record)}#{number}",
            picture,
            self.caption_prompt,
            said,
            query=(picture,),
            target=(said,),
            captions=(said,),
            points=word_points(said, record["timed_caption"], record["traces"]),
            group=name,
            source=record["dataset_id"],
        )


def word_points(
    caption: str, timed: Sequence[Mapping[str, Any]], traces: Sequence[Sequence[Mapping[str, float]]]
) -> tuple[Point | None, ...]:
    """Where the pointer was, on average, while each word of the caption was said; None where that is not known.

    Args:
        timed: Utterances of one or more words, with ``start_time`` and ``end_time`` in seconds.
        traces: Points x, y in shares of the picture and t in seconds, of one or more strokes.
    """
    times = _times(caption.split(), timed)
    points = sorted(((p["t"], p["x"], p["y"]) for trace in traces for p in trace), key=lambda point: point[0])
    if not points:
        return (None,) * len(times)
    centre = partial(_centre, np.array(points, dtype=float))
    return tuple(None if time is None else centre(*time) for time in times)


def _times(words: Sequence[str], timed: Sequence[Mapping[str, Any]]) -> list[tuple[float, float] | None]:
    """When each word was said."""
    spoken = [(_bare(word), each) for each in timed for word in each["utterance"].split()]
    matcher = SequenceMatcher(None, [_bare(word) for word in words], [word for word, _ in spoken], autojunk=False)
    times: list[tuple[float, float] | None] = [None] * len(words)
    for _, start, end, first, last in matcher.get_opcodes():
        if end - start == last - first:
            for place, (_, each) in zip(range(start, end), spoken[first:last], strict=True):
                times[place] = (each["start_time"], each["end_time"])
    return times


def _centre(points: np.ndarray, start: float, end: float) -> Point | None:
    """The mean over time of the place of a pointer that moves straight between points (t, x, y), in order of t."""
    time, *places = points.T
    start, end = max(start, time[0]), min(end, time[-1])
    if end < start:
        return None
    knots = np.concatenate([[start], time[(time > start) & (time < end)], [end]])
    along = [np.interp(knots, time, place) for place in places]
    means = [each.mean() if end - start < INSTANT else np.trapezoid(each, knots) / (end - start) for each in along]
    x, y = (min(max(float(mean), 0.0), 1.0) for mean in means)
    return x, y


def _id(record: Mapping[str, Any]) -> str:
    return f"{record['image_id']}-{record.get('annotator_id', '')}"


def _bare(word: str) -> str:
    return re.sub(r"\W+", "", word.casefold())


def _is_timed(each: Any) -> bool:
    has = isinstance(each, dict) and isinstance(each.get("utterance"), str)
    return has and _has_numbers(each, ("start_time", "end_time"))


def _has_numbers(each: Any, names: Sequence[str]) -> bool:
    return isinstance(each, dict) and all(isinstance(each.get(name), int | float) for name in names)
