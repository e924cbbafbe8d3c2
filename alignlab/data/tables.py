"""tables: data sets of the library datasets, opened from files or by name, their pictures left encoded."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.batch import Part, PictureBytes
from alignlab.data.files import missing
from alignlab.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".arrow": "arrow"}
"""The ends of the names of files, and what reads them."""

Named = tuple[str | None, bool]
"""The name of a picture, and whether it is a file of that name."""


def open_tables(path: str, name: str | None, *, streaming: bool) -> "dict[str, Dataset | IterableDataset]":
    """The tables of a data set by the names of their splits; one without names is ``train``.

    Args:
        path: A folder that ``save_to_disk`` wrote, a folder of files, one file, or a name on the Hub.
        name: Which of several configurations.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    import datasets

    datasets.disable_progress_bars()
    place = Path(path)
    if not place.exists() and (path.count("/") > 1 or path.startswith((".", "/")) or place.suffix in FORMATS):
        raise InputError(f"data.path: {missing(place, 'file or folder')}")
    try:
        if place.is_file():
            return {"train": open_files(place.suffix, [place], streaming=streaming)}
        if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
            found = datasets.load_from_disk(path)
            if streaming:
                raise InputError(f"data.streaming: {path} was written by save_to_disk and is never held in memory")
        else:
            found = datasets.load_dataset(path, name, streaming=streaming)
    except InputError:
        raise
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = error.__cause__ or error
        raise InputError(f"data.path: {path} cannot be read: {str(reason).strip().splitlines()[0]}") from error
    return {str(split): table for split, table in found.items()} if isinstance(found, dict) else {"train": found}


def open_files(suffix: str, files: Sequence[Path], *, streaming: bool = False) -> "Dataset":
    """Files of one format as one table."""
    import datasets

    if suffix not in FORMATS:
        *most, last = [f"{name} ({end})" for end, name in FORMATS.items()]
        raise InputError(f"data.path: {files[0]} is no file of a table; those are {', '.join(most)} and {last}")
    names = [str(file) for file in files]
    return datasets.load_dataset(FORMATS[suffix], data_files=names, split="train", streaming=streaming)


def undecoded(table: "Dataset", column: str | None) -> "Dataset":
    """The table with a column's pictures as their bytes, or paths."""
    from datasets import Image, List

    feature = (table.features or {}).get(column) if column else None
    if isinstance(feature, Image):
        return table.cast_column(column, Image(decode=False))
    if isinstance(feature, List) and isinstance(feature.feature, Image):
        return table.cast_column(column, List(Image(decode=False)))
    return table


def is_picture(feature: Any) -> bool:
    """Whether a column's feature says that it holds pictures, one or a list."""
    from datasets import Image, List

    return isinstance(feature.feature if isinstance(feature, List) else feature, Image)


def picture_names(column: Any) -> list[list[Named]]:
    """For every row of an Arrow column of pictures, what is known of these; their bytes are not touched."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows: list[list[Named]] = []
    for chunk in column.chunks:
        listed = pa.types.is_list(chunk.type) or pa.types.is_large_list(chunk.type)
        values = pc.list_flatten(chunk) if listed else chunk.filter(chunk.is_valid())
        inside = pa.types.is_struct(values.type)
        names = (pc.struct_field(values, "path") if inside else values).to_pylist()
        is_file = pc.is_null(pc.struct_field(values, "bytes")).to_pylist() if inside else [True] * len(names)
        known = iter(zip(names, is_file, strict=True))
        counts = pc.list_value_length(chunk).to_pylist() if listed else chunk.is_valid().to_pylist()
        rows += [[next(known) for _ in range(count or 0)] for count in counts]
    return rows


def pictures(value: Any, folder: Path, where: str) -> list[Part]:
    """The pictures of a cell: paths, relative to the folder, or bytes.

    Args:
        value: A path, what ``datasets`` makes of a picture that it does not decode, a list of these, or None.
        where: The cell, for messages and to tell pictures apart.

    Raises:
        InputError: It is something else.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    found: list[Part] = []
    for number, each in enumerate(values, start=1):
        if isinstance(each, Mapping) and each.get("bytes") is not None:
            found.append(PictureBytes(each["bytes"], f"{number} of {where}" if len(values) > 1 else f"of {where}"))
        else:
            path = each.get("path") if isinstance(each, Mapping) else each
            if not isinstance(path, str) or not path:
                raise InputError(f"a picture must be a path or bytes, got {each!r}")
            found.append(folder / path)
    return found


def rows_of(table: "Dataset", texts: Sequence[str], shown: Sequence[str]) -> Iterator[tuple[dict[str, Any], dict]]:
    """The texts of every row, and by column the names of its pictures, whose bytes are left alone."""
    columns = list(dict.fromkeys((*texts, *shown)))
    for part in table.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        names = {column: picture_names(part[column]) for column in shown}
        for index, row in enumerate(part.select(list(texts)).to_pylist() if texts else [{}] * len(part)):
            yield row, {column: each[index] for column, each in names.items()}
