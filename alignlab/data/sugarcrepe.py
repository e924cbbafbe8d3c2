"""SugarCrepe: pictures with a right caption and one that is wrong in one thing, from SugarCrepe's seven files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

from alignlab.batch import Example, Foil
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures, picture_folder, read_json
from alignlab.data.loading import Loading
from alignlab.data.records import by_hash, checked
from alignlab.errors import InputError

KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


class SugarCrepe(AlignmentData):
    """Foils of COCO's captions (Hsieh et al. 2023, https://arxiv.org/abs/2306.14610), for ``Composition``.

        {"0": {"filename": "000000085329.jpg", "caption": "A dog on a bed.", "negative_caption": "A cat on a bed."}}

    One file a kind: add_att, add_obj, replace_att, replace_obj, replace_rel, swap_att and swap_obj. One example an
    entry, in the order of a hash of its kind and number, so the first ones are a fair sample of all kinds. Nothing is
    trained on.

    Args:
        path: The folder of the files ``KIND.json``; kinds without a file are left out.
        image_folder: COCO's ``val2017``.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "query", "target", "captions", "foils", "group")
    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(self, *, path: str, image_folder: str, **loading: Unpack[Loading]) -> None:
        super().__init__(**loading)
        folder = picture_folder(image_folder)
        files = {kind: Path(path) / f"{kind}.json" for kind in KINDS}
        there = {kind: file for kind, file in files.items() if file.is_file()}
        if not there:
            names = ", ".join(file.name for file in files.values())
            raise InputError(f"data.path: {path} has none of SugarCrepe's files, {names}")
        found = {each.id: each for kind, file in there.items() for each in self._read(kind, file, folder)}
        check_pictures(folder, [example.group for example in found.values()], self.unreadable)
        self.listed = tuple(found[id] for id in by_hash(found))

    def examples(self, split: Split) -> Sequence[Example]:
        return self.listed if split == "test" else ()

    def _read(self, kind: str, file: Path, folder: Path) -> Iterator[Example]:
        entries = read_json(file, "data.path")
        if not isinstance(entries, dict):
            raise InputError(f"{file} holds a {type(entries).__name__}; SugarCrepe's format is an object of entries")
        for number, entry in zip(entries, checked(entries.values(), _entry, str(file), "foil"), strict=True):
            picture, true = folder / entry["filename"], entry["caption"]
            yield Example.answering(
                f"{kind}-{number}",
                picture,
                self.caption_prompt,
                true,
                query=(picture,),
                target=(true,),
                captions=(true,),
                foils=(Foil(true, entry["negative_caption"], kind),),
                group=entry["filename"],
                source="sugarcrepe",
            )


def _entry(entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict):
        raise InputError(f"it is a {type(entry).__name__}, not an object")
    for name in ("filename", "caption", "negative_caption"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise InputError(f"{name!r} must be a text, got {entry.get(name)!r}")
    if entry["caption"] == entry["negative_caption"]:
        raise InputError(f"caption and negative_caption are the same, {entry['caption']!r}")
    return entry
