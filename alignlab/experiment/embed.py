"""embed: what ``alignlab embed`` does: a teacher's embeddings of the targets of a config's data, in one file."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from alignlab.batch import Content
from alignlab.data.base import AlignmentData, check_listed, check_supplies
from alignlab.data.embeddings import head
from alignlab.data.identity import fingerprint_of, id_hash, target_hash, words
from alignlab.data.teachers import Teacher
from alignlab.errors import InputError
from alignlab.experiment.config import instantiate
from alignlab.experiment.opening import SPLITS, OnProgress, data_in_words, teacher_named
from alignlab.experiment.record import writing


def embed(
    config: Mapping[str, Any],
    output: Path,
    model: str,
    *,
    batch_size: int = 64,
    on_progress: OnProgress = lambda what, done, total: None,
) -> int:
    """Write the embeddings of the train and val targets of a resolved config's data.

    Rows go to a hidden file beside ``output``, which takes its name when all are there; interrupted, the same command
    goes on from there.

    Returns:
        How many were computed: 0 where the file is there already.

    Raises:
        InputError: The file is there, but of other data, of another teacher, or something else.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {batch_size}")
    experiment = instantiate({**config, "stages": {}})
    check_supplies("alignlab embed", ("target",), experiment.data)
    check_listed("alignlab embed", experiment.data)
    teacher = teacher_named(model, experiment)
    examples = Targets(experiment.data, on_progress)
    fingerprint = fingerprint_of([*examples.targets, int(teacher.fingerprint, 16)])
    if output.exists():
        if _fingerprint(output) != fingerprint:
            raise InputError(
                f"{output} is there already, and is not what {model} makes of these data; choose another --output, or "
                "move it away"
            )
        return 0
    width = teacher.embed([examples.target(0)]).shape[1]
    start = head(
        examples.ids, examples.targets, width=width, fingerprint=fingerprint, source=model, data=data_in_words(config)
    )
    with _unfinished(output, start, 4 * width) as file:
        before = (file.tell() - len(start)) // (4 * width)
        for done in range(before, len(examples), batch_size):
            places = range(done, min(done + batch_size, len(examples)))
            file.write(_rows(teacher, [examples.target(place) for place in places], width))
            on_progress("embedding", places.stop, len(examples))
    return len(examples) - before


class Targets:
    """The targets of the examples that training reads, one after the other, with their hashes.

    Raises:
        InputError: Two examples of a split have one id.
    """

    def __init__(self, data: AlignmentData, on_progress: OnProgress) -> None:
        self.examples = {split: data.examples(split) for split in SPLITS}
        self.places = [(split, index) for split in SPLITS for index in range(len(self.examples[split]))]
        self.ids: list[int] = []
        self.targets: list[int] = []
        self._contents: list[Content | None] = []  # but for decoded pictures, which would fill the memory
        for done, (split, index) in enumerate(self.places, start=1):
            example = self.examples[split][index]
            self.ids.append(id_hash(split, example))
            self.targets.append(target_hash(split, example))
            small = all(isinstance(part, str | Path) for part in example.target)
            self._contents.append(example.target if small else None)
            if done % 1000 == 0 or done == len(self):
                on_progress("reading", done, len(self))
        self._refuse_twins()

    def __len__(self) -> int:
        return len(self.places)

    def target(self, place: int) -> Content:
        split, index = self.places[place]
        kept = self._contents[place]
        return self.examples[split][index].target if kept is None else kept

    def _refuse_twins(self) -> None:
        if len(set(self.ids)) == len(self):
            return
        seen: set[int] = set()
        split, index = next(self.places[at] for at, id in enumerate(self.ids) if id in seen or seen.add(id))
        raise InputError(
            f"several examples of the {split} split are called {self.examples[split][index].id!r}; embeddings are "
            "found by id, which must be unique within a split"
        )


def _rows(teacher: Teacher, contents: list[Content], width: int) -> bytes:
    vectors = teacher.embed(contents)
    if tuple(vectors.shape) != (len(contents), width):
        raise InputError(
            f"{teacher.name} made embeddings of shape {tuple(vectors.shape)} of {len(contents)} targets, and of width "
            f"{width} before"
        )
    if bad := [content for content, row in zip(contents, vectors, strict=True) if not row.isfinite().all()]:
        raise InputError(f"{teacher.name} made an embedding that is not finite, of the target {words(bad[0])!r}")
    return vectors.numpy().astype("<f4").tobytes()


def _fingerprint(path: Path) -> str | None:
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("fingerprint")
    except (OSError, SafetensorError):
        return None


@contextmanager
def _unfinished(output: Path, start: bytes, row_size: int) -> Iterator[BinaryIO]:
    """A file open behind its last whole row, which takes the name of ``output`` when all rows are there.

    An interrupted one is gone on with if it begins with ``start``: of the same data and teacher.
    """
    partial = output.with_name(f".{output.name}.partial")
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        with partial.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another process is writing {output}; wait for it") from None
            same = file.read(len(start)) == start
            file.seek(0, os.SEEK_END)
            file.truncate(file.tell() - (file.tell() - len(start)) % row_size if same else 0)
            file.seek(0, os.SEEK_END)
            if not same:
                file.write(start)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, output)
