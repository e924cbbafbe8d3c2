"""MMEB's training and evaluation files."""

from pathlib import Path

import pytest
from datasets import Dataset
from drawing_files import draw, write_lines

from alignlab.data import MMEB, MMEBEval
from alignlab.errors import InputError
from alignlab.evaluation import Ranking

ASK = "<|image_1|>\nRepresent the given image: "


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw(tmp_path / "images", *(f"A/{n}.jpg" for n in range(6)))


def row(number: int, **changes) -> dict:
    own = {"qry": ASK, "qry_image_path": f"A/{number}.jpg", "pos_text": f"a dog {number}", "pos_image_path": ""}
    return {**own, "neg_text": "", "neg_image_path": "", **changes}


def judged(number: int, **changes) -> dict:
    own = {"qry_text": f"{ASK}\n", "qry_img_path": f"A/{number}.jpg"}
    return {**own, "tgt_text": ["dog", "cat", "cat"], "tgt_img_path": ["", "", ""], **changes}


def read(folder: Path, reader=MMEB, file="original-00000-of-00001.parquet", settings=(), **subsets):
    root = folder.parent / "mmeb"
    for name, rows in subsets.items():
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(str(path)) if file.endswith("parquet") else write_lines(path, rows)
    return reader(path=str(root), image_folder=str(folder), **dict(settings))


def evaluated(folder: Path, **subsets):
    return read(folder, MMEBEval, "test-00000-of-00001.parquet", **subsets)


def of(data, split):
    return {example.id: example for example in data.examples(split)}


def test_markers_become_pictures_and_empty_negatives_none(folder):
    rows = [
        row(0),
        row(1, qry="Find <|image_1|> with a hat", pos_text="<|image_1|>\n", pos_image_path="A/2.jpg", neg_text="a cat"),
        row(2, qry="a dog", qry_image_path="", neg_text="<|image_1|>", neg_image_path="A/3.jpg"),
    ]
    examples = of(read(folder, settings={"val_fraction": 0.0}, VisDial=rows), "train")
    assert examples["VisDial-0"].query == (folder / "A/0.jpg", "Represent the given image:")
    assert examples["VisDial-0"].target == ("a dog 0",) and examples["VisDial-0"].negatives == ()
    assert examples["VisDial-1"].query == ("Find", folder / "A/1.jpg", "with a hat")
    assert examples["VisDial-1"].target == (folder / "A/2.jpg",) and examples["VisDial-1"].negatives == (("a cat",),)
    assert examples["VisDial-2"].query == ("a dog",) and examples["VisDial-2"].negatives == ((folder / "A/3.jpg",),)
    assert {example.source for example in examples.values()} == {"VisDial"}


def test_each_subset_gives_its_share_and_json_lines_do_too(folder):
    subsets = {"one": [row(n) for n in range(5)], "two": [row(n % 2) for n in range(4)]}
    data = read(folder, file="original.jsonl", settings={"val_fraction": 0.3}, **subsets)
    count = {split: [id[:3] for id in of(data, split)] for split in ("train", "val")}
    assert [count["val"].count(name) for name in ("one", "two")] == [2, 2]  # 2 of 5 pictures, 1 of 2
    assert [count["train"].count(name) for name in ("one", "two")] == [3, 2]
    only = read(folder, settings={"subsets": ["two"], "val_fraction": 0.0})
    assert {id[:3] for id in of(only, "train")} == {"two"} and len(of(only, "test")) == 0


def test_candidates_are_the_target_and_negatives_of_ranking(folder, tiny_backbone):
    data = evaluated(folder, CIFAR=[judged(0), judged(1)], NIGHTS=[
        judged(2, tgt_text=["", ""], tgt_img_path=["A/3.jpg", "A/4.jpg"]), judged(5)
    ])  # fmt: skip
    assert [example.id for example in data.examples("test")] == ["CIFAR-0", "NIGHTS-0", "CIFAR-1", "NIGHTS-1"]
    shown = of(data, "test")["NIGHTS-0"]
    assert shown.target == (folder / "A/3.jpg",) and shown.negatives == ((folder / "A/4.jpg",),)
    assert of(data, "test")["CIFAR-0"].negatives == (("cat",), ("cat",))
    scores = Ranking()(tiny_backbone, data).scores
    assert {"CIFAR", "NIGHTS", "accuracy"} <= set(scores)
    assert scores["chance"] == pytest.approx(1 / 2)  # a candidate that comes twice counts once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qry_image_path": ""}, r"1 of 2 rows are malformed\n  row 1: its qry has <\|image_1\|> but no picture"),
        ({"qry": ASK + ASK}, r"its qry has more than one <\|image_1\|>"),
        ({"pos_text": "\n"}, "its pos_text has neither text nor picture"),
        ({"pos_image_path": "A/9.jpg"}, "1 of 2 pictures are missing"),
    ],
)
def test_a_malformed_row_is_named(folder, change, message):
    with pytest.raises(InputError, match=message):
        read(folder, one=[row(0), row(0, **change)])


def test_a_query_without_a_wrong_candidate_or_with_uneven_ones_is_refused(folder):
    with pytest.raises(InputError, match=r"it has 1 candidate\(s\)"):
        evaluated(folder, one=[judged(0, tgt_text=["dog"], tgt_img_path=[""])])
    with pytest.raises(InputError, match="it has 3 texts, but 2 paths"):
        evaluated(folder, one=[judged(0, tgt_img_path=["", ""])])


def test_what_is_no_folder_of_subsets_is_refused(folder):
    (folder.parent / "mmeb" / "empty").mkdir(parents=True)
    with pytest.raises(InputError, match=r"mmeb has no original\*.parquet or original\*.jsonl; MMEB has a folder for"):
        read(folder)
    with pytest.raises(InputError, match="has no folder 'other'; it has empty"):
        read(folder, settings={"subsets": ["other"]})
    with pytest.raises(InputError, match="needs the columns qry, .*; it has a, b"):
        read(folder, one=[{"a": 1, "b": 2}])
