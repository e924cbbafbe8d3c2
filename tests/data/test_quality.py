"""How right an answer is: told from the scene, whatever the conversation says."""

import pytest

from alignlab.batch import Example, Turn
from alignlab.data import AlignmentData, Scenes
from alignlab.data.comparing import agreement
from alignlab.data.scenes.language import describe, summarize

SIZES = {"num_train": 40, "num_val": 4, "num_test": 1, "num_compositional": 1}


def answered(example):
    """What the example is trained to say."""
    return example.conversation[-1].content[0]


def test_places_that_agree_are_counted_over_all_attributes():
    attributes = [("red", "blue"), ("circle", "square")]
    # red = red, nothing where blue should be; circle = circle, square = circle is wrong: 2 of 4.
    assert agreement("a red circle , a blue square", "A red circle, a circle", attributes) == 0.5
    assert (
        agreement("a red circle", "a red circle and a blue circle", attributes) == 0.5
    )  # what is invented counts, too
    assert agreement("a cross", "nothing", attributes) is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"language": "invented"},
        {"language": "both"},
        {"vocabulary": "synonyms"},
        {"vocabulary": "synonyms", "language": "both"},
        {"caption_length": "short"},
        {"filler": 1.0},
        {"tasks": ("reading", "text")},
        {"searches": ("classification", "picture")},
    ],
    ids=str,
)
def test_what_the_lab_teaches_is_right(settings):
    data = Scenes(**SIZES, **settings)
    for split in ("train", "val"):
        for example in data.examples(split):
            assert data.quality(example, answered(example)) == 1.0
            assert data.quality(example, f" {answered(example).upper()} ") == 1.0
            assert data.quality(example, "") == 0.0


def test_questions_are_right_or_wrong():
    data = Scenes(**SIZES, tasks=("question",))
    for example in data.examples("train"):
        wrong = {"yes", "no", "one", "two", "red", "blue"} - {answered(example)}
        assert {data.quality(example, answer) for answer in wrong} == {0.0}
        assert data.quality(example, f"{answered(example)} indeed") == 0.0


def test_noise_of_the_taught_captions_is_not_the_truth():
    data = Scenes(**SIZES, tasks=("caption",), caption_noise=1.0)
    for example in data.examples("train"):
        scene = example.truth["scene"]
        assert data.quality(example, str(describe(scene))) == 1.0
        taught = data.quality(example, answered(example))
        # Every word for shape, colour and size is wrong; the relations stay right.
        places = 4 * len(scene.things) - 1
        assert taught == pytest.approx((len(scene.things) - 1) / places)


def test_a_caption_with_one_wrong_word_is_nearly_right():
    data = Scenes(**SIZES, tasks=("caption",))
    example = next(each for each in data.examples("train") if len(each.truth["scene"].things) == 2)
    scene = example.truth["scene"]
    color = scene.things[0].color
    wrong = str(describe(scene)).replace(color, "red" if color != "red" else "blue", 1)
    assert data.quality(example, wrong) == pytest.approx(6 / 7)  # two of each, and one relation


def test_a_short_caption_is_right_where_captions_are_short():
    short, long = (Scenes(**SIZES, tasks=("caption",), caption_length=length) for length in ("short", "long"))
    for one, other in zip(short.examples("train"), long.examples("train"), strict=True):
        scene = one.truth["scene"]
        said = str(summarize(scene)[0])
        assert short.quality(one, said) == short.quality(one, str(describe(scene))) == 1.0
        assert long.quality(other, said) < 1.0


def test_other_data_know_nothing():
    class Others(AlignmentData):
        def examples(self, split):
            return []

    assert Others().quality(Example("a", (Turn("user", ("?",)),)), "yes") is None
    lab = Scenes(**SIZES)
    alien = Example("a", (Turn("user", ("what is the weather ?",)),))
    assert lab.quality(alien, "fine") is None
