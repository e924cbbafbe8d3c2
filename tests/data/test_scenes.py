"""The lab as a data set: the same examples in any order, no scene in two splits, pictures that show their scene."""

import pickle
import re
import zlib
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from alignlab.data.scenes import Scenes
from alignlab.data.scenes.language import CAPTION_PROMPT
from alignlab.data.scenes.picture import NOISE, RGB, place, render
from alignlab.data.scenes.world import COLORS, SHAPES, SIZES, Scene, Thing, split_of
from alignlab.errors import InputError

SCENE = Scene((Thing("circle", "red", "large", row=0, column=0), Thing("square", "blue", "small", row=2, column=2)))


def test_an_example_is_the_same_in_any_order():
    data = Scenes(num_train=40)
    forward = list(data.examples("train"))
    again = pickle.loads(pickle.dumps(Scenes(num_train=40).examples("train")))
    assert forward == [again[index] for index in reversed(range(40))][::-1]
    assert forward[3:5] == data.examples("train")[3:5] and forward[-1] == again[-1]
    with pytest.raises(IndexError):
        data.examples("train")[40]


def test_an_example_is_the_same_in_every_process():
    """Python's own hash of a text would differ; a change here changes every experiment."""
    example = Scenes().examples("test")[0]
    assert example.captions[0] == "a small yellow circle left of a large green cross above a small cyan triangle ."
    assert example.questions[0].text == "is there a green cross ?"
    assert zlib.crc32(np.asarray(example.images[0]).tobytes()) == 3569797394


def test_workers_do_not_change_the_examples():
    loaded = []
    for num_workers in (0, 2):
        data = Scenes(num_train=48, batch_size=8, num_workers=num_workers)
        data.connect(list)
        loaded.append([example for batch in data.train_dataloader() for example in batch])
    assert loaded[0] == loaded[1]
    assert sorted(example.id for example in loaded[0]) == sorted(f"train-{index}" for index in range(48))


def test_more_examples_keep_the_first_ones():
    assert list(Scenes(num_train=5).examples("train")) == Scenes(num_train=50).examples("train")[:5]


def test_tasks_choose_the_conversation_and_nothing_else():
    both, caption, question = (
        list(Scenes(num_val=60, tasks=tasks).examples("val"))
        for tasks in (("caption", "question"), ("caption",), ("question",))
    )
    for mixed, told, asked in zip(both, caption, question, strict=True):
        for field in ("captions", "negatives", "foils", "questions", "existence", "text", "boxes"):
            assert getattr(mixed, field) == getattr(told, field) == getattr(asked, field), field
        assert told.images == asked.images == mixed.images
        assert prompt_and_answer(told) == (CAPTION_PROMPT, told.captions[0])
        assert prompt_and_answer(asked) in [(each.text, each.answer) for each in asked.questions]
        assert mixed.conversation in (told.conversation, asked.conversation)
    assert 15 < sum(prompt_and_answer(example)[0] == CAPTION_PROMPT for example in both) < 45


def test_supplied_fields_are_filled():
    examples = list(Scenes(num_train=500).examples("train"))
    assert all(getattr(example, name) for example in examples for name in Scenes.supplies)
    assert {len(example.boxes) for example in examples} == {1, 2, 3}
    for example in examples:
        words = example.conversation[-1].content[0].split()
        assert len(words) == len(example.roles) == len(example.points)
    assert len({example.id for example in examples}) == len(examples)


def test_splits_share_no_scene_across_seeds():
    sizes = {"num_train": 2500, "num_val": 1000, "num_test": 1000, "num_compositional": 1000}
    forms = defaultdict(set)
    for seed in (0, 1):
        data = Scenes(seed=seed, num_objects=(1, 2), **sizes)
        for split in ("train", "val", "test", "compositional"):
            for example in data.examples(split):
                forms[split].add(tuple(thing[:5] for thing in example.truth["scene"].things))
    assert all(not forms[a] & forms[b] for a, b in combinations(forms, 2))
    assert min(map(len, forms.values())) > 800


def test_split_is_blind_to_rendering_and_order():
    moved = tuple(thing._replace(shift=(0.5, -0.5)) for thing in reversed(SCENE.things))
    assert split_of(moved) == split_of(SCENE.things)


def test_splits_are_alike_in_every_attribute():
    data = Scenes(num_train=1500, num_val=1500, num_test=1500)
    things = {
        split: [thing for example in data.examples(split) for thing in example.truth["scene"].things]
        for split in ("train", "val", "test")
    }
    for index, name in enumerate(Thing._fields[:5]):
        counts = {split: Counter(thing[index] for thing in each) for split, each in things.items()}
        for value in counts["train"]:
            shares = [counts[split][value] / len(things[split]) for split in things]
            assert max(shares) - min(shares) < 0.04, (name, value, shares)


def test_seeds_give_other_scenes():
    first, second = (Scenes(seed=seed, num_test=50).examples("test") for seed in (0, 1))
    assert sum(a.truth["scene"].things == b.truth["scene"].things for a, b in zip(first, second, strict=True)) == 0


@pytest.mark.parametrize("image_size", [24, 48, 240])
def test_objects_stand_inside_their_cells_in_their_colours(image_size):
    data = Scenes(num_test=40, num_objects=(1, 4), image_size=image_size)
    cell = image_size // 3
    for example in data.examples("test"):
        image = example.images[0]
        pixels = np.asarray(image, int)
        assert image.mode == "RGB" and pixels.shape == (image_size, image_size, 3)
        for thing in example.truth["scene"].things:
            left, top, side = place(thing, image_size)
            assert thing.column * cell <= left and left + side <= (thing.column + 1) * cell
            assert thing.row * cell <= top and top + side <= (thing.row + 1) * cell
            centre = pixels[top + side // 2, left + side // 2]
            assert min(RGB, key=lambda color: abs(centre - RGB[color]).sum()) == thing.color, (thing, centre)
            assert image_size == 24 or abs(centre - RGB[thing.color]).max() <= NOISE, (thing, centre)


def test_empty_cells_are_light_and_nearly_flat():
    pixels = np.asarray(render(SCENE, 48), int)[16:32]  # the middle row of cells holds nothing
    assert pixels.min() > 190 and 0 < pixels.std() < 10


def test_pictures_of_one_arrangement_differ_a_little():
    first, second = (np.asarray(render(Scene(SCENE.things, noise=noise), 48), int) for noise in (1, 2))
    assert 0 < abs(first - second).mean() < 2 * NOISE
    assert (first - second).std() > 1  # every pixel has its own noise, beside the light of the whole
    assert (np.asarray(render(Scene(SCENE.things, noise=1), 48)) == first).all()


def test_every_object_looks_different():
    drawn = {
        (shape, color, size): np.asarray(render(Scene((Thing(shape, color, size, 0, 0),)), 48), int)
        for shape in SHAPES
        for color in COLORS
        for size in SIZES
    }
    keys = list(drawn)
    for index, key in enumerate(keys):
        for other in keys[:index]:
            assert abs(drawn[key] - drawn[other])[:16, :16].max() > 60, (key, other)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_objects": (0, 3)}, "num_objects"),
        ({"num_objects": (3, 2)}, "num_objects"),
        ({"num_objects": (1, 7)}, "num_objects"),
        ({"image_size": 50}, "48 would do"),
        ({"image_size": 0}, "24 would do"),
        ({"tasks": ()}, "tasks"),
        ({"tasks": ("captions",)}, "'captions'"),
        ({"tasks": "caption"}, "tasks"),
        ({"num_val": 0}, "num_val = 0"),
        ({"num_compositional": 0}, "num_compositional = 0"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(InputError, match=re.escape(named)):
        Scenes(**arguments)


def prompt_and_answer(example) -> tuple[str, str]:
    user, assistant = example.conversation
    assert user.content[0] is example.images[0]
    return user.content[1], assistant.content[0]


def test_tasks_without_pictures_show_none():
    kinds = Counter()
    for text, reading in zip(
        *(Scenes(tasks=(task,)).examples("train")[:300] for task in ("text", "reading")), strict=True
    ):
        for example in (text, reading):
            ((asked,), (told,)) = (turn.content for turn in example.conversation)
            assert isinstance(asked, str) and isinstance(told, str)
            assert len(example.images) == 1  # of the query
        assert reading.conversation == reading.text
        assert text.conversation[0].content[0] in (CAPTION_PROMPT, *(question.text for question in text.questions))
        kinds["caption" if text.conversation[0].content[0] == CAPTION_PROMPT else "question"] += 1
    assert min(kinds["caption"], kinds["question"]) > 100


def test_a_task_named_twice_comes_twice_as_often():
    examples = Scenes(tasks=("caption", "question", "question")).examples("train")[:900]
    captions = sum(example.conversation[0].content[1] == CAPTION_PROMPT for example in examples)
    assert 250 < captions < 350
