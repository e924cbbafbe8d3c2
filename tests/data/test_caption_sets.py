"""Captions of COCO and Flickr30k in the three formats that they come in."""

import json
from pathlib import Path

import pytest
from drawing_files import draw, encoded, write_json

from alignlab.backbones.pictures import open_image
from alignlab.data import CocoCaptions, Flickr30k, Karpathy
from alignlab.errors import InputError

SPLITS = ("train", "restval", "val", "test", "train", "test")
NAMES = [f"COCO_val2014_{n:012}.jpg" for n in range(len(SPLITS))]


def image(number: int, **changes) -> dict:
    """An entry as in dataset_coco.json."""
    raw = [f"Caption {k} of {number}." for k in range(2 + number % 2)]
    sentences = [
        {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": k} for k, text in enumerate(raw)
    ]
    entry = {"filepath": "val2014", "filename": NAMES[number], "split": SPLITS[number], "imgid": number}
    return {**entry, "sentids": [0, 1], "cocoid": number, "sentences": sentences, **changes}


IMAGES = [image(number) for number in range(len(SPLITS))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", *(f"val2014/{name}" for name in NAMES), *NAMES)


def karpathy(folder: Path, images: object = None, **settings) -> Karpathy:
    path = write_json(
        folder.parent / "dataset_coco.json", {"images": IMAGES if images is None else images, "dataset": "coco"}
    )
    return Karpathy(path=str(path), image_folder=str(folder), batch_size=2, **settings)


def of(data, split):
    return {example.id: example for example in data.examples(split)}


def test_karpathy_s_split_is_kept_and_restval_is_trained_on(folder):
    data = karpathy(folder, per="picture")
    found = {split: {int(id[-16:-4]) for id in of(data, split)} for split in ("train", "val", "test")}
    assert found == {"train": {0, 1, 4}, "val": {2}, "test": {3, 5}}
    without = karpathy(folder, per="picture", restval=False)
    assert {int(id[-16:-4]) for id in of(without, "train")} == {0, 4}
    (folder / "val2014" / NAMES[1]).unlink()  # of restval
    assert len(of(karpathy(folder, per="picture", restval=False), "train")) == 2


def test_a_picture_has_all_its_captions_and_each_caption_is_a_training_example(folder):
    data = karpathy(folder)
    tested = of(data, "test")["val2014/" + NAMES[3]]
    assert tested.captions == ("Caption 0 of 3.", "Caption 1 of 3.", "Caption 2 of 3.")
    assert tested.target == ("Caption 0 of 3.",) and tested.query == (folder / "val2014" / NAMES[3],)
    assert [turn.content for turn in tested.conversation] == [
        (folder / "val2014" / NAMES[3], "Describe the image."),
        ("Caption 0 of 3.",),
    ]
    train = of(data, "train")
    assert len(train) == 2 + 3 + 2 and all(len(each.captions) in (2, 3) for each in train.values())
    second = train[f"val2014/{NAMES[1]}#1"]
    assert second.target == second.conversation[1].content == ("Caption 1 of 1.",)
    assert second.captions == ("Caption 1 of 1.", "Caption 0 of 1.", "Caption 2 of 1.")
    same = [each for each in train.values() if each.group == second.group]
    assert len(same) == 3 and {each.query for each in same} == {second.query}


def test_flickr_s_pictures_of_karpathy_s_file_stand_in_the_folder_itself(folder):
    entry = image(0)
    del entry["filepath"]
    assert set(of(karpathy(folder, [entry], per="picture"), "train")) == {NAMES[0]}


def test_a_picture_is_decoded_when_it_is_asked_for(folder):
    (folder / "val2014" / NAMES[0]).write_bytes(encoded(0)[:50])
    data = karpathy(folder, per="picture")
    (part,) = of(data, "train")["val2014/" + NAMES[0]].images
    with pytest.raises(InputError, match="is corrupt"):
        open_image(part)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (image(1, split="training"), "image 1: 'split' must be one of train, restval, val, test, got 'training'"),
        (image(1, sentences=[]), r"'sentences' must be a list of captions, got \[\]"),
        (image(1, sentences=[{"raw": " "}]), "the 'raw' of a sentence must be a text, got ' '"),
        (image(1, filename=None), "'filename' must be a text, got None"),
        ("x", "it is a str, not an object"),
        (image(0), "two of its 2 images have one filename"),
        (image(1, filename="z.jpg"), "1 of 2 pictures are missing .*\n  val2014/z.jpg"),
    ],
)
def test_a_malformed_image_is_named(folder, entry, message):
    with pytest.raises(InputError, match=message):
        karpathy(folder, [image(0), entry])


def test_another_format_than_karpathy_s_is_refused(folder):
    with pytest.raises(InputError, match="has no list 'images'"):
        karpathy(folder, {"a": 1})


def token_file(folder: Path, text: str | None = None) -> Path:
    path = folder.parent / "results_20130124.token"
    lines = [f"{name}#{k}\tCaption {k} of {n} ." for n, name in enumerate(NAMES) for k in range(5)]
    path.write_text("\n".join(lines) + "\n" if text is None else text)
    return path


def test_flickr_s_own_file_is_read_and_split_by_lists_or_shares(folder):
    path = token_file(folder)
    (folder.parent / "test.txt").write_text(f"{NAMES[2]}\n{Path(NAMES[4]).stem}\n\n")
    data = Flickr30k(path=str(path), image_folder=str(folder), val=0.25, test=str(folder.parent / "test.txt"))
    assert set(of(data, "test")) == {NAMES[2], NAMES[4]} and len(of(data, "val")) == 1
    assert len(data.examples("train")) == 3 * 5 and of(data, "test")[NAMES[2]].captions[4] == "Caption 4 of 2 ."
    drawn = Flickr30k(path=str(path), image_folder=str(folder), val=0.2, test=0.2, per="picture")
    assert [len(drawn.examples(split)) for split in ("train", "val", "test")] == [2, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\tA dog .", "line 1: it must be 'picture.jpg#number', a tab and a caption, got 'a.jpg"),
        ("a.jpg#0\tA dog .\n\na.jpg#1 A dog .", "1 of 2 captions are malformed\n.*line 3"),
        ("", "holds no caption"),
        ("a.jpg#0\tA dog .\nb.jpg#0\tA cat .", "2 of 2 pictures are missing"),
    ],
)
def test_a_malformed_line_of_flickr_s_file_is_named(folder, text, message):
    with pytest.raises(InputError, match=message):
        Flickr30k(path=str(token_file(folder, text)), image_folder=str(folder), val=0.0, test=0.0)


def test_lists_that_name_what_is_not_there_or_both_the_same_are_refused(folder):
    path, names = token_file(folder), folder.parent / "names.txt"
    names.write_text("other.jpg\n")
    with pytest.raises(InputError, match=r"data.val: .* names 1 picture\(s\) without a caption, e.g. other.jpg"):
        Flickr30k(path=str(path), image_folder=str(folder), val=str(names))
    names.write_text(f"{NAMES[0]}\n")
    with pytest.raises(InputError, match=f"both name 1 .* {NAMES[0]}"):
        Flickr30k(path=str(path), image_folder=str(folder), val=str(names), test=str(names))


def test_coco_s_own_file_is_trained_on(folder):
    images = [{"id": n, "file_name": name, "width": 24, "height": 16} for n, name in enumerate(NAMES)]
    said = [{"image_id": n % 5, "id": n, "caption": f"Caption {n}.\n"} for n in range(10)]  # the last picture has none
    path = write_json(folder.parent / "captions_train2017.json", {"images": images, "annotations": said})
    data = CocoCaptions(path=str(path), image_folder=str(folder), val_fraction=0.2, test_fraction=0.2)
    assert [len(data.examples(split)) for split in ("train", "val", "test")] == [3 * 2, 1, 1]
    (example,) = data.examples("test")
    number = NAMES.index(example.id)
    assert example.captions == (f"Caption {number}.", f"Caption {number + 5}.")
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 99, "caption": "x"}]}))
    with pytest.raises(InputError, match="none of its 6 images has a caption"):
        CocoCaptions(path=str(path), image_folder=str(folder))
