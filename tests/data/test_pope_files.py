import json
from pathlib import Path

import pytest
from PIL import Image

from alignlab.backbones import Backbone
from alignlab.data import POPEFiles
from alignlab.errors import InputError
from alignlab.evaluation import POPE

PICTURES = ("a.png", "b.png", "c.jpg")
FILES = ("random", "popular", "adversarial")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for index, name in enumerate(PICTURES):
        Image.new("RGB", (48, 48), (80 * index, 0, 90)).save(images / name)
    return images


def row(id: object, image: object, thing: str, label: object) -> dict:
    return {"question_id": id, "image": image, "text": f"is there a {thing} ?", "label": label}


def rows(*absent: str) -> list[dict]:
    """For each picture what is there and what is not, alternately, as in the authors' files."""
    there = [("red circle", "blue cross"), ("red circle", "green diamond"), ("black square", "cyan cross")]
    told = [
        (image, thing, label)
        for image, things in zip(PICTURES, there, strict=True)
        for yes, no in zip(things, absent, strict=True)
        for thing, label in ((yes, "yes"), (no, "no"))
    ]
    return [row(id, *each) for id, each in enumerate(told, start=1)]


RANDOM, POPULAR = rows("purple cross", "red square"), rows("red triangle", "red square")


def read(folder: Path, **files: object) -> POPEFiles:
    for name, content in files.items():
        lines = content if isinstance(content, str) else "".join(json.dumps(each) + "\n" for each in content)
        (folder.parent / f"{name}.json").write_text(lines)
    paths = {name: str(folder.parent / f"{name}.json") for name in files}
    return POPEFiles(image_folder=str(folder), **paths)


def asked(data: POPEFiles) -> dict[str, list[tuple[str, str, str]]]:
    return {e.id: sorted((q.kind, q.text, q.answer) for q in e.existence) for e in data.examples("test")}


def test_a_picture_is_one_example_and_what_is_there_is_asked_once(folder):
    data = read(folder, random=RANDOM, popular=POPULAR)
    found = asked(data)
    assert set(found) == set(PICTURES)
    assert found["a.png"] == [
        ("popular", "is there a red square ?", "no"),
        ("popular", "is there a red triangle ?", "no"),
        ("present", "is there a blue cross ?", "yes"),
        ("present", "is there a red circle ?", "yes"),
        ("random", "is there a purple cross ?", "no"),
        ("random", "is there a red square ?", "no"),
    ]
    assert {e.images for e in data.examples("test")} == {(folder / name,) for name in PICTURES}
    assert list(data.examples("train")) == list(data.examples("val")) == []


def test_rows_are_joined_by_picture_and_text_not_by_place(folder):
    together = asked(read(folder, random=RANDOM, popular=POPULAR))
    moved = [{**each, "question_id": f"q{index}"} for index, each in enumerate(reversed(POPULAR))]
    other = read(folder, random=RANDOM, popular=moved)
    assert asked(other) == together
    assert list(asked(other)) == list(together)  # the order hangs on the pictures' names alone


def test_files_that_ask_for_other_present_things_are_judged_each_on_its_own(folder):
    found = asked(read(folder, random=[each for each in RANDOM if each["question_id"] != 1], popular=POPULAR))
    assert set(found) == {*PICTURES, "a.png#2"}
    kinds = {id: [kind for kind, *_ in each] for id, each in found.items() if id.startswith("a")}
    assert kinds == {"a.png": ["present", "random", "random"], "a.png#2": ["popular", "popular", "present", "present"]}


@pytest.mark.parametrize("dropped", [(), (1,), (3, 5)])
def test_scores_are_those_of_each_file_alone(folder, dropped):
    backbone = Backbone("scenes-vlm")  # which answers some questions with yes and some with no
    files = {"random": [each for each in RANDOM if each["question_id"] not in dropped], "popular": POPULAR}
    files["adversarial"] = rows("blue circle", "cyan diamond")
    judge = POPE(max_new_tokens=2)
    together = judge(backbone, read(folder, **files)).scores
    for split, content in files.items():
        alone = judge(backbone, read(folder, **{split: content})).scores
        names = {name for name in alone if name.startswith(split)}
        assert len(names) == 7 and {name: together[name] for name in names} == {name: alone[name] for name in names}
    assert 0 < sum(together[f"{split}_yes_ratio"] for split in FILES) < 3  # else all answers are the same


def test_there_is_no_guess_by_words_where_nothing_is_trained_on(folder, tiny_backbone):
    scores = POPE(max_new_tokens=1, blind=True)(tiny_backbone, read(folder, random=RANDOM)).scores
    assert {name.split("/")[1] for name in scores if "/" in name} == {"shuffled_images", "text_only"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 13: no JSON"),
        ("[1, 2]", "line 13: it is a list, not an object; POPE's format is one object a line"),
        (json.dumps(row(1, "a.png", "dog", "no")), "line 13: its question_id 1 has come before"),
        (json.dumps(row(None, "a.png", "dog", "no")), "'question_id' must be a number or a text, got None"),
        (json.dumps(row(99, 7, "dog", "no")), "'image' must be a text, got 7"),
        (json.dumps({**row(99, "a.png", "dog", "no"), "text": " "}), "'text' must be a text, got ' '"),
        (json.dumps(row(99, "a.png", "dog", "maybe")), "'label' must be yes or no, got 'maybe'"),
        (json.dumps(row(99, "a.png", "dog", None)), "'label' must be yes or no, got None"),
    ],
)
def test_a_malformed_line_is_named(folder, line, message):
    lines = "".join(json.dumps(each) + "\n" for each in RANDOM)
    with pytest.raises(InputError, match=rf"random.json: 1 of 14 lines are malformed\n  .*{message}"):
        read(folder, random=lines + line + "\n\n")


def test_what_is_missing_or_contradictory_is_named(folder):
    with pytest.raises(InputError, match="POPEFiles needs a file for one of random, popular, adversarial at least"):
        POPEFiles(image_folder=str(folder))
    with pytest.raises(InputError, match="data.image_folder: .*did you mean 'images'"):
        POPEFiles(image_folder=str(folder.parent / "image"), random="x")
    with pytest.raises(InputError, match="data.popular: there is no file .*nowhere.json"):
        POPEFiles(image_folder=str(folder), popular=str(folder / "nowhere.json"))
    with pytest.raises(InputError, match="random.json holds no question"):
        read(folder, random="\n")
    with pytest.raises(InputError, match=r"1 of 4 pictures are missing in [^\n]*\n  d.png"):
        read(folder, random=[*RANDOM, row(99, "d.png", "dog", "no")])
    denied = [*POPULAR, row(99, "a.png", "red circle", "no")]
    with pytest.raises(InputError, match=r"(?s)1 questions have two labels.*a.png: 'is there a red circle \?': yes in"):
        read(folder, random=RANDOM, popular=denied)
