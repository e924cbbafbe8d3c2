import json
from pathlib import Path

import pytest
from PIL import Image

from alignlab.batch import Box
from alignlab.data import CocoJson
from alignlab.data.mentions import mentions
from alignlab.errors import InputError
from alignlab.evaluation import CHAIR
from alignlab.evaluation.chair import objects_there

SYNONYMS = """\
person, man, baby
dog, puppy
dining table, table, desk
wine glass
motorcycle,  motor bike, motor cycle
"""
IMAGES = [
    {"id": 7, "file_name": "a.png", "width": 80, "height": 40, "license": 3},
    {"id": 9, "file_name": "sub/b.png", "width": 48, "height": 48},
]
CAPTIONS = {
    "info": {},
    "images": IMAGES,
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A man at a table."},
        {"image_id": 9, "id": 2, "caption": "Two wine glasses."},
        {"image_id": 7, "id": 3, "caption": "Someone with a puppy"},
    ],
}
INSTANCES = {
    "images": IMAGES,
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [20, 10, 40, 20.0], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 67, "bbox": [0, 30, 90, 10], "iscrowd": 0},
        {"id": 3, "image_id": 1000, "category_id": 18, "bbox": [0, 0, 1, 1], "iscrowd": 1},
    ],
    "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 67, "name": "dining table"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (80, 40)).save(tmp_path / "images" / "a.png")
    Image.new("RGB", (48, 48), "red").save(tmp_path / "images" / "sub" / "b.png")
    return tmp_path / "images"


def read(folder: Path, captions: dict = CAPTIONS, instances: dict = INSTANCES, synonyms: str | None = None) -> CocoJson:
    texts = {"captions.json": json.dumps(captions), "instances.json": json.dumps(instances), "synonyms.txt": synonyms}
    for name, text in texts.items():
        if text is not None:
            (folder.parent / name).write_text(text)
    return CocoJson(
        captions=str(folder.parent / "captions.json"),
        instances=str(folder.parent / "instances.json"),
        image_folder=str(folder),
        synonyms=None if synonyms is None else str(folder.parent / "synonyms.txt"),
    )


def test_pictures_have_their_captions_and_boxes(folder):
    data = read(folder)
    examples = {each.id: each for each in data.examples("test")}
    assert set(examples) == {"a.png", "sub/b.png"} and list(data.examples("train")) == []
    dog = examples["a.png"]
    assert dog.images == (folder / "a.png",) and dog.target == ("A man at a table.",)
    assert dog.captions == ("A man at a table.", "Someone with a puppy")
    assert dog.boxes == (Box("dog", 0.25, 0.25, 0.75, 0.75), Box("dining table", 0.0, 0.75, 1.0, 1.0))
    assert examples["sub/b.png"].boxes == ()


def test_what_is_there_are_instances_and_what_the_captions_name(folder):
    data = read(folder, synonyms=SYNONYMS)
    there = {each.id: objects_there(each, data.objects) for each in data.examples("test")}
    assert there == {"a.png": {"person", "dining table", "dog"}, "sub/b.png": {"wine glass"}}
    # Without synonyms the categories are all the names there are: nobody speaks of a man or of glasses.
    plain = read(folder)
    there = {each.id: objects_there(each, plain.objects) for each in plain.examples("test")}
    assert there == {"a.png": {"dining table", "dog"}, "sub/b.png": set()}
    assert [each.object for each in mentions("A dining table and dogs", plain.objects)] == ["dining table", "dog"]


def test_the_file_of_synonyms_is_read_as_the_authors_script_reads_it(folder):
    objects = read(folder, synonyms=SYNONYMS + "motorcycle, man\n").objects
    # Two spaces hide a name; the last of two lines counts; "dining table" is no pair of theirs, "table" is its name.
    found = [each.object for each in mentions("motor bike, motor cycle, man, dining table, baby dog", objects)]
    assert found == ["motorcycle", "motorcycle", "dining table", "dog"]


def test_descriptions_are_judged(folder, tiny_backbone):
    data = read(folder, synonyms=SYNONYMS)
    scores = CHAIR(max_new_tokens=3)(tiny_backbone, data).scores
    assert set(scores) == {"sentence", "instance", "recall", "mentions", "length"}
    assert scores["mentions"] == scores["recall"] == 0.0  # it speaks of shapes, if at all


def changed(content: dict, name: str, index: int, **fields: object) -> dict:
    records = [dict(each) for each in content[name]]
    records[index] |= fields
    return {**content, name: records}


@pytest.mark.parametrize(
    ("captions", "instances", "synonyms", "message"),
    [
        ([], INSTANCES, None, "data.captions: .* has no list 'images'; COCO's format is an object with images, annot"),
        (CAPTIONS, {**INSTANCES, "categories": []}, None, "data.instances: .* has no list 'categories'"),
        (
            changed(CAPTIONS, "images", 1, width="48"),
            INSTANCES,
            None,
            "1 of 2 images are malformed\n  at 1: 'width' is '4",
        ),
        (changed(CAPTIONS, "images", 1, height=0), INSTANCES, None, "at 1: it is 48 x 0 pixels large"),
        (changed(CAPTIONS, "annotations", 2, caption=None), INSTANCES, None, "at 2: 'caption' is None"),
        (CAPTIONS, changed(INSTANCES, "annotations", 0, bbox=[1, 2]), None, r"at 0: 'bbox' is \[1, 2\]"),
        (CAPTIONS, {**INSTANCES, "annotations": ["x"]}, None, "at 0: it is a str, not an object"),
        (
            changed(CAPTIONS, "annotations", 1, image_id=7),
            INSTANCES,
            None,
            "1 of 2 pictures have no caption\n  sub/b.png",
        ),
        (
            changed(CAPTIONS, "images", 1, file_name="a.png"),
            INSTANCES,
            None,
            "two of its 2 pictures have one file_name",
        ),
        (
            CAPTIONS,
            changed(INSTANCES, "annotations", 0, category_id=5),
            None,
            r"categories that it does not list: \['5'\]",
        ),
        (
            CAPTIONS,
            {**INSTANCES, "annotations": INSTANCES["annotations"][2:]},
            None,
            "is about no picture of the 2 of .*; are both of one split",
        ),
        (CAPTIONS, INSTANCES, "dog, puppy", "has no line for the categories dining table"),
        (CAPTIONS, INSTANCES, "dog,puppy\n", "names are set apart by a comma and a space, got 'dog,puppy'"),
        (changed(CAPTIONS, "images", 0, file_name="c.png"), INSTANCES, None, "1 of 2 pictures are missing"),
    ],
)
def test_what_does_not_fit_is_named(folder, captions, instances, synonyms, message):
    with pytest.raises(InputError, match=message):
        read(folder, captions, instances, synonyms)


def test_missing_files_are_named_with_what_is_near(folder):
    read(folder)
    paths = {name: str(folder.parent / f"{name}.json") for name in ("captions", "instances")}
    with pytest.raises(InputError, match="data.captions: there is no file .*did you mean 'captions.json'"):
        CocoJson(**{**paths, "captions": str(folder.parent / "caption.json")}, image_folder=str(folder))
    with pytest.raises(InputError, match="data.synonyms: there is no file"):
        CocoJson(**paths, image_folder=str(folder), synonyms=str(folder / "x.txt"))
