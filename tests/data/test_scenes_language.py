"""What the lab says: captions are true of their scene, foils are false of it, answers are right, points are inside."""

import re
from collections import Counter, defaultdict
from itertools import permutations
from random import Random

import pytest

from alignlab.data.scenes import Scenes
from alignlab.data.scenes.foils import make_foils
from alignlab.data.scenes.language import Phrase, Statement, describe, holds, paraphrases, summarize
from alignlab.data.scenes.lexicon import ENGLISH
from alignlab.data.scenes.questions import ask, existence
from alignlab.data.scenes.world import COLORS, COMPANION, FAVORITE_COLOR, HELD_OUT, SHAPES, SIZES, Scene, Thing, draw

SCENE = Scene(
    (
        Thing("circle", "red", "large", row=0, column=0),
        Thing("square", "blue", "small", row=0, column=2),
        Thing("cross", "green", "small", row=2, column=1),
    )
)
KINDS = {f"{change}_{what}" for change in ("replace", "swap", "add") for what in ("object", "attribute")}
KINDS |= {"replace_relation"}


@pytest.fixture(scope="module")
def examples():
    return list(Scenes(num_train=2500, num_objects=(1, 4)).examples("train"))


@pytest.fixture(scope="module")
def unseen():
    """Of the other splits, with as many objects as there may be."""
    data = Scenes(num_test=800, num_compositional=800, num_objects=(1, 6))
    return {split: list(data.examples(split)) for split in ("test", "compositional")}


def foils(count, num_objects):
    """Of as many test scenes, without the rest of an example."""
    for seed in range(count):
        scene = draw("test", num_objects, Random(seed))
        yield make_foils(describe(scene), scene, Random(-seed))


def test_hand_made_scene_has_the_hand_written_captions():
    caption = describe(SCENE)
    assert str(caption) == "a large red circle left of a small blue square above a small green cross ."
    assert paraphrases(caption) == (
        "a small green cross below a small blue square right of a large red circle .",
        "there is a large red circle left of a small blue square above a small green cross .",
        "a red circle left of a blue square above a green cross .",
    )
    assert [str(part) for part in summarize(SCENE)] == ["a red circle .", "0"]
    assert str(summarize(Scene(SCENE.things[1:]))[0]) == "a blue square ."


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


def test_captions_are_true_and_foils_false(examples, unseen):
    kinds = Counter()
    for example in (*examples, *unseen["test"], *unseen["compositional"]):
        scene = example.truth["scene"]
        assert all(is_true(caption, scene) for caption in example.captions), example.captions
        for foil in example.foils:
            assert is_true(foil.true, scene) and not is_true(foil.false, scene), (foil, example.captions[0])
        # An added attribute has another true twin than the target, which says all attributes.
        twins = [foil for foil in example.foils if foil.true == example.captions[0]]
        assert example.negatives == tuple((foil.false, example.target[1]) for foil in twins)
        assert example.truth["negative_kinds"] == tuple(foil.kind for foil in twins)
        kinds.update(foil.kind for foil in example.foils)
    assert set(kinds) == KINDS
    assert min(kinds.values()) > 1000


def test_a_foil_differs_by_what_its_kind_says(examples):
    for example in examples[:800]:
        for foil in example.foils:
            before, after = foil.true.split(), foil.false.split()
            if foil.kind != "add_attribute":
                assert foil.true == example.captions[0]
            if foil.kind == "replace_relation":
                assert [word for word in before if word in WORDS] == [word for word in after if word in WORDS]
                continue
            pairs = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
            if foil.kind == "add_object":
                scene = example.truth["scene"]
                absent = [p for p in phrases(foil.false) if not any(p <= set(thing[:3]) for thing in scene.things)]
                assert len(absent) == 1 and len(set(phrases(foil.true)) ^ set(phrases(foil.false))) <= 2
                assert all(len(absent[0] & set(thing[:2])) < 2 for thing in scene.things)  # not a matter of size alone
                continue
            swaps = foil.kind.startswith("swap")
            assert len(pairs) == (2 if swaps else 1), foil
            assert (Counter(old for old, _ in pairs) == Counter(new for _, new in pairs)) is swaps
            allowed = (SHAPES,) if foil.kind.endswith("object") else (COLORS, SIZES)
            assert any(all({old, new} <= set(words) for old, new in pairs) for words in allowed)


def test_an_added_attribute_is_the_only_one_said():
    for foil in (foil for example in Scenes(num_objects=(2, 4)).examples("val")[:200] for foil in example.foils):
        if foil.kind == "add_attribute":
            for text in (foil.true, foil.false):
                counts = [len(set(text.split()) & set(words)) for words in (COLORS, SIZES)]
                single = [sum(word in words for word in text.split()) for words in (COLORS, SIZES)]
                assert 1 in single and min(counts) >= 1, text


@pytest.mark.parametrize("num_objects", [(2, 2), (3, 3)])
def test_each_change_comes_as_often_as_the_one_back(num_objects):
    """So nothing in the two texts, no word and no length, tells which is the true one."""
    changes = defaultdict(Counter)
    for pairs in foils(5000, num_objects):
        for kind, (true, false) in pairs.items():
            before, after = re.split(r" (?=a )", str(true)), re.split(r" (?=a )", str(false))
            differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
            if kind == "replace_relation":
                differing = [(old.split()[4:], new.split()[4:]) for old, new in differing]
            for old, new in differing:
                low, high = sorted((str(old), str(new)))
                changes[kind, "up"][low, high] += str(old) == low
                changes[kind, "all"][low, high] += 1
    for kind in KINDS:
        up, total = changes[kind, "up"], changes[kind, "all"]
        excess = sum((2 * up[pair] - count) ** 2 / count for pair, count in total.items())
        degrees = len(total)  # chi-squared: as many fair coins as pairs of texts
        assert excess < degrees + 6 * (2 * degrees) ** 0.5, (kind, excess, degrees)


def test_relations_of_true_and_false_captions_are_equally_common():
    counts = {True: Counter(), False: Counter()}
    for pairs in foils(12000, (2, 3)):
        for truth, statement in zip((True, False), pairs.get("replace_relation", ()), strict=False):
            counts[truth][statement.relations] += 1
    for relations in counts[True] | counts[False]:
        true, false = counts[True][relations], counts[False][relations]
        assert abs(true - false) < 4 * (true + false) ** 0.5, (relations, true, false)
    assert counts[True].total() > 4000


def test_a_scene_whose_swap_stays_true_gets_no_swap():
    twins = Scene((Thing("circle", "red", "small", 0, 0), Thing("circle", "red", "small", 1, 0)))
    kinds = {kind for seed in range(40) for kind in make_foils(describe(twins), twins, Random(seed))}
    assert kinds == KINDS - {"swap_object", "swap_attribute"}


def test_answers_are_right(examples, unseen):
    for example in (*examples, *unseen["test"], *unseen["compositional"]):
        for question in example.questions + example.existence:
            assert answer(question.text, example.truth["scene"]) == question.answer, (question, example.captions[0])


def test_absent_objects_are_of_the_kind_they_are_called(examples):
    for example in examples:
        shapes = {thing.shape for thing in example.truth["scene"].things}
        absent = {each.kind: tuple(each.text.split()[3:5]) for each in example.existence}
        assert {"present", "random", "popular"} <= set(absent)
        assert absent["popular"] in {(color, shape) for shape, color in FAVORITE_COLOR.items()}
        if "adversarial" in absent:
            color, shape = absent["adversarial"]
            assert color == FAVORITE_COLOR[shape] and shape in {COMPANION[each] for each in shapes}
    assert sum(len(example.existence) == 4 for example in examples) > 0.99 * len(examples)


def test_no_adversarial_question_where_every_companion_is_there():
    shapes = zip(SHAPES, range(5), strict=True)
    full = Scene(tuple(Thing(shape, FAVORITE_COLOR[shape], "small", i // 3, i % 3) for shape, i in shapes))
    assert [question.kind for question in existence(full, Random(0))][:2] == ["present", "random"]
    assert "adversarial" not in {question.kind for question in existence(full, Random(0))}


def test_what_is_held_out_is_neither_shown_nor_said_elsewhere(examples, unseen):
    held_out = {f"{color} {shape}" for shape, color in HELD_OUT}
    for example in (*examples, *unseen["test"], *Scenes(co_occurrence=0.8, caption_noise=0.5).examples("train")[:1500]):
        assert not any(thing[:2] in HELD_OUT for thing in example.truth["scene"].things)
        assert not any(pair in text for pair in held_out for text in texts(example)), example
    for example in Scenes(tasks=("question",)).examples("train")[:2000]:
        asked = example.conversation[0].content[1].split()
        if asked[:2] == ["what", "color"]:
            answers = {example.conversation[1].content[0], example.rejected[0]}
            assert not any((asked[-2], color) in HELD_OUT for color in answers)
    for example in unseen["compositional"]:
        assert any(thing[:2] in HELD_OUT for thing in example.truth["scene"].things)
    shown = Counter(thing[:2] for example in unseen["compositional"] for thing in example.truth["scene"].things)
    assert set(HELD_OUT) <= set(shown)


def test_every_kind_of_question_is_asked_where_the_scene_allows_it(examples):
    for example in examples:
        kinds = {question.kind for question in example.questions}
        assert {"existence", "count"} <= kinds
        single = len(example.truth["scene"].things) == 1
        assert ("relation" in kinds) <= (not single)
        assert ("color" in kinds) >= single


def test_text_alone_asks_what_the_caption_answers(examples):
    for example in examples:
        asked, told = (turn.content[0] for turn in example.text)
        assert asked.startswith(f"{example.captions[0]} ")
        assert (asked.removeprefix(f"{example.captions[0]} "), told) in {(q.text, q.answer) for q in example.questions}


def test_held_out_looks_tell_no_answer():
    """Whoever never saw them would else know, by that alone, which caption or answer is the false one."""
    counts = Counter()
    for example in Scenes(num_compositional=3000).examples("compositional"):
        for foil in example.foils:
            assert num_held_out(foil.true) == num_held_out(foil.false), foil
        for question in example.questions + example.existence:
            if question.kind in ("existence", "present", "random") and num_held_out(question.text):
                counts[question.kind, question.answer] += 1
    yes, no = counts["existence", "yes"], counts["existence", "no"]
    assert abs(yes - no) < 4 * (yes + no) ** 0.5 and yes > 300
    yes, no = counts["present", "yes"], counts["random", "no"]
    assert abs(yes - no) < 4 * (yes + no) ** 0.5 and yes > 300


def num_held_out(text: str) -> int:
    words = text.split()
    return sum((shape, color) in HELD_OUT for color, shape in zip(words, words[1:], strict=False))


def test_rejected_answers_are_wrong():
    for example in Scenes(tasks=("question",)).examples("train")[:500]:
        asked, told = example.conversation[0].content[1], example.conversation[1].content[0]
        assert answer(asked, example.truth["scene"]) == told != example.rejected[0]


@pytest.mark.parametrize(
    "knobs",
    [{}, {"caption_length": "short"}, {"filler": 0.5}, {"caption_noise": 0.5}, {"noise_source": "prior"}],
    ids=str,
)
def test_a_rejected_caption_has_one_more_wrong_word(knobs):
    for example in Scenes(tasks=("caption",), **knobs).examples("train")[:500]:
        told, worse = example.conversation[1].content[0].split(), example.rejected[0].split()
        changed = [place for place, (a, b) in enumerate(zip(told, worse, strict=True)) if a != b]
        roles = [role for role, point in zip(example.roles, example.points, strict=True) if point is not None]
        assert len(changed) == 1 and example.roles[changed[0]] == ("visual" if "visual" in roles else "contradictory")
        if "filler" not in knobs:
            assert not is_true(example.rejected[0], example.truth["scene"])


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
    assert set(answers["color"]) == set(COLORS)  # two of them in one more combination
    assert max(answers["color"].values()) < 1.5 * min(answers["color"].values())
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


def test_vocabulary_covers_all_that_is_said(examples, unseen):
    said = {word for example in examples for text in texts(example) for word in text.split()}
    for data in (Scenes(filler=1.0, vocabulary="synonyms"), Scenes(num_objects=(4, 6), vocabulary="synonyms")):
        said |= {word for example in data.examples("train")[:800] for text in texts(example) for word in text.split()}
    assert said | {"six"} == set(ENGLISH)  # six objects of a size are seldom asked about
    assert len(set(ENGLISH)) == len(ENGLISH)


# The rest is a second reading of the language, by its words alone, sharing no code with the one that is tested.

WORDS = {*SHAPES, *COLORS, *SIZES}


def relates(first: Thing, relation: str, second: Thing) -> bool:
    x, y = second.column - first.column, second.row - first.row
    return {"left of": x > 0, "right of": x < 0, "above": y > 0, "below": y < 0}[relation]


def texts(example) -> list[str]:
    """All that an example says."""
    contents = [turn.content for turn in (*example.conversation, *example.text)]
    contents += [example.query, example.target, example.rejected, *example.negatives]
    found = [part for content in contents for part in content if isinstance(part, str)] + list(example.captions)
    found += [text for foil in example.foils for text in (foil.true, foil.false)]
    found += [text for each in example.questions + example.existence for text in (each.text, each.answer)]
    assert all(text == " ".join(text.split()).lower() for text in found)
    return found


def split(caption: str) -> list[str]:
    return re.split(r" (left of|right of|above|below) ", caption.removeprefix("there is ").removesuffix(" ."))


def phrases(caption: str) -> list[frozenset[str]]:
    return [frozenset(piece.removeprefix("a ").split()) for piece in split(caption)[::2]]


def is_true(caption: str, scene: Scene) -> bool:
    pieces, told = split(caption), phrases(caption)
    return any(
        all(phrase <= set(thing[:3]) for phrase, thing in zip(told, chosen, strict=True))
        and all(relates(a, word, b) for a, word, b in zip(chosen, pieces[1::2], chosen[1:], strict=False))
        for chosen in permutations(scene.things, len(told))
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
        return ("zero", "one", "two", "three", "four", "five", "six")[count]
    match = re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+) \?", question)
    (first,), (second,) = named(match[1]), named(match[3])
    return "yes" if relates(first, match[2], second) else "no"
