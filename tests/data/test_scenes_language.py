"""What the lab says: captions are true of their scene, negatives are false of it, and answers are right."""

import re
from collections import Counter, defaultdict
from itertools import permutations
from random import Random

import pytest

from alignlab.data.scenes import Scenes
from alignlab.data.scenes.language import VOCABULARY, Phrase, Statement, describe, holds, negatives, paraphrases
from alignlab.data.scenes.questions import ask
from alignlab.data.scenes.world import COLORS, SHAPES, SIZES, Scene, Thing

SCENE = Scene(
    (
        Thing("circle", "red", "large", row=0, column=0),
        Thing("square", "blue", "small", row=0, column=2),
        Thing("cross", "green", "small", row=2, column=1),
    )
)


@pytest.fixture(scope="module")
def examples():
    return list(Scenes(num_train=2500, num_objects=(1, 4)).examples("train"))


def test_hand_made_scene_has_the_hand_written_captions():
    caption = describe(SCENE)
    assert str(caption) == "a large red circle left of a small blue square above a small green cross ."
    assert [str(other) for other in paraphrases(caption)] == [
        "a small green cross below a small blue square right of a large red circle .",
        "a red circle left of a blue square above a green cross .",
    ]


@pytest.mark.parametrize(
    ("phrases", "relations", "true"),
    [
        ("red circle, blue square", "left of", True),
        ("blue square, red circle", "left of", False),
        ("red circle, green cross", "left of", True),  # a diagonal neighbour is both left of
        ("red circle, green cross", "above", True),  # and above
        ("red circle, blue square", "above", False),  # the same row is neither above
        ("blue square, red circle", "below", False),  # nor below
        ("red circle, red circle", "left of", False),
        ("red circle, blue square, red circle", "left of, right of", False),  # one object cannot stand for two
        ("red square", "", False),
        ("green cross", "", True),
    ],
)
def test_hand_made_statements_hold_as_they_should(phrases, relations, true):
    words = [phrase.split() for phrase in phrases.split(", ")]
    statement = Statement(
        tuple(Phrase(shape, color) for color, shape in words), tuple(filter(None, relations.split(", ")))
    )
    assert holds(statement, SCENE) is true
    assert is_true(str(statement), SCENE) is true


def test_phrases_may_be_given_other_objects_than_the_first_that_fit():
    row = tuple(Thing(shape, "red", "small", 1, column) for column, shape in enumerate(("circle", "cross", "circle")))
    assert holds(Statement((Phrase("cross"), Phrase("circle")), ("left of",)), Scene(row))


def test_captions_are_true_and_negatives_are_false(examples):
    kinds = Counter()
    for example in examples:
        scene = example.truth["scene"]
        assert all(is_true(caption, scene) for caption in example.captions), example.captions
        assert len(example.negatives) == len(example.truth["negative_kinds"]) >= 2
        for negative in example.negatives:
            assert not is_true(negative[0], scene), (negative, example.captions[0])
        kinds.update(example.truth["negative_kinds"])
    assert set(kinds) == {"replace_object", "replace_attribute", "replace_relation", "swap_attribute"}
    assert min(kinds.values()) > 1000


def test_a_negative_differs_by_what_its_kind_says(examples):
    for example in examples[:500]:
        before = example.captions[0].split()
        for kind, (caption, _) in zip(example.truth["negative_kinds"], example.negatives, strict=True):
            after = caption.split()
            if kind == "replace_relation":
                assert [word for word in before if word in WORDS] == [word for word in after if word in WORDS]
                continue
            pairs = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
            assert len(pairs) == (2 if kind == "swap_attribute" else 1)
            allowed = (SHAPES,) if kind == "replace_object" else (COLORS, SIZES)
            assert any(all({old, new} <= set(words) for old, new in pairs) for words in allowed)
            assert Counter(old for old, _ in pairs) == Counter(new for _, new in pairs) or kind != "swap_attribute"


def test_words_of_negatives_are_those_of_true_captions(examples):
    """A relation that only negatives use would give them away without a look at the picture."""
    true = {word for example in examples for word in example.captions[0].split()}
    false = {word for example in examples for caption, _ in example.negatives for word in caption.split()}
    assert true == false


def test_a_scene_whose_swap_stays_true_gets_no_swap():
    twins = Scene((Thing("circle", "red", "small", 0, 0), Thing("circle", "red", "small", 1, 0)))
    found = [negatives(describe(twins), twins, Random(seed)) for seed in range(20)]
    assert all(set(kinds) == {"replace_object", "replace_attribute", "replace_relation"} for kinds in found)


def test_answers_are_right(examples):
    for example in examples:
        for question in example.questions:
            assert answer(question.text, example.truth["scene"]) == question.answer, (question, example.captions[0])


def test_every_kind_of_question_is_asked_where_the_scene_allows_it(examples):
    for example in examples:
        kinds = {question.kind for question in example.questions}
        assert {"existence", "count"} <= kinds
        single = len(example.truth["scene"].things) == 1
        assert ("relation" in kinds) <= (not single)
        assert ("color" in kinds) >= single


def test_ambiguous_objects_are_not_asked_about():
    twins = Scene((Thing("circle", "red", "small", 0, 0), Thing("circle", "red", "small", 1, 0)))
    assert {question.kind for seed in range(20) for question in ask(twins, Random(seed))} == {"existence", "count"}


def test_questions_alone_do_not_tell_their_answers(examples):
    """The best guess from the text: exact for yes / no up to chance, and far from sure for the others."""
    answers = defaultdict(Counter)
    for question in (question for example in examples for question in example.questions):
        answers[question.kind][question.answer] += 1
        if question.kind == "count":
            answers[question.text][question.answer] += 1
    for kind in ("existence", "relation"):
        total = answers[kind].total()
        assert set(answers[kind]) == {"yes", "no"}
        assert abs(answers[kind]["yes"] / total - 0.5) < 2 / total**0.5  # four standard deviations
    assert set(answers["color"]) == set(COLORS)
    assert max(answers["color"].values()) < 1.3 * min(answers["color"].values())
    assert set(answers["count"]) == {"zero", "one", "two", "three", "four"}
    texts = [counter for text, counter in answers.items() if text.startswith("how many")]
    assert sum(max(counter.values()) for counter in texts) < 0.6 * answers["count"].total()


def test_words_of_yes_and_no_questions_are_alike(examples):
    words = defaultdict(Counter)
    for question in (question for example in examples for question in example.questions):
        if question.kind in ("existence", "relation"):
            words[question.answer].update(question.text.split())
    for word in words["yes"]:
        yes, no = words["yes"][word], words["no"][word]
        assert abs(yes - no) < 5 * (yes + no) ** 0.5, word


def test_vocabulary_covers_all_that_is_said(examples):
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    said = set()
    for example in examples:
        contents = [turn.content for turn in example.conversation] + [example.query, example.target, *example.negatives]
        texts = [part for content in contents for part in content if isinstance(part, str)] + list(example.captions)
        texts += [part for question in example.questions for part in (question.text, question.answer)]
        assert all(text == " ".join(text.split()).lower() for text in texts)
        said.update(word for text in texts for word in text.split())
    assert said == set(VOCABULARY)


# The rest is a second reading of the language, by its words alone, sharing no code with the one that is tested.

WORDS = {*SHAPES, *COLORS, *SIZES}


def relates(first: Thing, relation: str, second: Thing) -> bool:
    x, y = second.column - first.column, second.row - first.row
    return {"left of": x > 0, "right of": x < 0, "above": y > 0, "below": y < 0}[relation]


def is_true(caption: str, scene: Scene) -> bool:
    pieces = re.split(r" (left of|right of|above|below) ", caption.removesuffix(" ."))
    phrases = [set(piece.removeprefix("a ").split()) for piece in pieces[::2]]
    return any(
        all(phrase <= set(thing[:3]) for phrase, thing in zip(phrases, chosen, strict=True))
        and all(relates(a, word, b) for a, word, b in zip(chosen, pieces[1::2], chosen[1:], strict=False))
        for chosen in permutations(scene.things, len(phrases))
    )


def answer(question: str, scene: Scene) -> str:
    def named(words: str) -> list[Thing]:
        return [thing for thing in scene.things if set(words.split()) <= set(thing[:3])]

    if match := re.fullmatch(r"is there a (.*) \?", question):
        return "yes" if named(match[1]) else "no"
    if match := re.fullmatch(r"what color is the (.*) \?", question):
        (thing,) = named(match[1])
        return thing.color
    if match := re.fullmatch(r"how many (.*) are there \?", question):
        singular = match[1].replace(" objects", "").replace("crosses", "cross")
        count = len(named(singular if singular == "cross" else singular.removesuffix("s")))
        return ("zero", "one", "two", "three", "four")[count]
    match = re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+) \?", question)
    (first,), (second,) = named(match[1]), named(match[3])
    return "yes" if relates(first, match[2], second) else "no"
