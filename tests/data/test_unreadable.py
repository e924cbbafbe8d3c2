"""Pictures that are missing, corrupt or too large: they stop, or are skipped and counted, by setting."""

import json
import time
import warnings
from collections.abc import Sequence

import pytest
from PIL import Image

from alignlab import InputError
from alignlab.batch import Batch, Example
from alignlab.data import LlavaPairs
from alignlab.data.readable import Readable, decoded
from alignlab.evaluation import Retrieval
from alignlab.experiment.config import resolve
from alignlab.experiment.run import run

BROKEN = ("3", "7")


@pytest.fixture
def make(tmp_path):
    """Data of 24 pictures with a caption each, of which one is cut off and one is missing in the folder."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(24):
        Image.effect_noise((40, 40), 9).convert("RGB").save(images / f"{number}.png")
    (images / "3.png").write_bytes((images / "3.png").read_bytes()[:900])
    (images / "7.png").unlink()
    records = [
        {
            "id": str(number),
            "image": f"{number}.png",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"number {number}"}],
        }
        for number in range(24)
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    settings = {"path": str(tmp_path / "data.json"), "image_folder": str(images), "batch_size": 4}

    def make(**changes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LlavaPairs(**settings | {"val_fraction": 0.0, "test_fraction": 0.0} | changes)

    make.settings = settings
    return make


def _encoded(examples):
    return Batch(ids=tuple(example.id for example in examples))


def test_a_missing_picture_is_refused_at_the_start_or_warned_of(make):
    with pytest.raises(InputError, match=r"1 of 24 pictures are missing in .*\n  7.png"):
        make()
    with pytest.warns(UserWarning, match=r"1 of 24 pictures are missing in (.|\n)*skipped"):
        LlavaPairs(**make.settings, unreadable="skip")


def test_a_folder_without_any_picture_is_refused_even_where_pictures_are_skipped(make, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(InputError, match="24 of 24 pictures are missing.*lack a level"):
        make(unreadable="skip", image_folder=str(tmp_path / "elsewhere"))


def test_stopping_names_the_example_and_the_file(make):
    data = make(unreadable="skip")
    data.unreadable = "stop"
    place = [example.id for example in data.examples("train")].index("3")
    with pytest.raises(InputError, match="example '3': picture .*3.png is corrupt"):
        data.readable("train")[place]


def test_the_next_readable_example_stands_in_and_none_comes_twice_in_a_batch(make):
    data = make(unreadable="skip", batch_size=12)
    order = [example.id for example in data.examples("train")]
    data.connect(_encoded)
    batches = list(data.train_dataloader())
    assert [len(batch.ids) for batch in batches] == [12, 12]
    assert sorted(id for batch in batches for id in batch.skipped) == sorted(BROKEN)
    for batch in batches:
        assert len(set(batch.ids)) == 12 and not set(BROKEN) & set(batch.ids)
    again = make(unreadable="skip", batch_size=12)
    again.connect(_encoded)
    assert list(again.train_dataloader()) == batches
    stand_in = data.readable("train")[order.index("3")].id
    assert stand_in == next(id for id in order[order.index("3") + 1 :] + order if id not in BROKEN)


def test_an_example_of_millions_is_found_as_fast_as_one_of_few():
    class Millions(Sequence):
        def __len__(self):
            return 10**8

        def __getitem__(self, index):
            return Example(str(index), query=("a word",))

    started = time.perf_counter()
    assert Readable(Millions(), max_pixels=1, skip=False)[7].id == "7"
    assert time.perf_counter() - started < 0.5


def test_where_a_batch_holds_all_examples_one_of_them_stands_in_and_is_no_reason_to_stop(make):
    data = make(unreadable="skip", batch_size=24)
    data.connect(_encoded)
    (batch,) = data.train_dataloader()
    assert len(batch.ids) == 24 and not set(BROKEN) & set(batch.ids) and set(batch.skipped) == set(BROKEN)
    held_out = make(unreadable="skip", batch_size=24, val_fraction=0.9)
    held_out.connect(_encoded)
    assert [len(batch.ids) for batch in held_out.val_dataloader()] == [22]


def test_going_on_inside_an_epoch_is_exact_where_pictures_are_skipped(make):
    def loader():
        data = make(unreadable="skip")
        data.connect(_encoded)
        return data.train_dataloader()

    whole, again = list(loader()), loader()
    again.load_state_dict({"handed_out": 4})
    assert list(again) == whole[4:]


def test_pictures_beyond_the_limit_are_not_decoded(make):
    data = make(unreadable="skip", max_pixels=40 * 40)
    example = next(each for each in data.examples("train") if each.id == "0")
    assert decoded(example, data.max_pixels).images[0].size == (40, 40)
    with pytest.raises(InputError, match="0.png has more than 1,599 pixels; make it smaller"):
        decoded(example, 40 * 40 - 1)
    none_left = make(unreadable="skip", max_pixels=40 * 40 - 1).readable("train")
    with pytest.raises(InputError, match="none of 24 examples of a split can be read"):
        none_left[0]


def test_a_limit_holds_for_what_is_judged_too(make):
    data = make(unreadable="skip", max_pixels=40 * 40 - 1)
    assert data.first("train", 5) == []
    data.unreadable = "stop"
    with pytest.raises(InputError, match="example .* has more than 1,599 pixels"):
        data.first("train", 5)
    with pytest.raises(InputError, match="max_pixels from 1 to 89478485"):
        make(max_pixels=10**9)


def test_a_picture_of_query_and_conversation_is_decoded_once(make):
    example = make(unreadable="skip").readable("train")[0]
    assert isinstance(example.query[0], Image.Image) and example.query[0] is example.conversation[0].content[0]


def test_a_judged_example_that_cannot_be_read_is_left_out_and_counted(make, tiny_backbone):
    data = make(unreadable="skip")
    evaluator = Retrieval(num_examples=24, split="train")
    assert [item["id"] for item in evaluator(tiny_backbone, data).items if item["id"] in BROKEN] == []
    assert data.left_out == {"train": set(BROKEN)}
    assert len(data.first("train", 24)) == 22 and len(data.first("train", 5)) == 5


def test_the_record_counts_what_was_skipped_in_training_and_evaluation(make, tmp_path, tiny_path):
    data = {"class_path": "LlavaPairs", "init_args": {**make.settings, "unreadable": "skip", "test_fraction": 0.4}}
    config = {
        "objective": "MLE",
        "backbone": {"path": str(tiny_path)},
        "data": data,
        "trainer": {"max_steps": 6, "accelerator": "cpu"},
        "evaluators": [{"class_path": "Retrieval", "init_args": {"num_examples": 20}}],
        "wandb": {"mode": "disabled"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skipped = run(resolve(config), tmp_path / "run")["skipped"]
    made = make(unreadable="skip", val_fraction=0.05, test_fraction=0.4)
    splits = {split: {each.id for each in made.examples(split)} & set(BROKEN) for split in ("train", "val", "test")}
    assert sorted(skipped["examples"]) == sorted(BROKEN)
    assert {split: skipped.get(split, 0) for split in splits} == {split: len(ids) for split, ids in splits.items()}
