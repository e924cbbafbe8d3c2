"""Localized Narratives: where the pointer was while each word was said."""

import json
from pathlib import Path

import pytest
import torch
from drawing_files import draw, write_lines

from alignlab.data import LocalizedNarratives
from alignlab.data.narratives import word_points
from alignlab.errors import InputError
from alignlab.evaluation.localization import judge


def timed(*utterances: tuple[str, float, float]) -> list[dict]:
    return [{"utterance": text, "start_time": start, "end_time": end} for text, start, end in utterances]


def stroke(*points: tuple[float, float, float]) -> list[dict]:
    return [{"x": x, "y": y, "t": t} for t, x, y in points]


TRACES = [stroke((0.0, 0.0, 0.5), (2.0, 1.0, 0.5)), stroke((4.0, 1.0, 0.1), (5.0, 0.5, 0.1))]
"""Two seconds from left to right, a pause of two seconds in which the pointer rises, one second to the middle."""


def narrative(number: int, **changes) -> dict:
    own = {"dataset_id": "mscoco_val2017", "image_id": f"{number}", "annotator_id": 7, "caption": "A dog, then a cat."}
    times = timed(("A dog,", 0.0, 1.0), ("then", 1.0, 2.0), ("a cat.", 4.0, 5.0))
    return {**own, "timed_caption": times, "traces": TRACES, "voice_recording": "x.ogg", **changes}


def name(number: int) -> str:
    return f"{number:012}.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw(tmp_path / "val2017", *map(name, range(5)))


def read(folder: Path, *records: object, **settings) -> LocalizedNarratives:
    path = write_lines(folder.parent / "coco_val.jsonl", records)
    settings = {"val_fraction": 0.0, "test_fraction": 0.0, **settings}
    return LocalizedNarratives(path=str(path), image_folder=str(folder), **settings)


def test_a_word_s_point_is_the_mean_over_time_of_the_pointer_s_place():
    # "A dog," from 0 to 1 s: x goes from 0 to 1/2, mean 1/4. "then" from 1 to 2 s: x from 1/2 to 1. "a cat." from 4 to
    # 5 s: x from 1 to 1/2, y at 0.1.
    points = word_points("A dog, then a cat.", narrative(0)["timed_caption"], TRACES)
    expected = [(0.25, 0.5), (0.25, 0.5), (0.75, 0.5), (0.75, 0.1), (0.75, 0.1)]
    assert [pytest.approx(point) for point in expected] == list(points)


def test_a_bend_counts_as_long_as_it_lasts_and_strokes_are_joined_in_time():
    # From 1 to 3 s: one second from (1/2, 1/2) to (1, 1/2), one second from (1, 1/2) to (1, 0.3), half of the pause.
    (point,) = word_points("x", timed(("x", 1.0, 3.0)), TRACES[::-1])
    assert point == pytest.approx(((0.75 + 1.0) / 2, (0.5 + 0.4) / 2))
    (point,) = word_points("x", timed(("x", 0.5, 0.5)), TRACES)  # at one instant
    assert point == pytest.approx((0.25, 0.5))


def test_words_beyond_the_traces_have_no_point_and_those_that_reach_beyond_count_within():
    times = timed(("early", -2.0, -1.0), ("late", 4.0, 9.0), ("after", 5.5, 6.0))
    assert word_points("early late after", times, TRACES) == (None, pytest.approx((0.75, 0.1)), None)
    assert word_points("early late after", times, []) == word_points("early late after", times, [[]]) == (None,) * 3


def test_points_outside_the_picture_are_put_at_its_edge():
    (point,) = word_points("x", timed(("x", 0.0, 1.0)), [stroke((0.0, 1.1, -0.3), (1.0, 1.3, -0.1))])
    assert point == (1.0, 0.0)


def test_written_words_that_were_not_said_have_no_point_and_misspelt_ones_keep_theirs():
    times = timed(("um in", 0, 0.5), ("this", 0.5, 1), ("pitcher", 1, 2), ("a cat", 4, 5))
    points = word_points("In this picture: a big cat!", times, TRACES)
    x = [None if point is None else round(point[0], 3) for point in points]
    assert x == [0.125, 0.375, 0.75, 0.75, None, 0.75]  # "um" is not written, "big" was not said


def test_a_narrative_is_a_caption_with_a_point_for_each_word(folder):
    data = read(folder, narrative(0, caption="A dog,\n then  a cat. "), narrative(1), narrative(1), narrative(1))
    examples = {example.id: example for example in data.examples("train")}
    assert set(examples) == {"0-7", "1-7", "1-7#2", "1-7#3"}
    example = examples["0-7"]
    assert example.conversation[1].content == example.target == ("A dog, then a cat.",)
    assert example.images == example.query == (folder / name(0),) and example.source == "mscoco_val2017"
    assert len(example.points) == 5 and len({examples[id].group for id in ("1-7", "1-7#2", "1-7#3")}) == 1
    pointed = judge(example, torch.arange(5), torch.tensor(example.points))  # as the evaluator counts words
    assert [each.distance for each in pointed] == pytest.approx([0.0] * 5, abs=1e-6)


def test_files_are_named_by_id_as_each_source_has_them(folder):
    draw(folder, "a1.jpg", "x_9.png")
    data = read(folder, narrative(0, dataset_id="open_images_val", image_id="a1"))
    assert data.examples("train")[0].images == (folder / "a1.jpg",)
    data = read(folder, narrative(9), file_name="x_{image_id}.png")
    assert data.examples("train")[0].images == (folder / "x_9.png",)
    with pytest.raises(InputError, match="data.file_name must be a pattern"):
        read(folder, narrative(9), file_name="{id}.png")


def test_narratives_of_one_picture_share_a_split(folder):
    records = [narrative(number, annotator_id=k) for number in range(5) for k in range(2)]
    data = read(folder, *records, val_fraction=0.2, test_fraction=0.4)
    pictures = [{example.group for example in data.examples(split)} for split in ("train", "val", "test")]
    assert [len(each) for each in pictures] == [2, 1, 2] and len(set.union(*pictures)) == 5


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"dataset_id": ', "line 1: no JSON"),
        (json.dumps([1]), "it is a list, not an object"),
        (narrative(1, caption=" "), "'caption' must be a text, got ' '"),
        (narrative(1, image_id=1), "'image_id' must be a text, got 1"),
        (
            narrative(1, timed_caption=[{"utterance": "a"}]),
            "'timed_caption' must be a list of utterance, start_time and",
        ),
        (narrative(1, traces=[{"x": 1}]), "'traces' must be a list of lists of points"),
        (narrative(1, traces=[[{"x": 1, "y": 1}]]), "a point of 'traces' must be numbers x, y and t"),
        (narrative(8), "1 of 2 pictures are missing"),
    ],
)
def test_a_malformed_line_is_named(folder, record, message):
    with pytest.raises(InputError, match=message):
        read(folder, narrative(0), record)
