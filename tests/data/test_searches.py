"""Searches: targets are right and other candidates wrong, as read off the pictures and parsed from the texts."""

from collections import Counter, defaultdict
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from alignlab.backbones import Encoder
from alignlab.data.scenes import Scenes
from alignlab.data.scenes.language import CAPTION_INSTRUCTION, HOLDS, IMAGE_INSTRUCTION, meaning
from alignlab.data.scenes.lexicon import NUMBERS, PLURALS, VOCABULARY
from alignlab.data.scenes.picture import place, render
from alignlab.data.scenes.searches import ANSWERED, TRAINED, UNTRAINED
from alignlab.data.scenes.world import ATTRIBUTES, COLORS, RUN, SHAPES, SIZES, Scene, Thing, split_of
from alignlab.errors import InputError

ALL = (*TRAINED, *UNTRAINED)
WORDS = {*SHAPES, *COLORS, *SIZES}
SIZE = 48


@cache
def made(search, split="test", count=250, **settings):
    data = Scenes(searches=(search,), num_objects=(2, 5), **{f"num_{split}": count}, **settings)
    return list(data.examples(split))


def words(content):
    return " ".join(part for part in content if isinstance(part, str))


@cache
def templates():
    """Every object at every place it can take in a cell, and what it is."""
    found = {}
    steps = (-1.0, -0.5, 0.0, 0.5, 1.0)
    for shape, color, size, x, y in product(SHAPES, COLORS, SIZES, steps, steps):
        thing = Thing(shape, color, size, 0, 0, (x, y))
        found.setdefault((shape, color, size, place(thing, SIZE)), np.asarray(render(Scene((thing,)), SIZE), int))
    names = [key[:3] for key in found]
    known = np.stack([centered(picture[:16, :16]) for picture in found.values()])
    return names, known, (known**2).sum(axis=1)


def centered(cell):
    """Whatever the light."""
    return (cell - cell.mean()).ravel().astype(np.float32)


def read(image):
    """The objects of a picture, in reading order, by their pixels alone."""
    names, known, squares = templates()
    pixels = np.asarray(image, int)
    things = []
    for row, column in product(range(3), range(3)):
        cell = pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        if cell.min(axis=2).min() < 190:  # an empty cell is light
            name = names[(squares - 2 * known @ centered(cell)).argmin()]
            things.append(Thing(*name, row, column))
    return things


def is_part(image, crop):
    """The cells of a picture that a crop shows."""
    side = image.width // 3
    for row, column in product(range(3), range(3)):
        box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
        if image.crop(box).resize(image.size, Image.Resampling.BILINEAR).tobytes() == crop.tobytes():
            yield row, column


def called(phrase, things):
    """The objects that a text like "large red circle" fits."""
    return [thing for thing in things if set(phrase.split()) <= set(thing[:3])]


def is_true(caption, things):
    """Whether a canonical caption is true: its objects, one after the other, each in the relation that is said."""
    phrases = [[word for word in part.split() if word in WORDS] for part in caption.split("a ")[1:]]
    relations = [next(r for r in HOLDS if part.endswith(f" {r} ")) for part in caption.split("a ")[1:-1]]

    def goes_on(chosen):
        if len(chosen) == len(phrases):
            return True
        fits = [thing for thing in called(" ".join(phrases[len(chosen)]), things) if thing not in chosen]
        holds = HOLDS[relations[len(chosen) - 1]] if chosen else lambda *_: True
        return any(goes_on([*chosen, thing]) for thing in fits if holds(chosen[-1] if chosen else None, thing))

    return goes_on([])


def truth(text, things):
    """The answer to a question, from the objects."""
    asked = text.removesuffix(" ?").split()
    if asked[:3] == ["is", "there", "a"]:
        for relation, holds in HOLDS.items():
            if f" {relation} a " in text:
                one, two = text.removesuffix(" ?").removeprefix("is there a ").split(f" {relation} a ")
                pairs = product(called(one, things), called(two, things))
                return "yes" if any(holds(a, b) for a, b in pairs if a is not b) else "no"
        return "yes" if called(" ".join(asked[3:]), things) else "no"
    if asked[:2] == ["how", "many"]:
        singular = {plural: shape for shape, plural in PLURALS.items()}
        return NUMBERS[len(called(singular.get(asked[2], asked[2]), things))]
    (color,) = {thing.color for thing in called(text.removesuffix(" ?").split(" the ")[1], things)}
    return color


def test_the_default_is_the_search_for_captions():
    assert made("caption") == list(Scenes(num_objects=(2, 5), num_test=250).examples("test"))


@pytest.mark.parametrize("search", ALL)
def test_only_what_is_searched_changes(search):
    for example, plain in zip(made(search)[:40], made("caption"), strict=False):
        for field in ("id", "conversation", "captions", "foils", "questions", "existence", "text", "rejected", "boxes"):
            assert getattr(example, field) == getattr(plain, field), field
        assert example.truth["scene"] == plain.truth["scene"]
        assert example.source == ("scenes" if search == "caption" else f"scenes/{search}")


@pytest.mark.parametrize("split", ["train", "test", "compositional"])
@pytest.mark.parametrize("search", ALL)
def test_candidates_are_different_and_in_the_vocabulary(search, split):
    for example in made(search, split, 60):
        assert example.negatives and example.target not in example.negatives
        texts = [[p for p in content if isinstance(p, str)] for content in (example.query, example.target)]
        assert set(" ".join(sum(texts, [])).split()) <= set(VOCABULARY)
        pixels = [(words(c), *(p.tobytes() for p in c if not isinstance(p, str))) for c in example.negatives]
        assert len(set(pixels)) == len(pixels) or search == "caption"  # two changes may give one false caption
        assert all(len(negative) == len(example.target) for negative in example.negatives)


@pytest.mark.parametrize("split", ["train", "test", "compositional"])
def test_a_caption_is_false_of_the_near_pictures(split):
    changes = Counter()
    for example in made("picture", split, 50):
        things = read(example.target[0])
        assert [t[:5] for t in things] == [t[:5] for t in example.truth["scene"].things]
        assert example.query == (example.captions[0], CAPTION_INSTRUCTION) and is_true(example.captions[0], things)
        for image, instruction in example.negatives:
            other = read(image)
            assert not is_true(example.captions[0], other) and instruction == IMAGE_INSTRUCTION
            assert len(other) == len(things) and split_of(other) == split
            changes[len({t[:5] for t in other} - {t[:5] for t in things})] += 1
        assert example.group == example.captions[0] and example.embedding == meaning(example.truth["scene"])
    # A change must stay in the split, and there is less room in the smaller ones.
    assert changes[1] / changes.total() > (0.8 if split == "train" else 0.4) and set(changes) <= {1, 2, 3}


@pytest.mark.parametrize("settings", [{"caption_length": "short"}, {"duplicates": 1.0}], ids=str)
def test_near_pictures_are_wrong_for_what_a_training_caption_leaves_out(settings):
    for index, example in enumerate(made("picture", "train", 48, **settings)):
        things = [(t.shape, t.color, t.row, t.column) for t in example.truth["scene"].things]
        for image, _ in example.negatives:
            others = [(t.shape, t.color, t.row, t.column) for t in read(image)]
            if settings.get("caption_length"):
                color, shape = example.query[0].split()[1:3]
                assert (shape, color) not in [other[:2] for other in others]
            elif index % RUN:  # any caption, also the one without sizes
                assert others != things


@pytest.mark.parametrize("search", ["question", "count", "relation"])
@pytest.mark.parametrize("split", ["test", "compositional"])
def test_answers_are_the_only_right_ones(search, split):
    answers = defaultdict(Counter)
    for example in made(search, split):
        things = example.truth["scene"].things
        image, asked = example.query
        assert image is example.images[0] and example.target == (truth(asked, things),)
        assert all(len(negative) == 1 and negative != example.target for negative in example.negatives)
        assert example.group == example.target[0]
        answers[asked.split()[0]][example.target[0]] += 1
    if search == "count":
        assert set(answers["how"]) == set(NUMBERS[:6]) and len(example.negatives) == 5
    else:
        assert 0.35 < answers["is"]["yes"] / answers["is"].total() < 0.65
    if search == "question":
        assert set(answers) == {"is", "what"} and len(answers["what"]) == len(COLORS)


@pytest.mark.parametrize("search", ["classification", "size"])
def test_classes_are_those_of_the_one_object_in_the_picture(search):
    asked = {"what color is this ?": "color", "what is this ?": "shape", "how large is this ?": "size"}
    counts = Counter()
    for example in made(search):
        image, text = example.query
        ((row, column),) = is_part(example.images[0], image)
        (thing,) = [t for t in example.truth["scene"].things if (t.row, t.column) == (row, column)]
        kind = asked[text]
        assert example.target == (getattr(thing, kind),) and example.group == example.target[0]
        assert {example.target[0], *map(words, example.negatives)} == set(ATTRIBUTES[kind])
        counts[kind] += 1
    assert set(counts) == ({"size"} if search == "size" else {"color", "shape"})
    assert search == "size" or min(counts.values()) > 80


@pytest.mark.parametrize("split", ["test", "compositional"])
def test_parts_are_those_that_the_phrase_names(split):
    lengths = Counter()
    for example in made("grounding", split):
        image, asked = example.query
        things = {(t.row, t.column): t for t in example.truth["scene"].things}
        phrase = asked.removeprefix("summarize the ").removesuffix(" in the image in one word :")
        fitting = called(phrase, things.values())
        ((cell,), *others) = [list(is_part(image, part)) for part, _ in (example.target, *example.negatives)]
        assert things[cell] in fitting and len({t[:3] for t in fitting}) == 1
        shown = [things.get(other) for (other,) in others]
        assert not set(shown) & set(fitting) and shown.count(None) == 1
        assert set(shown) | set(fitting) == {*things.values(), None}  # all objects that it does not name
        thing = things[cell]
        assert example.group == f"{thing.size} {thing.color} {thing.shape}"
        assert example.embedding == meaning(Scene((thing,)))
        lengths[len(phrase.split())] += 1
    assert min(lengths[count] for count in (1, 2, 3)) > 20 and set(lengths) == {1, 2, 3}


def test_scenes_of_one_object_and_of_twins_allow_all_searches_but_relations():
    for search in (s for s in ALL if s != "relation"):
        data = Scenes(searches=(search,), num_objects=(1, 1), num_val=150, seed=3)
        assert all(example.negatives for example in data.examples("val"))


def test_examples_of_one_group_hold_each_other_s_targets():
    """No two targets of different groups are the same, so none is a false negative."""
    data = Scenes(searches=ALL, num_objects=(2, 3), num_test=600)
    groups = defaultdict(set)
    for example in data.examples("test"):
        if example.source.split("/")[-1] in ANSWERED:
            groups[example.target].add(example.group)
    assert all(len(each) == 1 for each in groups.values()) and len(groups) > 15


def test_each_example_has_one_of_the_searches_as_often_as_it_is_named():
    mixed = Scenes(searches=("caption", "question", "question"), num_train=600).examples("train")[:]
    alone = {
        f"scenes{name}": Scenes(searches=(search,), num_train=600).examples("train")
        for name, search in (("", "caption"), ("/question", "question"))
    }
    counts = Counter(example.source for example in mixed)
    assert 350 < counts["scenes/question"] < 450 and counts.total() == 600
    for index, example in enumerate(mixed[:100]):
        assert example == alone[example.source][index]


@pytest.mark.parametrize("search", ["caption", "picture", "grounding"])
def test_without_instructions_pictures_and_captions_stand_alone(search):
    for example, asked in zip(made(search, count=30, instructions=False), made(search), strict=False):
        kept = 2 if search == "grounding" else 1  # the phrase is no mere instruction
        assert example.query == asked.query[:kept] and len(example.target) == 1
        assert [len(negative) for negative in example.negatives] == [1] * len(asked.negatives)


@pytest.mark.parametrize("language", ["invented", "both"])
def test_searches_are_said_in_the_example_s_language(language):
    plain = made("question", "train", 80)
    said = made("question", "train", 80, language=language)
    foreign = [a.query[1] != b.query[1] and a.target != b.target for a, b in zip(said, plain, strict=True)]
    assert all(foreign) if language == "invented" else 20 < sum(foreign) < 60
    assert [example.group for example in said] == [example.group for example in plain]


def test_the_last_caption_of_two_languages_is_in_the_other_one():
    english, invented = (Scenes(language=each).examples("train")[:60] for each in ("english", "invented"))
    for example, one, two in zip(Scenes(language="both").examples("train")[:60], english, invented, strict=True):
        assert example.captions in ((*one.captions, two.captions[0]), (*two.captions, one.captions[0]))
    data = Scenes(language="both")
    assert data.examples("test")[0].captions == Scenes().examples("test")[0].captions


def test_words_have_no_embedding_and_the_data_say_so():
    assert "embedding" in Scenes(searches=("caption", "picture", "grounding")).supplies
    for search in ANSWERED:
        assert "embedding" not in Scenes(searches=("caption", search), num_objects=(2, 3)).supplies
        assert not made(search)[0].embedding
    assert "embedding" in Scenes.supplies


def test_all_searches_are_encoded_in_one_batch():
    examples = Scenes(searches=ALL, num_objects=(2, 3)).examples("train")[:24]
    batch = Encoder.load("scenes-parts").batch(examples, ("query", "target", "negatives", "group"))
    assert batch.groups == tuple(example.group for example in examples)
    assert batch.query.num_images.tolist() == [sum(not isinstance(p, str) for p in e.query) for e in examples]
    assert 0 < batch.target.num_images.sum() < 24
    unknown = Encoder.load("scenes-parts").tokenizer.unk_token_id
    assert not any((tokens.input_ids == unknown).any() for tokens in batch)
    assert torch.equal(batch.num_negatives, torch.tensor([len(e.negatives) for e in examples]))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"searches": ()}, "one or more of"),
        ({"searches": "picture"}, "got 'picture'"),
        ({"searches": ("captions",)}, "'captions'"),
        ({"searches": ("relation",)}, "num_objects starts at 1"),
    ],
)
def test_bad_searches_are_named(arguments, named):
    with pytest.raises(InputError, match=named):
        Scenes(**arguments)
