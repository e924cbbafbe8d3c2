"""The blind audit: what is scored without sight, and that nothing is seen."""

import warnings
from dataclasses import replace
from random import Random

import pytest
import torch
from listed import Fixed, Listed
from PIL import Image

from alignlab.batch import Example, Foil, Question
from alignlab.data import Scenes
from alignlab.evaluation import (
    CHAIR,
    POPE,
    CaptionAccuracy,
    Composition,
    LocalizationError,
    Retrieval,
    VQAAccuracy,
)
from alignlab.evaluation.blindfolds import exchanged, pictureless
from alignlab.evaluation.language import foil_margins, guesses

LANGUAGE = {"length_only", "bag_of_words"}
BLIND = (
    (CaptionAccuracy(max_new_tokens=4, blind=True), set()),
    (VQAAccuracy(max_new_tokens=2, blind=True), LANGUAGE),
    (POPE(max_new_tokens=2, blind=True), LANGUAGE),
    (CHAIR(max_new_tokens=4, blind=True), set()),
    (Composition(blind=True), LANGUAGE),
)


def captioned(*captions: str) -> list[Example]:
    return [
        Example(str(index), query=(Image.new("RGB", (24, 24)), "what ?"), captions=(caption,))
        for index, caption in enumerate(captions)
    ]


class TestExchange:
    @pytest.mark.parametrize("seed", range(20))
    def test_everyone_gets_the_picture_of_another_caption_and_every_picture_is_used_once(self, seed):
        random = Random(seed)
        count = random.randint(2, 30)
        captions = ["same"] * random.randint(1, count // 2)
        captions += [random.choice(("a", "b", "c", f"only {index}")) for index in range(count - len(captions))]
        if max(map(captions.count, captions)) * 2 > count:
            captions = [f"only {index}" for index in range(count)]
        random.shuffle(captions)
        examples = captioned(*captions)
        owner = {id(example.images[0]): example for example in examples}
        givers = [owner[id(example.images[0])] for example in exchanged(examples)]
        assert sorted(giver.id for giver in givers) == sorted(example.id for example in examples)
        assert all(giver.captions != example.captions for giver, example in zip(givers, examples, strict=True))

    def test_it_is_the_same_for_other_pictures_of_the_same_captions(self):
        def givers() -> list[str]:
            examples = captioned("a", "b", "c", "d", "e")
            owner = {id(example.images[0]): example.id for example in examples}
            return [owner[id(example.images[0])] for example in exchanged(examples)]

        assert givers() == givers()

    def test_more_than_half_of_one_caption_cannot_be_exchanged(self):
        assert exchanged(captioned("a", "a", "b")) == []
        assert len(exchanged(captioned("a", "a", "b", "c"))) == 4

    def test_a_group_keeps_its_pictures_out_of_its_own_examples(self):
        examples = [replace(e, group=g) for e, g in zip(captioned("a", "b", "c", "d"), "xxyy", strict=True)]
        owner = {id(example.images[0]): example.group for example in examples}
        assert [owner[id(example.images[0])] for example in exchanged(examples)] == ["y", "y", "x", "x"]

    def test_only_pictures_change(self, scenes):
        for one, other, bare in zip(scenes, exchanged(scenes), pictureless(scenes), strict=True):
            assert other.images[0] is not one.images[0] and bare.images == ()
            assert replace(bare, conversation=one.conversation, query=one.query) == one
            assert [part for part in other.query if isinstance(part, str)] == list(bare.query) == [one.query[1]]
            assert other.conversation[0].content[1:] == bare.conversation[0].content == one.conversation[0].content[1:]


@pytest.mark.parametrize(("evaluator", "language"), BLIND, ids=lambda each: getattr(each, "label", ""))
def test_each_blindfold_is_the_same_evaluation_of_changed_examples(evaluator, language, backbone, scenes):
    seen = []
    audited = evaluator(backbone, Listed(scenes), on_batch=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    plain = type(evaluator)(**{name: vars(evaluator)[name] for name in ("max_new_tokens",) if name in vars(evaluator)})
    sighted = plain(backbone, Listed(scenes))
    assert audited.items[0]["output"] == sighted.items[0]["output"] and len(audited.items) == len(sighted.items)
    kept = {name: score for name, score in audited.scores.items() if not name.startswith("blind/")}
    assert kept == sighted.scores
    shuffled = plain(backbone, Listed(exchanged(scenes))).scores
    found = {name.split("/")[1] for name in audited.scores if name.startswith("blind/")}
    assert found == {"shuffled_images", "text_only"} | language
    for how in found:
        part = {name.split("/", 2)[2]: s for name, s in audited.scores.items() if name.startswith(f"blind/{how}/")}
        shares = {name: score for name, score in part.items() if name not in ("mentions", "length")}
        assert set(part) == set(shuffled) and all(0 <= score <= 1 for score in shares.values())
        if how == "shuffled_images":
            assert part == shuffled


def test_without_a_picture_all_answers_are_the_same(backbone, scenes):
    asked = [replace(e, questions=(Question("is there a red cross ?", "yes", "x"),)) for e in scenes]
    scores = VQAAccuracy(blind=True)(backbone, Listed(asked)).scores
    assert scores["blind/text_only/accuracy"] in (0.0, 1.0)


def test_retrieval_by_other_pictures_is_retrieval_on_the_exchange(backbone, scenes):
    scores = Retrieval(blind=True)(backbone, Listed(scenes)).scores
    assert {name.split("/")[1] for name in scores if "/" in name} == {"shuffled_images"}
    exchange = Retrieval()(backbone, Listed(exchanged(scenes))).scores
    assert {name: scores[f"blind/shuffled_images/{name}"] for name in exchange} == exchange


def test_points_are_audited_too(tiny_path):
    backbone = Fixed(str(tiny_path))
    backbone.at = {"cross": (0.5, 0.25)}
    picture, other = Image.new("RGB", (48, 48)), Image.new("RGB", (48, 48), "red")
    examples = [
        Example.answering(name, image, "describe the image .", "cross", points=((0.5, 0.5),), captions=(name,))
        for name, image in (("a", picture), ("b", other))
    ]
    scores = LocalizationError(blind=True)(backbone, Listed(examples)).scores
    assert scores == {name: 0.25 for name in ("distance", "blind/shuffled_images/distance", "blind/text_only/distance")}


def test_an_exchange_that_cannot_be_is_left_out_with_a_warning(backbone, scenes):
    with pytest.warns(UserWarning, match="caption: no shuffled_images"):
        scores = CaptionAccuracy(blind=True, max_new_tokens=2)(backbone, Listed(scenes[:1])).scores
    assert any("text_only" in name for name in scores) and not any("shuffled" in name for name in scores)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CaptionAccuracy(max_new_tokens=2)(backbone, Listed(scenes[:1]))


def asking(*questions: tuple[str, str, str]) -> list[Question]:
    return [Question(*question) for question in questions]


class TestGuesses:
    KNOWN = asking(
        ("is a there", "yes", "x"), ("there is a", "yes", "x"), ("a is there", "no", "x"),
        ("how many ?", "two", "y"), ("how many of them ?", "one", "y"), ("how often ?", "one", "y"),
    )  # fmt: skip

    def test_the_most_frequent_answer_to_the_same_words_in_any_order_is_given(self):
        asked = asking(("A  there is", "?", "x"), ("how many ?", "?", "y"))
        assert guesses(self.KNOWN, asked)["bag_of_words"] == ["yes", "two"]

    def test_new_words_fall_back_on_the_kind_and_new_kinds_on_all(self):
        asked = asking(("how much ?", "?", "y"), ("how much ?", "?", "z"))
        assert guesses(self.KNOWN, asked)["bag_of_words"] == ["one", "yes"]

    def test_length_alone_counts_words(self):
        asked = asking(("one two three four five", "?", "x"), ("x y z", "?", "y"), ("x", "?", "y"))
        # Five words: one; three words: yes, twice of six; one word is new: yes and one and ... twice, the first wins.
        assert guesses(self.KNOWN, asked)["length_only"] == ["one", "yes", "yes"]

    def test_nothing_known_gives_an_empty_answer(self):
        assert guesses([], asking(("x", "?", "y"))) == {"length_only": [""], "bag_of_words": [""]}

    def test_the_audit_learns_from_the_train_split_alone(self, backbone, scenes):
        answers = {"train": "blue", "test": "red"}
        splits = {
            split: [replace(e, questions=(Question("what color ?", answer, "color"),)) for e in scenes]
            for split, answer in answers.items()
        }
        scores = VQAAccuracy(blind=True, max_new_tokens=1)(backbone, Listed(splits["test"], splits["train"])).scores
        assert scores["blind/bag_of_words/accuracy"] == scores["blind/length_only/accuracy"] == 0.0

    def test_the_kind_of_a_question_for_objects_does_not_tell_the_answer(self, backbone, scenes):
        new = asking(("is there a red cross ?", "yes", "present"), ("is there a red box ?", "no", "random"))
        known = asking(("is there a disc ?", "no", "present"), ("is there a cube ?", "no", "random"))
        data = Listed(*([replace(e, existence=tuple(each)) for e in scenes[:3]] for each in (new, known)))
        scores = POPE(blind=True, max_new_tokens=1)(backbone, data).scores
        # The kind would say yes at "present", or no at both; words and lengths of the known ones say no at both.
        assert scores["blind/bag_of_words/random_accuracy"] == 0.5
        assert scores["blind/bag_of_words/random_yes_ratio"] == 0.0


class TestFoils:
    def test_words_and_pairs_that_tell_are_learned(self):
        known = [Foil("a big dog", "a dog big", "order"), Foil("a cat", "a bat", "word")] * 20
        judged = [Foil("one big dog", "one dog big", ""), Foil("my cat", "my bat", ""), Foil("x y", "y z", "")]
        margins = foil_margins(known, judged)
        assert margins[0] > 1 and margins[1] > 1 and margins[2] == 0

    def test_turned_foils_have_turned_margins_and_balance_teaches_nothing(self):
        pairs = [("a b", "b a"), ("a c", "c b"), ("c a b", "b c")]
        foils = [Foil(true, false, "") for true, false in pairs]
        turned = [Foil(false, true, "") for true, false in pairs]
        assert torch.allclose(foil_margins(foils, turned), -foil_margins(foils, foils))
        assert foil_margins(foils + turned, foils).abs().max() < 1e-9
        assert foil_margins([], foils).tolist() == [0, 0, 0]

    def test_it_is_the_penalised_optimum(self):
        # One word, 5 times on the true side and twice on the false: 5 s(-w) - 2 s(w) = w at the optimum, s logistic.
        known = [Foil("a", "", "")] * 5 + [Foil("", "a", "")] * 2
        (w,) = foil_margins(known, [Foil("a", "", "")])
        assert 5 * torch.sigmoid(-w) - 2 * torch.sigmoid(w) == pytest.approx(w.item(), abs=1e-5)

    def test_language_alone_is_judged_as_composition_is(self, backbone, scenes):
        short = [
            replace(e, foils=(Foil("a", "a b", "x"), Foil("a c", "a b", "y"), Foil("a b c", "d", "z"))) for e in scenes
        ]
        known = [replace(e, foils=(Foil("a c", "a b", "y"),)) for e in scenes]
        scores = Composition(blind=True)(backbone, Listed(short, known)).scores
        length = {kind: scores[f"blind/length_only/{kind}"] for kind in ("x", "y", "z", "accuracy")}
        assert length == {"x": 1.0, "y": 0.5, "z": 0.0, "accuracy": 0.5}
        assert scores["blind/bag_of_words/y"] == 1.0 and scores["blind/bag_of_words/x"] == 1.0

    def test_neither_length_nor_words_tell_the_lab_s_foils(self, backbone):
        scenes = Scenes(num_train=1000, num_test=300)
        scores = Composition().baselines(scenes, list(scenes.examples("test")))
        # About 1700 foils, so that chance itself strays by 0.012; kinds weigh alike, which makes it more.
        assert {how: score["accuracy"] for how, score in scores.items()} == {
            how: pytest.approx(0.5, abs=0.05) for how in LANGUAGE
        }
