"""Referring expressions in MDETR's format."""

from pathlib import Path

import pytest
from drawing_files import draw, write_json

from alignlab.batch import Box
from alignlab.data import RefCOCO
from alignlab.errors import InputError

IMAGES = [
    {"id": 0, "file_name": "a.jpg", "height": 16, "width": 24, "original_id": 5, "caption": "the left dog"},
    {"id": 1, "file_name": "a.jpg", "height": 16, "width": 24, "original_id": 5, "caption": "dog on the right."},
    {"id": 2, "file_name": "b.jpg", "height": 16, "width": 24, "original_id": 6, "caption": "a cup"},
]
BOXES = [[0, 4, 12, 8.0], [12, 0, 14, 16], [6, 4, 6, 4]]
REGIONS = [
    {"id": n, "image_id": n, "bbox": box, "category_id": 1, "iscrowd": 0, "area": 1, "tokens_positive": [[0, 3]]}
    for n, box in enumerate(BOXES)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw(tmp_path / "train2014", "a.jpg", "b.jpg")


def read(folder: Path, images=IMAGES, regions=REGIONS, **settings) -> RefCOCO:
    content = {"info": "", "images": images, "annotations": regions, "categories": [{"id": 1, "name": "object"}]}
    path = write_json(folder.parent / "finetune_refcoco_val.json", content)
    return RefCOCO(image_folder=str(folder), **{"train": str(path), **settings})


def of(data, split="train"):
    return {example.id: example for example in data.examples(split)}


def test_an_expression_is_asked_for_its_box_or_a_box_for_its_expression(folder):
    located = of(read(folder))["0"]
    question, answer = located.conversation
    assert question.content[0] == folder / "a.jpg" and question.content[1].endswith("describes: the left dog.")
    assert answer.content == ("[0.00, 0.25, 0.50, 0.75]",)  # 0 of 24, 4 of 16, 12 of 24, 12 of 16
    assert located.boxes == (Box("the left dog", 0.0, 0.25, 0.5, 0.75),) and located.target == ("the left dog",)
    described = of(read(folder, task="describe"))["1"]
    assert described.conversation[0].content[1].endswith("this region: [0.50, 0.00, 1.00, 1.00].")  # cut at the edge
    assert described.conversation[1].content == ("dog on the right.",)


def test_expressions_of_one_picture_are_of_one_group_and_each_file_is_a_split(folder):
    data = read(folder)
    path = str(folder.parent / "finetune_refcoco_val.json")
    assert of(data)["0"].group == of(data)["1"].group != of(data)["2"].group
    assert len(data.examples("val")) == 0
    judged = RefCOCO(image_folder=str(folder), val=path, test=path)
    assert of(judged, "test").keys() == of(judged, "val").keys() == of(data).keys() and not of(judged)


@pytest.mark.parametrize(
    ("images", "regions", "message"),
    [
        (IMAGES, REGIONS[:2], "1 of 3 images have not one, e.g. 2 has 0"),
        (IMAGES[:2], [*REGIONS[:2], {**REGIONS[1], "id": 9}], "1 of 2 images have not one, e.g. 1 has 2"),
        ([*IMAGES[:2], {**IMAGES[1], "caption": "x"}], REGIONS, "two of its 3 images have one id"),
        ([{**IMAGES[0], "caption": " "}], REGIONS[:1], "1 images have an empty caption, e.g. 0"),
        ([{**IMAGES[0], "caption": None}], REGIONS[:1], "at 0: 'caption' is None"),
        ([{**IMAGES[0], "file_name": "c.jpg"}], REGIONS[:1], "1 of 1 pictures are missing"),
        (IMAGES, [{**REGIONS[0], "bbox": [1]}], r"'bbox' is \[1\]"),
    ],
)
def test_what_does_not_fit_is_named(folder, images, regions, message):
    with pytest.raises(InputError, match=message):
        read(folder, images, regions)


def test_no_file_at_all_is_refused(folder):
    with pytest.raises(InputError, match="RefCOCO needs a file for one of train, val and test"):
        RefCOCO(image_folder=str(folder))
