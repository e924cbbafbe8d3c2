"""What can go wrong in training: noise, filler, bias, repeats, other words, another language; and never elsewhere."""

from collections import Counter

import pytest

from alignlab.data.scenes import Scenes
from alignlab.data.scenes.lexicon import AFTER, BEFORE, ENGLISH, SYNONYMS, VOCABULARY
from alignlab.data.scenes.world import (
    COLORS,
    COMPANION,
    FAVORITE_COLOR,
    FAVORITE_SIZE,
    RUN,
    SHAPES,
    SIZES,
)
from alignlab.errors import InputError

WORDS = {"shape": SHAPES, "color": COLORS, "size": SIZES}
ATTRIBUTES = {word: kind for kind, words in WORDS.items() for word in words}


def told(example) -> list[str]:
    return example.conversation[-1].content[0].split()


def train(count=1500, **knobs):
    return list(Scenes(tasks=("caption",), **knobs).examples("train")[:count])


KNOBS = [
    {"caption_noise": 0.5},
    {"caption_noise": 0.5, "noise_source": "prior"},
    {"filler": 0.5},
    {"caption_length": "short"},
    {"duplicates": 0.5},
    {"co_occurrence": 0.8},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_training_alone_is_corrupted(knobs):
    for split in ("val", "test", "compositional"):
        assert list(Scenes(**knobs).examples(split)[:40]) == list(Scenes().examples(split)[:40])
    assert list(Scenes(**knobs).examples("train")[:40]) != list(Scenes().examples("train")[:40])


@pytest.mark.parametrize("knobs", KNOBS[:4], ids=str)
def test_what_is_told_changes_nothing_of_what_is_true(knobs):
    for plain, corrupted in zip(train(100), train(100, **knobs), strict=True):
        assert plain.images == corrupted.images and plain.captions == corrupted.captions
        assert plain.questions == corrupted.questions and plain.foils == corrupted.foils
        assert plain.group == corrupted.group == plain.captions[0]


def test_a_clean_caption_has_a_visual_role_for_every_word_that_the_picture_decides():
    for example in train(200):
        filler = {word for word, role in zip(told(example), example.roles, strict=True) if role == "filler"}
        visual = {word for word, role in zip(told(example), example.roles, strict=True) if role == "visual"}
        assert filler == {"a", "."} and visual <= {*ATTRIBUTES, "left", "of", "above"}


@pytest.mark.parametrize("source", ["uniform", "prior"])
def test_contradictory_words_are_wrong_about_their_object_and_the_others_right(source):
    wrong = Counter()
    for example in train(caption_noise=0.4, noise_source=source):
        scene = example.truth["scene"]
        right = example.captions[0].split()  # noise replaces word by word
        for word, truth, role in zip(told(example), right, example.roles, strict=True):
            assert (word == truth) == (role != "contradictory")
            wrong[ATTRIBUTES.get(truth), role] += 1
            if role == "contradictory":
                assert ATTRIBUTES[word] == ATTRIBUTES[truth]
                if source == "prior":
                    assert word in {*FAVORITE_COLOR.values(), *FAVORITE_SIZE.values(), *SHAPES}
        if source == "prior":
            _check_prior(scene.things, [w for w in told(example) if w in ATTRIBUTES], right)
    for kind in ("shape", "color", "size"):
        share = wrong[kind, "contradictory"] / (wrong[kind, "contradictory"] + wrong[kind, "visual"])
        assert (0.3 < share < 0.45) if source == "uniform" else (0.1 < share < 0.4), (kind, share)


def _check_prior(things, words, right):
    for index, (size, color, shape) in enumerate(zip(words[::3], words[1::3], words[2::3], strict=True)):
        thing = things[index]
        assert size in (thing.size, FAVORITE_SIZE[thing.shape])
        assert color in (thing.color, FAVORITE_COLOR[thing.shape])
        assert shape in (thing.shape, COMPANION[things[index - 1].shape] if index else thing.shape)


@pytest.mark.parametrize("num_objects", [(1, 3), (6, 6)])
def test_a_short_caption_with_a_contradictory_word_is_false_of_the_whole_scene(num_objects):
    for example in train(800, caption_length="short", caption_noise=0.5, num_objects=num_objects):
        color, shape = told(example)[1:3]
        shown = (shape, color) in {thing[:2] for thing in example.truth["scene"].things}
        assert shown == ("contradictory" not in example.roles)


def test_no_noise_and_full_noise_are_what_they_say():
    assert all("contradictory" not in example.roles for example in train(200))
    for example in train(200, caption_noise=1.0, filler=0.3):
        roles = [role for word, role in zip(told(example), example.roles, strict=True) if word in ATTRIBUTES]
        # A word stays only where every other one would tell of what is held out, or of another object.
        assert roles.count("contradictory") >= len(roles) - len(example.boxes)


def test_filler_stands_around_the_same_caption():
    phrases = [phrase.split() for phrase in (*BEFORE, *AFTER)]
    counts = Counter()
    for plain, padded in zip(train(400), train(400, filler=0.5), strict=True):
        visual = [word for word, role in zip(told(padded), padded.roles, strict=True) if role == "visual"]
        assert visual == [word for word, role in zip(told(plain), plain.roles, strict=True) if role == "visual"]
        rest = " ".join(told(padded))
        for phrase in phrases:
            rest = rest.replace(" ".join(phrase), "").replace("  ", " ")
        assert rest.split() == told(plain)
        counts["slots"] += 1 + len(plain.boxes)
        counts["filled"] += sum(" ".join(told(padded)).count(" ".join(phrase)) for phrase in phrases)
    assert 0.45 < counts["filled"] / counts["slots"] < 0.55


def test_points_are_the_places_of_the_objects_that_words_tell_of():
    for example in train(300, filler=0.5, caption_noise=0.3):
        at = iter(zip(told(example), example.points, strict=True))
        pointed = [(word, point) for word, point in at if point is not None]
        assert [word in ATTRIBUTES for word, _ in pointed] == [True] * 3 * len(example.boxes)
        for place, box in enumerate(example.boxes):
            for _, (x, y) in pointed[3 * place : 3 * place + 3]:
                assert box.left < x < box.right and box.top < y < box.bottom


def test_a_short_caption_tells_one_object_without_its_size():
    for example in train(200, caption_length="short"):
        assert len(told(example)) == 4 and not set(told(example)) & set(SIZES)
        assert example.target[0].split() == told(example)
        color, shape = told(example)[1:3]
        largest = "large" if any(thing.size == "large" for thing in example.truth["scene"].things) else "small"
        assert (shape, color, largest) in {thing[:3] for thing in example.truth["scene"].things}


def test_near_duplicates_show_the_scene_of_the_first_of_their_run_in_other_pictures_and_words():
    examples = train(3000, duplicates=0.6)
    firsts = [examples[index - index % RUN] for index in range(len(examples))]
    others = [(one, first) for one, first in zip(examples, firsts, strict=True) if one is not first]
    repeats = [(one, first) for one, first in others if one.group == first.group]
    assert abs(len(repeats) / len(others) - 0.6) < 0.04
    for one, first in repeats:
        assert [thing[:5] for thing in one.truth["scene"].things] == [
            thing[:5] for thing in first.truth["scene"].things
        ]
        assert one.images[0].tobytes() != first.images[0].tobytes() and one.target[0] in first.captions
    assert len({one.target[0] == one.group for one, _ in repeats}) == 2  # told in the same words, and in others
    alone = train(3000)
    assert sum(one.group == alone[index - index % RUN].group for index, one in enumerate(alone)) < 3000 / RUN * 1.2


def test_runs_with_duplicates_share_a_batch():
    data = Scenes(num_train=640, duplicates=0.6)
    data.connect(lambda examples: [int(example.id.removeprefix("train-")) for example in examples])
    for batch in data.train_dataloader():
        assert all(batch[place : place + RUN] == list(range(first, first + RUN))
                   for place, first in zip(range(0, 64, RUN), batch[::RUN], strict=True))  # fmt: skip
    plain = Scenes(num_train=640)
    plain.connect(data.encode)
    batch = next(iter(plain.train_dataloader()))
    assert sum(b == a + 1 for a, b in zip(batch, batch[1:], strict=False)) < 5


def test_co_occurrence_makes_colours_sizes_and_companions_usual():
    shares = {}
    for strength in (0.0, 0.8):
        count, found = Counter(), Counter()
        for example in train(2000, co_occurrence=strength):
            things = example.truth["scene"].things
            count.update(things=len(things), pairs=len(things) - 1)
            found["color"] += sum(FAVORITE_COLOR[thing.shape] == thing.color for thing in things)
            found["size"] += sum(FAVORITE_SIZE[thing.shape] == thing.size for thing in things)
            found["companion"] += sum(COMPANION[a.shape] == b.shape for a, b in zip(things, things[1:], strict=False))
        shares[strength] = [found["color"] / count["things"], found["size"] / count["things"]]
        shares[strength] += [found["companion"] / count["pairs"]]
    # 1 in 6 colours, 1 in 2 sizes and 1 in 5 shapes by chance; the held-out ones leave 6 colours a shape
    assert shares[0.0] == pytest.approx([1 / 6, 1 / 2, 1 / 5], abs=0.03)
    assert shares[0.8] == pytest.approx([0.8 + 0.2 / 6, 0.8 + 0.2 / 2, 0.8 + 0.2 / 5], abs=0.05)


def test_synonyms_are_as_common_as_asked_and_the_same_throughout_an_example():
    for vocabulary, share in (("plain", 0.0), ("synonyms", 0.5), ("rare", 0.05)):
        data = Scenes(vocabulary=vocabulary)
        for split, expected in (("train", share), ("test", 0.5 if vocabulary == "rare" else share)):
            spoken = Counter()
            for plain, other in zip(Scenes().examples(split)[:400], data.examples(split)[:400], strict=True):
                assert translated(other.captions[0], data) == plain.captions[0]
                for foil, false in zip(plain.foils, other.foils, strict=True):
                    assert (translated(false.true, data), translated(false.false, data)) == (foil.true, foil.false)
                words = {word for text in (*other.captions, *(f.false for f in other.foils)) for word in text.split()}
                assert not any({word, synonym} <= words for word, synonym in SYNONYMS.items())
                spoken.update(word in SYNONYMS.values() for word in other.captions[0].split())
            visual = sum(word in ATTRIBUTES for e in Scenes().examples(split)[:400] for word in e.captions[0].split())
            assert abs(spoken[True] / visual - expected) < 0.05, (vocabulary, split)


def translated(text, data):
    return " ".join(data.canonical.get(word, word) for word in text.split())


def test_the_invented_language_says_the_same_with_no_word_of_english():
    english, invented = (Scenes(language=language) for language in ("english", "invented"))
    dictionary = {}
    for plain, other in zip(english.examples("test")[:300], invented.examples("test")[:300], strict=True):
        assert plain.images == other.images
        pairs = [*zip(plain.captions, other.captions, strict=True)]
        pairs += [(a.text, b.text) for a, b in zip(plain.questions, other.questions, strict=True)]
        for one, two in pairs:
            assert not set(two.split()) & set(ENGLISH) - {".", "?", ":"}
            assert len(one.split()) == len(two.split())
        size, color, shape = plain.captions[0].split()[1:4]
        noun, second, first = other.captions[0].split()[1:4]
        for word, foreign in ((size, first), (color, second), (shape, noun)):
            assert dictionary.setdefault(word, foreign) == foreign
    assert len(set(dictionary.values())) == len(dictionary) == 14
    assert invented.attributes["color"] == tuple(dictionary[color] for color in COLORS)
    prompts = {example.conversation[0].content[1] for example in Scenes(language="invented").examples("val")[:20]}
    assert invented.caption_prompt in prompts


def test_both_languages_come_in_training_and_english_elsewhere():
    data = Scenes(language="both")
    english = [set(example.captions[0].split()) <= set(ENGLISH) for example in data.examples("train")[:400]]
    assert 150 < sum(english) < 250
    assert list(data.examples("test")[:20]) == list(Scenes().examples("test")[:20])


def test_a_tokenizer_of_the_vocabulary_knows_every_word_of_both_languages():
    words = set(VOCABULARY)
    assert len(words) == len(VOCABULARY) == 2 * len(ENGLISH) - 3  # marks are the same
    for language in ("english", "invented"):
        for example in Scenes(language=language, filler=1.0, vocabulary="synonyms").examples("train")[:300]:
            assert set(" ".join((*told(example), *example.captions, *example.query[1:])).split()) <= words


@pytest.mark.parametrize("knob", ["caption_noise", "filler", "duplicates", "co_occurrence"])
def test_shares_outside_0_and_1_are_refused(knob):
    for share in (-0.1, 1.5):
        with pytest.raises(InputError, match=rf"{knob} in \[0, 1\], got {share}"):
            Scenes(**{knob: share})


def test_photographs_and_their_folder_come_together(tmp_path):
    for arguments in ({"rendering": "photographs"}, {"backgrounds": str(tmp_path)}):
        with pytest.raises(InputError, match="both or neither"):
            Scenes(**arguments)
    with pytest.raises(InputError, match="no-such-folder"):
        Scenes(rendering="photographs", backgrounds="no-such-folder")
