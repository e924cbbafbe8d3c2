"""Streams: an endless order of shards and a buffer, divided among readers, resumed without decoding."""

from pathlib import Path

import pytest

from alignlab import InputError
from alignlab.batch import Batch, Example
from alignlab.data import Stream
from alignlab.data.loaders import ResumableLoader
from alignlab.data.order import StepNumbers
from alignlab.data.scenes import Scenes
from alignlab.data.streaming import Reader, Streamed, endless
from alignlab.experiment.config import resolve
from alignlab.experiment.preflight import preflight
from alignlab.experiment.run import run

SIZES = (5, 9, 2, 7)


class Numbers(Stream):
    """Shards of unequal sizes; the pictures of examples whose number ends with 3 are missing."""

    num_shards = len(SIZES)

    def shard(self, index):
        for number in range(SIZES[index]):
            query = (Path("/missing.png"),) if number == 3 else ("a word",)
            yield Example(f"{index}-{number}", query=query)


class LabStream(Stream):
    """The lab's training examples in four shards."""

    num_shards = 4

    def __init__(self, examples):
        self.examples = examples

    def shard(self, index):
        for number in range(index, len(self.examples), self.num_shards):
            yield self.examples[number]


class StreamedScenes(Scenes):
    """The lab as a stream."""

    def stream(self):
        return LabStream(super().examples("train"))


def ids_of(examples):
    return Batch(tuple(example.id for example in examples))


def read(reader, *, count, seed=0, buffer=4):
    order = endless(Numbers(), reader, seed=seed, buffer=buffer)
    return [next(order).id for _ in range(count)]


def batches(numbers, *, first=0, processes=1, workers=1, skip=True, **changes):
    settings = {"batch_size": 2, "seed": 0, "buffer": 4, "max_pixels": 100}
    stream = Streamed(
        Numbers(), first=first, num_readers=processes * workers, num_workers=workers, skip=skip, **settings | changes
    )
    return [[example.id for example in stream.__getitems__([number]).examples] for number in numbers]


@pytest.mark.parametrize("buffer", [1, 4, 12, 1000])
def test_a_pass_gives_every_example_once_and_the_next_pass_another_order(buffer):
    order = read(Reader(0, 1), count=69, buffer=buffer)
    passes = [order[start : start + 23] for start in (0, 23, 46)]
    assert all(len(set(each)) == 23 for each in passes)
    assert len({tuple(each) for each in passes}) == 3


def test_the_seed_alone_decides_the_order():
    assert read(Reader(0, 1), count=30) == read(Reader(0, 1), count=30) != read(Reader(0, 1), count=30, seed=1)


def test_a_buffer_mixes_shards_and_without_one_a_shard_stays_in_order():
    shards = [id[0] for id in read(Reader(0, 1), count=23, buffer=1)]
    assert sum(a != b for a, b in zip(shards, shards[1:], strict=False)) == 3
    mixed = [id[0] for id in read(Reader(0, 1), count=23, buffer=12)]
    assert sum(a != b for a, b in zip(mixed, mixed[1:], strict=False)) > 3


def test_two_readers_share_no_example_in_a_pass():
    orders = (read(Reader(number, 2), count=30, buffer=1) for number in (0, 1))
    shards = [list(dict.fromkeys(id[0] for id in order))[:2] for order in orders]  # of four, each reader gets two
    assert sorted(shards[0] + shards[1]) == ["0", "1", "2", "3"]


def test_unequal_shards_never_end():
    assert len(read(Reader(2, 4), count=500)) == 500


def test_shards_without_examples_are_said_to_be_empty():
    class Empty(Stream):
        num_shards = 2

        def shard(self, index):
            return iter(())

    with pytest.raises(InputError, match="2 shards gave no example"):
        next(endless(Empty(), Reader(0, 1), seed=0, buffer=1))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stream_goes_on_at_any_batch_exactly(workers):
    whole = batches(range(9), workers=workers)
    assert batches(range(4, 9), workers=workers) == whole[4:]
    assert batches([8], workers=workers) == whole[8:]
    assert all(len(batch) == 2 for batch in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_a_stream_goes_on_at_the_batch_it_was_stopped_at(workers):
    def loader():
        data = StreamedScenes(num_train=40, batch_size=2, num_workers=workers, shuffle_buffer=4)
        data.connect(ids_of)
        streamed = data._streamed(data.stream(), 0, 1)
        return ResumableLoader(streamed, batch_sampler=StepNumbers(9), **data._settings())

    whole, again = list(loader()), loader()
    again.load_state_dict({"handed_out": 4})
    assert list(again) == whole[4:]


def test_going_on_decodes_no_picture_of_what_was_read_before():
    order = read(Reader(0, 1), count=40)
    bad = next(place for place, id in enumerate(order) if id.endswith("3"))
    batches([bad // 2 + 1], skip=False, batch_size=2)  # past an unreadable example, which would stop
    with pytest.raises(InputError, match=f"example '{order[bad]}': picture /missing.png does not exist"):
        batches([bad // 2], skip=False, batch_size=2)


def test_the_next_readable_example_of_the_stream_stands_in_and_keeps_its_own_place():
    order = read(Reader(0, 1), count=60)
    seen = [id for batch in batches(range(20)) for id in batch]
    changed = [place for place in range(40) if seen[place] != order[place]]
    assert changed == [place for place, id in enumerate(order[:40]) if id.endswith("3")]
    for start in range(0, 40, 2):
        behind = (id for id in order[start + 2 :] if not id.endswith("3"))
        wanted = [next(behind) if id.endswith("3") else id for id in order[start : start + 2]]
        assert seen[start : start + 2] == wanted


def test_a_stream_needs_an_end_and_a_shard_for_every_reader(tiny_path):
    data = f"{__name__}.StreamedScenes"
    config = {"objective": "MLE", "backbone": {"path": str(tiny_path)}, "wandb": {"mode": "disabled"}}
    settings = {"batch_size": 4, "num_val": 4}

    def check(trainer, **more):
        given = {"class_path": data, "init_args": settings | more}
        preflight(resolve({**config, "data": given, "trainer": {"accelerator": "cpu", **trainer}}))

    check({"max_steps": 3})
    with pytest.raises(InputError, match="StreamedScenes streams .*no end; set trainer.max_steps"):
        check({"max_epochs": 1})
    with pytest.raises(InputError, match="StreamedScenes streams .*no limit_train_batches"):
        check({"max_steps": 3, "limit_train_batches": 2})
    with pytest.raises(InputError, match=r"4 shard.s. for 1 process.es. with 5 worker.s.*num_workers to at most 4"):
        check({"max_steps": 3}, num_workers=5)
    with pytest.raises(InputError, match="streams its training examples, so there is no group_by_length"):
        check({"max_steps": 3}, group_by_length=True)


def test_what_only_looks_at_some_training_examples_sees_the_first_shard():
    data = StreamedScenes(num_train=40)
    first = [f"train-{number}" for number in range(0, 40, 4)]
    assert [example.id for example in data.filled("train")] == first
    assert [example.id for example in data.first("train", 3)] == first[:3]


def test_an_interrupted_run_over_a_stream_ends_as_the_uninterrupted_one(tiny_path, tmp_path):
    data = {"class_path": f"{__name__}.StreamedScenes", "init_args": {"num_train": 40, "num_val": 4, "batch_size": 4}}
    config = resolve(
        {
            "objective": "MLE",
            "backbone": {"path": str(tiny_path)},
            "data": {**data, "init_args": {**data["init_args"], "shuffle_buffer": 8}},
            "trainer": {"max_steps": 6, "accelerator": "cpu", "log_every_n_steps": 1},
            "wandb": {"mode": "disabled"},
            "checkpoint_every": 2,
        }
    )
    run(config, tmp_path / "whole")

    def stop(progress):
        if progress.stage == "fit" and progress.step == 3:
            raise RuntimeError("as if the power failed")

    with pytest.raises(RuntimeError, match="power"):
        run(config, tmp_path / "again", on_progress=stop)
    run(config, tmp_path / "again")
    curves = [(tmp_path / each / "curve.jsonl").read_text() for each in ("whole", "again")]
    assert curves[0] == curves[1] and curves[0].count("train/loss") == 6
