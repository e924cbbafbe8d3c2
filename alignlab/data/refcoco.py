"""RefCOCO: expressions that refer to one object of a picture, each with its box, from MDETR's JSON files."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Unpack

from alignlab.batch import Box, Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.coco import ID, IMAGE, Fields, edges, read_annotations
from alignlab.data.files import check_pictures, picture_folder
from alignlab.data.loading import Loading
from alignlab.data.records import Made, Packed, by_hash
from alignlab.errors import InputError

EXPRESSION: Fields = {**IMAGE, "caption": str}
REGION: Fields = {"image_id": ID, "bbox": list}

PROMPTS = {
    "locate": "Please provide the bounding box coordinate of the region this sentence describes: {}.",
    "describe": "Please provide a short description for this region: {}.",
}
"""Those that LLaVA-1.5 is trained with (Liu et al. 2023, https://arxiv.org/abs/2310.03744)."""


class RefCOCO(AlignmentData):
    """Referring expressions of RefCOCO, RefCOCO+ or RefCOCOg, in the format of MDETR's annotations.

        {"images": [{"id": 0, "file_name": "a.jpg", "width": 640, "height": 480, "caption": "the left dog"}],
         "annotations": [{"image_id": 0, "bbox": [left, top, width, height]}]}

    One entry of ``images`` an expression, in files called ``finetune_refcoco_train.json``, ``..._val.json``,
    ``..._testA.json`` and so on (Kamath et al. 2021, https://arxiv.org/abs/2104.12763). The release of Kazemzadeh et
    al. 2014, ``refs(unc).p``, is a pickle, which may run code when it is read and therefore is not read. The
    conversation asks for the box of an expression or for the expression of a box, ``[left, top, right, bottom]`` in
    shares of the picture with two decimals. Expressions about one picture are of one ``group``. Within a split they
    stand in the order of a hash, so the first ones are a fair sample.

    Args:
        image_folder: What the pictures' file names are relative to, e.g. COCO's ``train2014``.
        train: The file to train on; None: nothing is.
        val: The file to validate on.
        test: The file to evaluate on.
        task: ``locate`` answers with the box, ``describe`` with the expression.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "query", "target", "captions", "boxes", "group")

    def __init__(
        self,
        *,
        image_folder: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        task: Literal["locate", "describe"] = "locate",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        given: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        if not any(given.values()):
            raise InputError("RefCOCO needs a file for one of train, val and test at least, got none")
        self.folder = picture_folder(image_folder)
        self.task = task
        self.records = {split: _read(path, f"data.{split}") for split, path in given.items() if path is not None}
        names = {record["file_name"] for records in self.records.values() for record in records}
        check_pictures(self.folder, names, self.unreadable)

    def examples(self, split: Split) -> Sequence[Example]:
        return Made(partial(self._at, split), range(len(self.records.get(split, ()))))

    def _at(self, split: Split, place: int) -> Example:
        record = self.records[split][place]
        picture, said, shares = self.folder / record["file_name"], record["caption"], record["edges"]
        box = "[" + ", ".join(f"{edge:.2f}" for edge in shares) + "]"
        asked, answer = (said, box) if self.task == "locate" else (box, said)
        return Example.answering(
            record["id"],
            picture,
            PROMPTS[self.task].format(asked.rstrip(".")),
            answer,
            query=(picture,),
            target=(said,),
            captions=(said,),
            boxes=(Box(said, *shares),),
            group=record["file_name"],
            source="refcoco",
        )


def _read(path: str, key: str) -> Packed:
    """An entry an expression: ``id``, ``file_name``, ``caption`` and the ``edges`` of its box."""
    images, regions = read_annotations(path, key, {"images": EXPRESSION, "annotations": REGION})
    of: dict[Any, list[dict[str, Any]]] = {}
    for region in regions:
        of.setdefault(region["image_id"], []).append(region)
    counts = [(image["id"], len(of.get(image["id"], ()))) for image in images]
    if odd := [(id, count) for id, count in counts if count != 1]:
        raise InputError(
            f"{key}: {path}: an expression refers to one box, but {len(odd)} of {len(images)} images have not one, "
            f"e.g. {odd[0][0]} has {odd[0][1]}"
        )
    by_id = {str(image["id"]): image for image in images}
    if len(by_id) < len(images):
        raise InputError(f"{key}: {path}: two of its {len(images)} images have one id")
    if silent := [id for id, image in by_id.items() if not image["caption"].strip()]:
        raise InputError(f"{key}: {path}: {len(silent)} images have an empty caption, e.g. {silent[0]}")
    return Packed(
        {
            "id": id,
            "file_name": by_id[id]["file_name"],
            "caption": by_id[id]["caption"].strip(),
            "edges": edges(by_id[id], of[by_id[id]["id"]][0]["bbox"]),
        }
        for id in by_hash(by_id)
    )
