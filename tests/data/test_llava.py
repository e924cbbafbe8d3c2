import json
import shutil
from pathlib import Path

import pytest
import skimage

from alignlab.backbones.pictures import open_image
from alignlab.data.llava import LlavaJson, LlavaPairs
from alignlab.errors import InputError

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "camera.png", "motorcycle_left.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for name in PHOTOGRAPHS:
        shutil.copy(Path(skimage.__file__).parent / "data" / name, images)
    return images


def record(id: str, image: object = None, *turns: str) -> dict:
    speakers = ("human", "gpt")
    conversation = [{"from": speakers[index % 2], "value": value} for index, value in enumerate(turns)]
    return {"id": id, "conversations": conversation, **({} if image is None else {"image": image})}


def described() -> list[dict]:
    return [record(name, name, "<image>\nWhat is this?", f"This is {name}.") for name in PHOTOGRAPHS]


def read(folder: Path, records: object, reader: type[LlavaJson] = LlavaJson, **settings: object) -> LlavaJson:
    path = folder.parent / "data.json"
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return reader(path=str(path), image_folder=str(folder), batch_size=2, **settings)


def everything(data: LlavaJson) -> dict:
    return {e.id: e for split in ("train", "val", "test") for e in data.examples(split)}


def test_markers_become_pictures_in_place(folder):
    pair = ["chelsea.png", "coffee.png"]
    examples = everything(
        read(
            folder,
            [
                *described(),
                record("two", pair, "First <image> then\n<image>", "A cat, a cup.", "Sure?", "Yes."),
                record("text", None, "Hello", "Hello to you"),
            ],
        )
    )
    (question, answer) = examples["coffee.png"].conversation
    assert question.role == "user" and question.content == (folder / "coffee.png", "What is this?")
    assert answer.role == "assistant" and answer.content == ("This is coffee.png.",)
    assert examples["two"].conversation[0].content == ("First", folder / "chelsea.png", "then", folder / "coffee.png")
    assert [turn.role for turn in examples["two"].conversation] == ["user", "assistant"] * 2
    assert examples["text"].images == () and examples["text"].conversation[0].content == ("Hello",)


def test_splits_do_not_depend_on_the_order_and_share_no_picture(folder):
    records = [record(f"{name}-{n}", name, "<image> ?", str(n)) for name in PHOTOGRAPHS for n in range(3)]
    one = read(folder, records, val_fraction=0.2, test_fraction=0.3)
    other = read(folder, records[::-1], val_fraction=0.2, test_fraction=0.3)
    pictures = {}
    for split, count in {"train": 2, "val": 2, "test": 2}.items():
        assert {e.id for e in one.examples(split)} == {e.id for e in other.examples(split)}
        pictures[split] = {e.images for e in one.examples(split)}
        assert len(pictures[split]) == count and len(one.examples(split)) == 3 * count
    assert len(set.union(*pictures.values())) == 6


def test_repeated_and_absent_ids_become_unique(folder):
    records = described()
    for item in records[:3]:
        item["id"] = 7
    del records[3]["id"]
    assert set(everything(read(folder, records))) >= {"7", "7#2", "7#3", "record-3"}


def test_pairs_supply_query_and_target(folder):
    examples = everything(read(folder, described(), LlavaPairs))
    example = examples["rocket.jpg"]
    assert example.query == (folder / "rocket.jpg",)
    assert example.target == ("This is rocket.jpg.",) and example.captions == ("This is rocket.jpg.",)
    with pytest.raises(InputError, match="record 6 .id 'text'.*one picture and one answer"):
        read(folder, [*described(), record("text", None, "Hello", "Hello")], LlavaPairs)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "x", "image": "coffee.png"}, "record 1 .id 'x'.: 'conversations' must be a list of turns"),
        (record("x", "coffee.png", "<image>"), "turns must go human, gpt"),
        (record("x", "coffee.png", "no marker", "yes"), r"hold 0 <image> marker.s., but 'image' names 1"),
        (record("x", None, "<image> what", "yes"), r"hold 1 <image> marker.s., but 'image' names 0"),
        (record("x", 7, "<image> what", "yes"), "'image' must be a path"),
        (record("x", None, "what", " "), "an answer of gpt is empty"),
        (
            {"id": "x", "conversations": [{"from": "bot", "value": "?"}]},
            "unknown role 'bot'; the roles are system, human, gpt",
        ),
        ({"id": "x", "conversations": [{"from": "human"}]}, "a turn must be"),
        ("x", "record 1: it is a str, not an object"),
    ],
)
def test_a_malformed_record_is_named(folder, bad, message):
    with pytest.raises(InputError, match=message):
        read(folder, [described()[0], bad])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1},\n {"id" 2}]', "line 2, column 8: no JSON"),
        ('{"id": 1}\n{"id": 2}', "JSON Lines"),
        ('{"id": 1}', "holds a dict; LLaVA's format is a list"),
        ("[]", "holds no record"),
    ],
)
def test_a_file_of_another_format_is_refused(folder, text, message):
    with pytest.raises(InputError, match=message):
        read(folder, text)


def test_missing_files_are_named_with_what_is_near(folder):
    read(folder, described())
    with pytest.raises(InputError, match="data.path: there is no file .*dta.json; did you mean 'data.json'"):
        LlavaJson(path=str(folder.parent / "dta.json"), image_folder=str(folder))
    with pytest.raises(InputError, match="data.image_folder: .*did you mean 'images'"):
        LlavaJson(path=str(folder.parent / "data.json"), image_folder=str(folder.parent / "image"))
    missing = [record(f"{n}", f"{n}.png", "<image> ?", "yes") for n in range(5)]
    with pytest.raises(
        InputError, match=r"5 of 11 pictures are missing in [^\n]*\n  0.png\n  1.png\n  2.png\n  and 2 more"
    ):
        read(folder, described() + missing)


def test_a_file_that_is_no_picture_is_found_before_training(folder):
    (folder / "coffee.png").write_text("<html>Not found</html>")
    with pytest.raises(InputError, match="coffee.png: cannot identify"):
        read(folder, described())
    (folder / "coffee.png").write_bytes(b"")
    with pytest.raises(InputError, match="coffee.png: empty file"):
        read(folder, described())


def test_too_few_pictures_for_the_splits_are_refused(folder):
    with pytest.raises(InputError, match=r"about 2 picture.s.*none is left to train on"):
        read(folder, described()[:2])
    assert len(read(folder, described()[:2], val_fraction=0.0, test_fraction=0.0).examples("train")) == 2


def test_a_truncated_picture_is_named_when_decoded(folder):
    (folder / "rocket.jpg").write_bytes((folder / "rocket.jpg").read_bytes()[:20_000])
    data = read(folder, described())
    with pytest.raises(InputError, match="rocket.jpg is corrupt"):
        open_image(everything(data)["rocket.jpg"].images[0])
