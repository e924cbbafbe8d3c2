"""CocoJson: COCO's pictures with their instances as boxes and their reference captions, from the two JSON files."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

from alignlab.batch import Box, Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.files import check_pictures, listed, picture_folder, read_json, read_text
from alignlab.data.loading import Loading
from alignlab.data.mentions import Vocabulary
from alignlab.errors import InputError

_ALONE = ("motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light")
_ALONE += ("fire hydrant", "stop sign", "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove")
_ALONE += ("tennis racket", "wine glass", "hot dog", "cell phone", "mobile phone", "teddy bear", "hair drier")
_ALONE += ("potted plant", "laptop computer", "home plate", "train track")
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")

PAIRS: Mapping[str, str] = {
    **{pair: pair for pair in _ALONE},
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    **{"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"},
}
"""Two words that CHAIR reads as one in COCO's captions: a baby bear is no person, a toilet seat no chair.

From Rohrbach et al. 2018, utils/chair.py, where "stove top oven" is one more: of three words, it is never found."""

UNLESS = {"seat": "toilet"}
"""CHAIR's last rule: the seat of a toilet is no chair, either."""


class CocoJson(AlignmentData):
    """Pictures with their instances and reference captions, in the format of COCO's annotations; to be judged on.

        captions:  {"images": [{"id": 7, "file_name": "a.jpg", "width": 640, "height": 480}],
                    "annotations": [{"image_id": 7, "caption": "A dog."}]}
        instances: {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [left, top, width, height]}],
                    "categories": [{"id": 1, "name": "dog"}]}

    The examples are the pictures of the file of captions, in the order of a hash of their names, so the first ones are
    a fair sample. The target of a picture is the first of its captions. Boxes are named by their category; ``objects``
    are the names in the file of synonyms, or else the categories'. What else the files hold is not read.

    Args:
        captions: The file of captions.
        instances: The file of instances.
        image_folder: What the pictures' file names are relative to.
        synonyms: A file like CHAIR's synonyms.txt: one line an object, its name and what else it is called, each set
            apart by a comma and a space. A name on two lines counts as the last one's object. None: no synonyms.
    """

    supplies: ClassVar[tuple[str, ...]] = ("query", "target", "captions", "boxes")
    splits: ClassVar[tuple[Split, ...]] = ("test",)

    def __init__(
        self,
        *,
        captions: str,
        instances: str,
        image_folder: str,
        synonyms: str | None = None,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        folder = picture_folder(image_folder)
        images, said = read_annotations(captions, "data.captions", {"images": IMAGE, "annotations": CAPTION})
        found, categories = read_annotations(
            instances, "data.instances", {"annotations": INSTANCE, "categories": CATEGORY}
        )
        names = {category["id"]: category["name"] for category in categories}
        self.objects = _vocabulary(names.values(), synonyms)
        texts, boxed = _by_image(said), _by_image(found)
        _check_together(images, texts, boxed, names, captions, instances)
        check_pictures(folder, [image["file_name"] for image in images], self.unreadable)
        images = sorted(images, key=lambda image: hashlib.sha256(image["file_name"].encode()).digest())
        self.listed = tuple(
            Example(
                image["file_name"],
                query=(folder / image["file_name"],),
                target=(texts[image["id"]][0]["caption"],),
                captions=tuple(each["caption"] for each in texts[image["id"]]),
                boxes=tuple(_boxes(image, boxed[image["id"]], names)),
                source="coco",
            )
            for image in images
        )

    def examples(self, split: Split) -> Sequence[Example]:
        return self.listed if split == "test" else ()


Fields = Mapping[str, type | tuple[type, ...]]
"""Name -> what its value has to be."""

ID, NUMBER = (int, str), (int, float)
IMAGE: Fields = {"id": ID, "file_name": str, "width": NUMBER, "height": NUMBER}
CAPTION: Fields = {"image_id": ID, "caption": str}
INSTANCE: Fields = {"image_id": ID, "category_id": ID, "bbox": list}
CATEGORY: Fields = {"id": ID, "name": str}

Record = dict[str, Any]


def read_annotations(path: str, key: str, lists: Mapping[str, Fields]) -> Iterator[list[Record]]:
    """The lists of a file, each of records with these fields."""
    content = read_json(Path(path), key)
    for name, fields in lists.items():
        records = content.get(name) if isinstance(content, dict) else None
        if not isinstance(records, list) or not records:
            raise InputError(f"{key}: {path} has no list {name!r}; COCO's format is an object with {', '.join(lists)}")
        found = ((index, _fault(record, fields)) for index, record in enumerate(records))
        if faults := [f"at {index}: {fault}" for index, fault in found if fault]:
            raise InputError(f"{path}: {len(faults)} of {len(records)} {name} are malformed\n" + listed(faults))
        yield records


def _fault(record: Any, fields: Fields) -> str | None:
    if not isinstance(record, dict):
        return f"it is a {type(record).__name__}, not an object"
    if bad := [name for name, kind in fields.items() if not isinstance(record.get(name), kind)]:
        return f"{bad[0]!r} is {record.get(bad[0])!r}"
    if "width" in fields and min(record["width"], record["height"]) <= 0:
        return f"it is {record['width']} x {record['height']} pixels large"
    box = record["bbox"] if "bbox" in fields else [0, 0, 0, 0]
    return None if len(box) == 4 and all(isinstance(edge, NUMBER) for edge in box) else f"'bbox' is {box!r}"


def _by_image(records: Iterable[Record]) -> dict[Any, list[Record]]:
    found = defaultdict(list)
    for record in records:
        found[record["image_id"]].append(record)
    return found


def _check_together(
    images: Sequence[Record],
    texts: Mapping[Any, Sequence[Record]],
    boxed: Mapping[Any, Sequence[Record]],
    names: Mapping[Any, str],
    captions: str,
    instances: str,
) -> None:
    """Raise InputError where the two files do not go together."""
    if silent := [image["file_name"] for image in images if image["id"] not in texts]:
        raise InputError(f"{captions}: {len(silent)} of {len(images)} pictures have no caption\n" + listed(silent))
    if len({image["file_name"] for image in images}) < len(images):
        raise InputError(f"{captions}: two of its {len(images)} pictures have one file_name")
    if not any(image["id"] in boxed for image in images):
        raise InputError(f"{instances} is about no picture of the {len(images)} of {captions}; are both of one split?")
    if unknown := {each["category_id"] for of in boxed.values() for each in of} - set(names):
        raise InputError(f"{instances} has instances of categories that it does not list: {sorted(map(str, unknown))}")


def _boxes(image: Record, found: Sequence[Record], names: Mapping[Any, str]) -> Iterator[Box]:
    for each in found:
        yield Box(names[each["category_id"]], *edges(image, each["bbox"]))


def edges(image: Record, box: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a COCO box (left, top, width, height in pixels), in shares of the picture."""
    left, top, width, height = box
    across = [min(max(edge / image["width"], 0.0), 1.0) for edge in (left, left + width)]
    down = [min(max(edge / image["height"], 0.0), 1.0) for edge in (top, top + height)]
    return across[0], down[0], across[1], down[1]


def _vocabulary(categories: Iterable[str], synonyms: str | None) -> Vocabulary:
    """The names of objects, of which every category is one."""
    if synonyms is None:
        names = {name.lower(): name.lower() for name in categories}
        return Vocabulary(names, {name: name for name in names if name.count(" ") == 1} | PAIRS, UNLESS)
    names = {}
    for line in read_text(Path(synonyms), "data.synonyms").splitlines():
        called = line.strip().split(", ")  # as CHAIR does: a name with one more space in front is never found
        if any("," in name for name in called):
            raise InputError(f"data.synonyms: {synonyms}: names are set apart by a comma and a space, got {line!r}")
        names |= {name: called[0] for name in called if name}
    if lacking := sorted(set(categories) - set(names)):
        raise InputError(f"data.synonyms: {synonyms} has no line for the categories {', '.join(lacking)}")
    return Vocabulary(names, PAIRS, UNLESS)
