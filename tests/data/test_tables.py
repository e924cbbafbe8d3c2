"""Any data set of datasets, by its columns; files are written by datasets, as users' are."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict, Image, List
from drawing_files import color, draw, encoded, write_lines

from alignlab.backbones.pictures import open_image
from alignlab.data import Table
from alignlab.errors import InputError

QUESTION = {"image": "img", "question": "q", "answer": "a"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def row(number: int, **changes) -> dict:
    picture = {"bytes": encoded(number), "path": f"{number}.png"}
    changes = {"l": number, **changes}
    return {
        "img": picture,
        "q": f"which one ? {number}",
        "a": f"a {number}",
        "id": f"n{number}",
        "l": number,
        **changes,
    }


def table(count: int = 6, **changes) -> Dataset:
    return Dataset.from_list([row(number, **changes) for number in range(count)]).cast_column("img", Image())


def of(data: Table, split: str = "train") -> dict:
    return {example.id: example for example in data.examples(split)}


def first(part) -> tuple[int, ...]:
    return open_image(part).getpixel((0, 0))


def written(folder: Path, form: str) -> str:
    """Six rows of a data set in one of the forms that it may have on disk."""
    draw(folder / "img", *(f"{n}.png" for n in range(6)))
    plain = [{**row(n), "img": f"img/{n}.png"} for n in range(6)]
    match form:
        case "parquet":
            table().to_parquet(str(folder / "train-00000-of-00001.parquet"))
        case "saved":
            table().save_to_disk(str(folder / "saved"))
            return str(folder / "saved")
        case "jsonl":
            return str(write_lines(folder / "rows.jsonl", plain))
        case "csv":
            Dataset.from_list(plain).to_csv(str(folder / "rows.csv"))
            return str(folder / "rows.csv")
    return str(folder)


@pytest.mark.parametrize("form", ["parquet", "saved", "jsonl", "csv"])
def test_columns_make_conversations_whatever_the_form(tmp_path, form):
    (tmp_path / "data").mkdir()
    data = Table(path=written(tmp_path / "data", form), columns={**QUESTION, "id": "id"}, splits={"train": "train"})
    assert data.supplies == ("conversation",) and set(of(data)) == {f"n{n}" for n in range(6)}
    asked, answer = of(data)["n2"].conversation
    assert first(asked.content[0]) == color(2) and asked.content[1:] == ("which one ? 2",)
    assert answer.content == ("a 2",)


def test_contents_of_several_columns_stand_one_after_the_other(tmp_path):
    table(hard=["x", "y"]).to_parquet(str(tmp_path / "train.parquet"))
    columns = {"query": ["img", "q"], "target": "a", "negatives": ["hard", "img"], "group": "l"}
    data = Table(path=str(tmp_path), columns=columns, splits={"train": "train"})
    assert data.supplies == ("query", "target", "negatives", "group")
    example = of(data)["row-3"]
    assert first(example.query[0]) == color(3) and example.query[1:] == ("which one ? 3",)
    assert example.target == ("a 3",) and example.group == "3" and not example.conversation
    assert example.negatives[:2] == (("x",), ("y",)) and first(example.negatives[2][0]) == color(3)


def test_captions_make_all_that_they_can(tmp_path):
    table(said=["one dog", "a dog"]).to_parquet(str(tmp_path / "train.parquet"))
    columns = {"image": "img", "captions": "said"}
    data = Table(path=str(tmp_path), columns=columns, splits={"train": "train"})
    assert data.supplies == ("conversation", "query", "target", "captions")
    example = of(data)["row-0"]
    assert example.captions == ("one dog", "a dog") and example.target == ("one dog",)
    assert example.conversation[1].content == ("one dog",) and first(example.query[0]) == color(0)


def message(role: str, content: object) -> dict:
    return {"role": role, "content": content}


SAID = message("assistant", "yes")
BLOCKS = [{"type": "text", "text": "is"}, {"type": "image", "text": None}, {"type": "text", "text": "red"}]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([message("user", "is it ?"), SAID], [0, "is it ?"]),
        ([message("user", "is <image>\nred"), SAID], ["is", 0, "red"]),
        ([message("user", BLOCKS), message("assistant", [{"type": "text", "text": "yes"}])], ["is", 0, "red"]),
        ([{"from": "human", "value": "<image>\nis it ?"}, {"from": "gpt", "value": "yes"}], [0, "is it ?"]),
        ([message("system", "be brief"), message("user", "is it ?"), SAID], [0, "is it ?"]),
        ([message("user", "hello"), message("assistant", "hi"), message("user", "<image> ?"), SAID], [0, "?"]),
    ],
)
def test_messages_get_their_pictures_where_they_mark_them(tmp_path, messages, expected):
    rows = [{"images": [{"bytes": encoded(4), "path": None}], "chat": messages}]
    Dataset.from_list(rows).cast_column("images", List(Image())).to_parquet(str(tmp_path / "train.parquet"))
    data = Table(path=str(tmp_path), columns={"image": "images", "messages": "chat"}, splits={"train": "train"})
    turns = of(data)["row-0"].conversation
    asked = next(turn for turn in turns if turn.role == "user" and any(not isinstance(p, str) for p in turn.content))
    assert [part if isinstance(part, str) else 0 for part in asked.content] == expected
    assert turns[-1].content == ("yes",) and first(next(p for p in asked.content if not isinstance(p, str))) == color(4)


def test_splits_are_the_data_set_s_own_or_drawn_by_picture(tmp_path):
    DatasetDict({"train": table(6), "validation": table(2), "x": table(1)}).save_to_disk(str(tmp_path / "saved"))
    settings = {"path": str(tmp_path / "saved"), "columns": {**QUESTION, "id": "id"}}
    data = Table(**settings)
    assert [len(data.examples(split)) for split in ("train", "val", "test")] == [5, 2, 1]
    named = Table(**settings, splits={"train": "validation", "val": 0.5, "test": "x"})
    assert [len(named.examples(split)) for split in ("train", "val", "test")] == [1, 1, 1]
    assert not {*of(data, "train")} & {*of(data, "test")}


def test_a_broken_picture_is_met_when_it_is_decoded(tmp_path):
    rows = [row(0), row(1, img={"bytes": encoded(1)[:50], "path": None})]
    Dataset.from_list(rows).cast_column("img", Image()).to_parquet(str(tmp_path / "train.parquet"))
    data = Table(path=str(tmp_path), columns=QUESTION, splits={"train": "train"})
    assert len(of(data)) == 2
    with pytest.raises(InputError, match="of row 1 of .*, train, img is corrupt"):
        open_image(of(data)["row-1"].images[0])


def test_streamed_rows_are_those_of_the_files_in_order(tmp_path):
    for number in range(3):
        part = table().select([2 * number, 2 * number + 1])
        part.to_parquet(str(tmp_path / f"train-{number:05}-of-00003.parquet"))
    table(2).to_parquet(str(tmp_path / "test.parquet"))
    data = Table(path=str(tmp_path), columns=QUESTION, streaming=True)
    stream = data.stream()
    assert stream.num_shards == 3
    shards = [[example.conversation[1].content[0] for example in stream.shard(n)] for n in range(3)]
    assert shards == [["a 0", "a 1"], ["a 2", "a 3"], ["a 4", "a 5"]]
    assert first(next(stream.shard(1)).images[0]) == color(2)
    assert len(data.examples("train")) == 6 and len(data.examples("test")) == 2 and data.examples("val") == ()
    assert len({example.id for n in range(3) for example in stream.shard(n)}) == 6
    assert Table(path=str(tmp_path), columns=QUESTION).stream() is None


def test_a_worker_reads_its_shards_whole(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "rows.jsonl", [{"a": f"a {n}"} for n in range(4)])
    stream = Table(path=str(path), columns={"answer": "a"}, streaming=True).stream()
    # datasets deals the rows out to torch's workers by itself, and the second of two would get none of one shard.
    worker = SimpleNamespace(id=1, num_workers=2, seed=0, dataset=None)
    monkeypatch.setattr("torch.utils.data.get_worker_info", lambda: worker)
    assert [example.conversation[1].content[0] for example in stream.shard(0)] == ["a 0", "a 1", "a 2", "a 3"]


def test_a_streamed_row_that_is_malformed_is_named_when_it_comes(tmp_path):
    lines = [{"img": "0.png", "q": "?", "a": "x"}, {"img": "0.png", "q": "?", "a": ""}]
    path = write_lines(tmp_path / "rows.jsonl", lines)
    data = Table(path=str(path), columns=QUESTION, streaming=True)
    with pytest.raises(InputError, match="row 1 of shard 0 of .*rows.jsonl, train: its answer must be a text, got ''"):
        list(data.stream().shard(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": {"answer": "x"}}, "data.columns: there is no column 'x'; there are img, q, a"),
        ({"columns": {"picture": "img"}}, r"no field 'picture'; there are image \(the picture or pictures\), question"),
        ({"columns": {"image": "img"}}, "none of answer, messages, captions, and target with query is named"),
        ({"columns": {"query": "img"}}, "query goes with target, which has no column"),
        ({"columns": {"answer": "a", "messages": "q"}}, "messages and answer both make the conversation"),
        ({"splits": {"train": "x"}}, "has no split 'x'; it has train"),
        ({"splits": {"dev": "train"}}, "data.splits: there is no 'dev'; there are train, val, test"),
        ({"splits": {"val": 0.5}}, "data.splits: val: say train by its name, of which they are shares"),
        ({"splits": {"train": "train", "val": 0.5, "test": 0.5}}, "shares must be at least 0 and less than 1 together"),
        (
            {"streaming": True, "splits": {"train": "train", "val": 0.5}},
            "val: streamed data need splits by their names",
        ),
        ({"path": "rows.txt"}, "data.path: there is no file or folder rows.txt|cannot be read"),
        ({"path": "./nowhere"}, "data.path: there is no file or folder nowhere"),
        ({"path": "somebody/something"}, "data.path: somebody/something cannot be read: "),
    ],
)
def test_what_does_not_fit_the_table_is_said(tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = write_lines(tmp_path / "rows.jsonl", [{"img": "0.png", "q": "?", "a": "x"}] * 3)
    draw(tmp_path, "0.png")
    with pytest.raises(InputError, match=message):
        Table(**{"path": str(path), "columns": QUESTION, **settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": ""}, "1 of 2 rows are malformed\n  row 1: its answer must be a text, got ''"),
        ({"q": None}, "its question must be a text, got None"),
        ({"img": "9.png"}, "1 of 2 pictures are missing"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, change, message):
    draw(tmp_path, "0.png")
    good = {"img": "0.png", "q": "?", "a": "x"}
    path = write_lines(tmp_path / "rows.jsonl", [good, {**good, **change}])
    with pytest.raises(InputError, match=message):
        Table(path=str(path), columns=QUESTION, splits={"train": "train"})


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "messages must be a list of role and content, got 'hello'"),
        ([message("bot", "x")], "unknown role 'bot'; the roles are system, user, assistant, human, gpt"),
        ([SAID], "turns must go user, assistant, .*, got assistant"),
        ([message("user", "<image> <image>"), SAID], "have 2 places for pictures, but there are 1"),
        ([message("user", "x"), message("assistant", "")], "an answer of the assistant is empty"),
        ([message("user", None), SAID], "a message needs content"),
    ],
)
def test_malformed_messages_are_named(tmp_path, messages, message):
    path = write_lines(tmp_path / "rows.jsonl", [{"img": "0.png", "chat": messages}])
    draw(tmp_path, "0.png")
    with pytest.raises(InputError, match=message):
        Table(path=str(path), columns={"image": "img", "messages": "chat"}, splits={"train": "train"})
