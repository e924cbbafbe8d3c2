"""Preference pairs in the forms that they come in; files are written by datasets, as users' are."""

import json
import warnings
from io import BytesIO
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Image, List
from PIL import Image as Pictures

from alignlab.backbones.pictures import open_image
from alignlab.batch import Turn
from alignlab.data import Preferences
from alignlab.errors import InputError

RED, BLUE = (Pictures.new("RGB", (32, 32), color) for color in ("red", "blue"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def user(content):
    return [{"role": "user", "content": content}]


def says(content):
    return [{"role": "assistant", "content": content}]


def row(number=0, **changes) -> dict:
    """A pair in TRL's conversational format."""
    own = {"images": [RED], "prompt": user("what is this ?"), "chosen": says(f"red {number}"), "rejected": says("blue")}
    return {"id": f"pair-{number}", **own, **changes}


def table(rows) -> Dataset:
    written = Dataset.from_list(rows)
    return written.cast_column("images", List(Image())) if "images" in rows[0] else written


def saved(folder: Path, rows, name="train.parquet") -> Path:
    folder.mkdir(exist_ok=True)
    table(rows).to_parquet(str(folder / name))
    return folder


def read(path, **settings) -> list:
    data = Preferences(**{"path": str(path), "val_fraction": 0.0, "batch_size": 1, **settings})
    return list(data.examples("train"))


def contents(example):
    return [turn.content for turn in example.conversation]


def color(picture):
    return open_image(picture).getpixel((0, 0))


def test_strings_get_the_pictures_in_front_of_the_first_question(tmp_path):
    history = [*user("what is this ?"), *says("a circle ."), *user("which color ?")]
    (example,) = read(saved(tmp_path / "pairs", [row(prompt=history, images=[RED, BLUE])]))
    first, answer, second, chosen = example.conversation
    assert [turn.role for turn in example.conversation] == ["user", "assistant", "user", "assistant"]
    assert [color(part) for part in first.content[:2]] == [(255, 0, 0), (0, 0, 255)]
    assert first.content[2:] == ("what is this ?",) and answer.content == ("a circle .",)
    assert second.content == ("which color ?",) and chosen.content == ("red 0",) and example.rejected == ("blue",)
    assert example.id == "pair-0"


def test_blocks_keep_the_places_of_their_pictures(tmp_path):
    blocks = [{"type": kind, "text": text} for kind, text in (("text", "is"), ("image", None), ("text", "like"))]
    prompt = user([*blocks, {"type": "image", "text": None}, {"type": "text", "text": "?"}])
    said = {name: says([{"type": "text", "text": text}]) for name, text in (("chosen", "no"), ("rejected", "yes"))}
    (example,) = read(saved(tmp_path / "pairs", [row(images=[BLUE, RED], prompt=prompt, **said)]))
    is_, first, like, second, mark = example.conversation[0].content
    assert (is_, like, mark) == ("is", "like", "?") and (color(first), color(second)) == ((0, 0, 255), (255, 0, 0))
    assert contents(example)[1] == ("no",) and example.rejected == ("yes",)


def test_rows_of_text_alone_stand_beside_rows_with_pictures(tmp_path):
    text, seen = read(saved(tmp_path / "pairs", [row(0, images=[]), row(1)]))
    assert contents(text) == [("what is this ?",), ("red 0",)] and not text.images
    assert len(seen.images) == 1


def test_what_both_sides_begin_with_is_the_prompt(tmp_path):
    said = {side: [*user("what is this ?"), *says(text)] for side, text in (("chosen", "red"), ("rejected", "blue"))}
    (example,) = read(saved(tmp_path / "pairs", [{"images": [RED], **said}]))
    assert contents(example)[0][1] == "what is this ?" and contents(example)[1] == ("red",)
    assert example.rejected == ("blue",) and example.id == "row-0"


def test_plain_text_and_openbmbs_names_are_read(tmp_path):
    picture = tmp_path / "red.png"
    RED.save(picture)
    said = {"chosen": "red", "rejected": "blue"}
    for name, rows in {
        "plain": [{"image": "red.png", "prompt": "what is this ?", **said}],
        "rlaif": [{"image": "red.png", "question": "what is this ?", **said}],
        "rlhf": [{"image": "red.png", "text": json.dumps({"question": "what is this ?", **said})}],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        (example,) = read(tmp_path / f"{name}.jsonl")
        assert contents(example) == [(picture, "what is this ?"), ("red",)] and example.rejected == ("blue",)
    (tmp_path / "list.json").write_text(json.dumps([{"prompt": "what is this ?", **said}]))
    assert contents(read(tmp_path / "list.json")[0]) == [("what is this ?",), ("red",)]


def test_implicit_prompts_of_plain_text_end_where_the_sides_part(tmp_path):
    said = {"chosen": "what is this ? red", "rejected": "what is this ? blue"}
    (tmp_path / "pairs.json").write_text(json.dumps([said]))
    (example,) = read(tmp_path / "pairs.json")
    assert contents(example) == [("what is this ?",), (" red",)] and example.rejected == (" blue",)


def test_sides_that_are_the_same_are_left_out_and_counted(tmp_path):
    rows = [row(0), row(1, chosen=says("blue")), row(2, chosen=says(" blue\n")), row(3, rejected=says(""))]
    rows.append(row(4, chosen=says(""), rejected=says("")))
    with pytest.warns(UserWarning, match=r"2 pair\(s\) with the same answer"):
        examples = read(saved(tmp_path / "pairs", rows))
    # What differs in white space alone stays, as it does in SeVa's own filter.
    assert [example.id for example in examples] == ["pair-0", "pair-2", "pair-3"]
    assert examples[-1].rejected == ("",)


def test_ids_are_unique_across_splits(tmp_path):
    folder = saved(tmp_path / "pairs", [row(0), row(1), row(0)])
    data = Preferences(path=str(saved(folder, [row(1)], "val.parquet")), batch_size=1)
    ids = [example.id for split in ("train", "val", "test") for example in data.examples(split)]
    assert ids == ["pair-0", "pair-1", "pair-0#2", "pair-1#2"]
    nameless = saved(tmp_path / "nameless", [{**row(0), "id": None}] * 2)
    data = Preferences(path=str(saved(nameless, [{**row(2), "id": None}], "val.parquet")), batch_size=1)
    assert [e.id for split in ("train", "val") for e in data.examples(split)] == ["row-0", "row-1", "row-2"]


def test_what_datasets_saved_to_disk_is_read_with_its_splits(tmp_path):
    DatasetDict(
        train=table([row(0)]), validation=table([row(1)]), test=table([row(2)]), extra=table([row(3)])
    ).save_to_disk(str(tmp_path / "saved"))
    data = Preferences(path=str(tmp_path / "saved"), batch_size=1)
    assert [data.examples(split)[0].id for split in ("train", "val", "test")] == ["pair-0", "pair-1", "pair-2"]
    table([row(0), row(1)]).save_to_disk(str(tmp_path / "one"))
    assert len(read(tmp_path / "one")) == 2


def test_a_validation_split_is_drawn_by_picture(tmp_path):
    rows = [
        {"image": f"{number % 10}.png", "prompt": "?", "chosen": str(number), "rejected": "no"} for number in range(30)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(InputError, match="10 of 10 pictures are missing"):
        Preferences(path=str(tmp_path / "pairs.jsonl"), batch_size=1)
    for number in range(10):
        RED.save(tmp_path / f"{number}.png")
    data = Preferences(path=str(tmp_path / "pairs.jsonl"), val_fraction=0.25, batch_size=1)
    sides = [{example.images[0].name for example in data.examples(split)} for split in ("train", "val")]
    assert [len(side) for side in sides] == [7, 3] and not sides[0] & sides[1]
    assert len(data.examples("train")) == 21 and not data.examples("test")


def test_pictures_that_all_have_one_name_are_told_apart_by_id(tmp_path):
    named = {"bytes": png(RED), "path": "image.png"}
    saved(tmp_path / "pairs", [row(number, images=[named]) for number in range(20)])
    data = Preferences(path=str(tmp_path / "pairs"), val_fraction=0.25, batch_size=1)
    assert len(data.examples("val")) == 5 and len(data.examples("train")) == 15


def png(picture):
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def test_a_backbone_encodes_both_sides(tmp_path, tiny_backbone):
    rows = [row(0), row(1, images=[], rejected=says("")), row(2, images=[RED, BLUE])]
    examples = read(saved(tmp_path / "pairs", rows))
    batch = tiny_backbone.encoder.batch(examples, ("conversation", "rejected"))
    assert batch.conversation.num_images.tolist() == batch.rejected.num_images.tolist() == [1, 0, 2]
    trained = [(tokens.labels != -100).sum(1) for tokens in (batch.conversation, batch.rejected)]
    assert (trained[1] > 0).all() and trained[1][1] < trained[0][1]  # an empty answer is its end alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [RED, BLUE], "prompt": user([{"type": "image", "text": None}, {"type": "text", "text": "?"}])},
         r"row 1 \(id 'bad'\): Number of images provided \(2\) does not match number of image placeholders \(1\)"),
        ({"images": [], "prompt": user([{"type": "image", "text": None}])}, r"provided \(0\) does not match"),
        ({"prompt": [*user("?"), *says("!")]}, "a prompt ends with a question, got turns of user, assistant"),
        ({"chosen": [*says("red"), *user("why ?")]}, "chosen must be one answer .* got turns of assistant, user"),
        ({"chosen": None}, "it has no chosen"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named(tmp_path, change, message):
    blocks = isinstance((change.get("prompt") or user(""))[0]["content"], list)
    good = row(0, prompt=user([{"type": "image", "text": None}, {"type": "text", "text": "?"}])) if blocks else row(0)
    with pytest.raises(InputError, match=f"1 of 2 rows are malformed\n.*{message}"):
        read(saved(tmp_path / "pairs", [good, row(1, **{"id": "bad", **change})]))


def test_what_is_no_such_data_set_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pairs.txt").write_text("a,b\n")
    (tmp_path / "broken.json").write_text('[{"prompt": ')
    saved(tmp_path / "other", [{"images": [RED], "answer": "red"}])
    saved(tmp_path / "same", [row(rejected=says("red 0"))])
    for path, message in {
        "nothing": "data.path: there is no .*; .* has .*pairs.txt",
        "empty": "neither train.parquet nor a train split",
        "pairs.txt": r"no file of a table; those are parquet \(.parquet\), json \(.json\), .* and arrow",
        "broken.json": "broken.json cannot be read",
        "other": "Preferences needs the columns chosen and rejected.*it has images, answer",
        "same": "holds no pair to train on",
    }.items():
        with pytest.raises(InputError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(tmp_path / path)


def test_a_broken_picture_is_named_when_it_is_decoded(tmp_path):
    rows = [row(0, images=[{"bytes": b"no picture", "path": None}])]
    data = Preferences(path=str(saved(tmp_path / "pairs", rows)), val_fraction=0.0, batch_size=1)
    (picture,) = data.examples("train")[0].images
    with pytest.raises(InputError, match="of row 0 of .*pairs, train is not a picture"):
        open_image(picture)


def test_conversations_are_turns(tmp_path):
    (example,) = read(saved(tmp_path / "pairs", [row(prompt=[{"role": "system", "content": "be brief"}, *user("?")])]))
    assert example.conversation[0] == Turn("system", ("be brief",))
