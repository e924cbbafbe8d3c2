"""Evaluators run on the packaged backbone, whose own outputs serve as references where a right answer is needed."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from listed import Colored, Fixed, Listed
from PIL import Image

from alignlab.backbones import Backbone, open_backbone
from alignlab.batch import Box, Example, Foil, Question, Turn
from alignlab.data import Scenes
from alignlab.data.scenes.world import COLORS, SHAPES
from alignlab.errors import InputError
from alignlab.evaluation import (
    CHAIR,
    POPE,
    CaptionAccuracy,
    Composition,
    Evaluator,
    Geometry,
    LocalizationError,
    Ranking,
    Retention,
    Retrieval,
    TextPerplexity,
    TokenWeights,
    VQAAccuracy,
)
from alignlab.evaluation.asking import Asked
from alignlab.evaluation.pope import judge_answers, says_yes
from alignlab.functional import normalize, sequence_logps

EVALUATORS = (
    CaptionAccuracy(num_examples=5, batch_size=2, max_new_tokens=6, num_pictures=2),
    VQAAccuracy(num_examples=5, batch_size=3, max_new_tokens=3, num_pictures=2),
    POPE(num_examples=5, batch_size=3, max_new_tokens=3, num_pictures=2),
    CHAIR(num_examples=5, batch_size=2, max_new_tokens=6, num_pictures=2),
    Composition(num_examples=5, batch_size=4, num_pictures=2),
    Composition(num_examples=5, batch_size=4, num_pictures=2, by="similarity", label="composition-similarity"),
    Retrieval(num_examples=5, batch_size=2),
    Retrieval(num_examples=5, batch_size=2, num_captions=3, label="retrieval-captions"),
    Ranking(num_examples=5, batch_size=2),
    Geometry(num_examples=5, batch_size=2),
    TextPerplexity(num_examples=5, batch_size=2),
    Retention(base="scenes-parts-1", num_examples=5, batch_size=2),
    TokenWeights(num_examples=5, batch_size=2, num_pictures=2),
)
COUNTED = (CaptionAccuracy, VQAAccuracy, POPE, CHAIR, Composition, Retrieval, Ranking)
PICTURED = (CaptionAccuracy, VQAAccuracy, POPE, CHAIR, Composition, TokenWeights)


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda each: each.label)
def test_scores_and_items_have_the_promised_form(evaluator: Evaluator, backbone, scenes):
    seen = []
    evaluation = evaluator(backbone, Listed(scenes), on_batch=lambda done, total: seen.append((done, total)))
    assert all(math.isfinite(score) for score in evaluation.scores.values())
    assert len({item["id"] for item in evaluation.items}) == len(evaluation.items) >= 5
    assert [item["id"] for item in evaluation.items][0].startswith("test-0")
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    if not isinstance(evaluator, TextPerplexity | Retention | Geometry | TokenWeights):
        assert all(0 <= score <= 1 for name, score in evaluation.scores.items() if name not in ("mentions", "length"))
        assert {item["score"] for item in evaluation.items} <= {0.0, 0.5, 1.0}
    for index, item in enumerate(evaluation.items if isinstance(evaluator, PICTURED) else ()):
        assert {"prompt", "output", "reference"} <= set(item)
        assert isinstance(item["picture"], Image.Image) == (index < 2)


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda each: each.label)
def test_scores_are_the_means_of_what_items_add_to_them(evaluator: Evaluator, backbone, scenes):
    evaluation = evaluator(backbone, Listed(scenes))
    added = defaultdict(list)
    for item in evaluation.items:
        for name, value in item.get("metrics", {}).items():
            added[name].append(value)
    means = {name: sum(values) / len(values) for name, values in added.items()}
    assert means == pytest.approx({name: evaluation.scores[name] for name in means}, abs=1e-12)
    assert bool(means) == isinstance(evaluator, COUNTED)


def test_queries_keep_their_similarities_to_one_anothers_targets(backbone, scenes):
    many = [replace(each, id=f"{each.id}-{turn}") for turn in range(10) for each in scenes]
    examples = [
        replace(each, query=(*each.query, str(n)), target=(*each.target, str(n))) for n, each in enumerate(many)
    ]
    evaluation = Retrieval(num_examples=60)(backbone, Listed(examples))
    rows = [item["similarities"] for item in evaluation.items if "similarities" in item]
    assert len(rows) == 50 and all(len(row) == 50 for row in rows)
    with torch.no_grad():
        queries = backbone.embed(backbone.encoder.contents([example.query for example in examples[:50]]))
        targets = backbone.embed(backbone.encoder.contents([example.target for example in examples[:50]]))
    assert torch.allclose(torch.tensor(rows), normalize(queries) @ normalize(targets).T, atol=1e-3)


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda each: each.label)
def test_the_batch_size_changes_nothing(evaluator: Evaluator, backbone, scenes):
    sizes = []
    for evaluator.batch_size in (1, 64):
        sizes.append(evaluator(backbone, Listed(scenes)))
    one, all_ = sizes
    assert one.scores == pytest.approx(all_.scores, rel=1e-5)
    assert [item.get("output") for item in one.items] == [item.get("output") for item in all_.items]


def test_a_backbone_reproduces_its_own_captions_and_answers(backbone, scenes):
    caption, vqa = CaptionAccuracy(max_new_tokens=6), VQAAccuracy(max_new_tokens=3)
    captions = [item["output"] for item in caption(backbone, Listed(scenes)).items]
    spoken = [replace(e, captions=(f" {c.upper()}\n",)) for e, c in zip(scenes, captions, strict=True)]
    assert caption(backbone, Listed(spoken)).scores == {"exact": 1.0}
    wrong = [*spoken[:3], *(replace(e, captions=("another",)) for e in spoken[3:])]
    assert caption(backbone, Listed(wrong)).scores == {"exact": 0.5}

    asked = [replace(e, questions=(Question("is there a red cross ?", "?", "a"),)) for e in scenes]
    answers = [item["output"] for item in vqa(backbone, Listed(asked)).items]
    known = [
        replace(e, questions=(Question("is there a red cross ?", a, "b"), Question("how many ?", "unknown", "a")))
        for e, a in zip(asked, answers, strict=True)
    ]
    assert vqa(backbone, Listed(known)).scores == {"accuracy": 0.5, "a": 0.0, "b": 1.0}


class TestCaptionAccuracy:
    def test_an_attribute_no_reference_mentions_has_no_score(self, backbone, scenes):
        spoken = [replace(e, captions=("a red cross",)) for e in scenes]
        assert set(CaptionAccuracy(max_new_tokens=2)(backbone, Colored(spoken)).scores) == {"exact", "color"}

    def test_the_data_say_what_is_asked_unless_the_evaluator_does(self, backbone, scenes):
        for prompt, expected in ((None, "what color is the cross ?"), ("is there a cross ?", "is there a cross ?")):
            evaluation = CaptionAccuracy(prompt=prompt, max_new_tokens=2)(backbone, Colored(scenes))
            assert {item["prompt"] for item in evaluation.items} == {expected}

    def test_synonyms_count_as_what_they_stand_for_on_both_sides(self, backbone, scenes):
        class Renamed(Listed):
            canonical = {}
            attributes = {"said": ("canonical",)}

        output = CaptionAccuracy(max_new_tokens=1)(backbone, Listed(scenes)).items[0]["output"]
        spoken = [replace(scenes[0], captions=("Synonym",))]
        assert CaptionAccuracy(max_new_tokens=1)(backbone, Renamed(spoken)).scores == {"exact": 0.0}
        Renamed.canonical = {"synonym": "canonical", output: "canonical"}
        assert CaptionAccuracy(max_new_tokens=1)(backbone, Renamed(spoken)).scores == {"exact": 1.0, "said": 1.0}


class TestPOPE:
    def asked(self, backbone, scenes, turned: bool):
        """The lab's questions, as if the backbone's own answers were the truth, or the opposite of it."""
        texts = [f"is there a {color} {shape} ?" for color in COLORS for shape in SHAPES]
        bare = [replace(e, existence=tuple(Question(text, "yes", "random") for text in texts)) for e in scenes]
        outputs = iter([item["output"] for item in POPE()(backbone, Listed(bare)).items])
        examples = []
        for example in bare:
            yes = [says_yes(next(outputs)) != turned for _ in texts]
            kinds = [
                Question(t, "yes" if y else "no", "present" if y else "random") for t, y in zip(texts, yes, strict=True)
            ]
            examples.append(replace(example, existence=tuple(kinds)))
        # Positives count only in examples that have a negative, too.
        mixed = [each for each in examples if len({question.kind for question in each.existence}) == 2]
        assert mixed  # else the test would be empty
        return mixed

    def test_a_backbone_agrees_with_itself_and_never_with_its_opposite(self, scenes):
        backbone = Backbone("scenes-vlm")  # which answers some questions with yes and some with no
        scores = POPE()(backbone, Listed(self.asked(backbone, scenes, turned=False))).scores
        assert {scores[name] for name in ("accuracy", "f1", "random_accuracy", "random_precision", "random_f1")} == {1}
        opposite = POPE()(backbone, Listed(self.asked(backbone, scenes, turned=True))).scores
        assert {opposite[name] for name in ("accuracy", "f1", "random_accuracy", "random_recall", "random_f1")} == {0}
        assert not any(name.startswith(("popular", "adversarial")) for name in scores)

    def test_without_absent_objects_there_is_nothing_to_judge(self, backbone, scenes):
        present = [replace(e, existence=(Question("is there a cross ?", "yes", "present"),)) for e in scenes]
        with pytest.raises(InputError, match="the 6 test examples hold no question of the kinds random, popular"):
            POPE()(backbone, Listed(present))


class TestComposition:
    def test_the_likelier_caption_wins(self, backbone, scenes):
        evaluation = Composition()(backbone, Listed(scenes))
        pairs = [(example, foil) for example in scenes for foil in example.foils]
        backbone.eval()
        for (example, foil), item in zip(pairs, evaluation.items, strict=True):
            logps = []
            for text in (foil.true, foil.false):
                turns = Example.answering("x", example.images[0], "Describe the image.", text).conversation
                tokens = backbone.encoder.conversations([("x", turns)])
                logps.append(sequence_logps(backbone(tokens).logits, tokens.labels).item())
            assert abs(logps[0] - logps[1]) > 1e-3  # else the comparison would be decided by rounding
            assert item["score"] == float(logps[0] > logps[1])
            assert item["output"] == (foil.true if logps[0] > logps[1] else foil.false)

    def test_the_nearer_caption_wins(self, backbone, scenes):
        evaluation = Composition(by="similarity")(backbone, Listed(scenes))
        pairs = [(example, foil) for example in scenes for foil in example.foils]
        backbone.eval()
        for (example, foil), item in zip(pairs, evaluation.items, strict=True):
            contents = [example.query, *((text, example.target[1]) for text in (foil.true, foil.false))]
            query, true, false = (normalize(backbone.embed(backbone.encoder.contents([c])))[0] for c in contents)
            assert item["score"] == float(query @ true > query @ false)

    @pytest.mark.parametrize("by", ["likelihood", "similarity"])
    def test_true_and_false_exchanged_give_the_rest_of_one(self, backbone, scenes, by):
        turned = [replace(e, foils=tuple(Foil(f.false, f.true, f.kind) for f in e.foils)) for e in scenes]
        scores, opposite = (Composition(by=by)(backbone, Listed(each)).scores for each in (scenes, turned))
        assert scores["strict"] == scores["accuracy"] and scores["ties"] == opposite.pop("ties") == scores.pop("ties")
        assert opposite == pytest.approx({name: 1 - score for name, score in scores.items()})

    @pytest.mark.parametrize("by", ["likelihood", "similarity"])
    def test_captions_a_tokenizer_cannot_tell_apart_tie_and_kinds_count_alike(self, backbone, scenes, by):
        same = [replace(e, foils=(Foil("a zebra", "a giraffe", "animal"),)) for e in scenes[:4]]
        scores = Composition(by=by, batch_size=3)(backbone, Listed(same)).scores
        assert scores == {"accuracy": 0.5, "strict": 0.0, "ties": 1.0, "animal": 0.5}
        foil = scenes[4].foils[0]
        pair = (Foil(foil.true, foil.false, "x"), Foil(foil.false, foil.true, "y"))
        scores = Composition(by=by)(backbone, Listed([*same, replace(scenes[4], foils=pair)])).scores
        assert scores["accuracy"] == 0.5 and {scores["x"], scores["y"]} == {0.0, 1.0}

    def test_what_it_needs_is_named(self, backbone, scenes):
        class Foiled(Listed):
            supplies = ("foils",)

        with pytest.raises(InputError, match="Composition by similarity requires foils, query, target, but Foiled"):
            Composition(by="similarity")(backbone, Foiled(scenes))
        with pytest.raises(InputError, match="the 6 test examples hold no foil"):
            Composition()(backbone, Foiled([replace(e, foils=()) for e in scenes]))


class TestTextPerplexity:
    def test_it_is_the_exponential_of_the_mean_nats_of_all_tokens(self, backbone, scenes):
        evaluation = TextPerplexity(batch_size=4)(backbone, Listed(scenes))
        backbone.eval()
        nats, right, count = 0.0, 0, 0
        for example, item in zip(scenes, evaluation.items, strict=True):
            tokens = backbone.encoder.conversations([("x", example.text)])
            logits, labels = backbone(tokens).logits, tokens.labels
            kept = (labels[:, 1:] != -100).sum().item()
            logp = sequence_logps(logits, labels).item()
            assert item["score"] == pytest.approx(logp / kept, rel=1e-4)
            nats, count = nats - logp, count + kept
            right += (logits[:, :-1].argmax(-1) == labels[:, 1:]).sum().item()
        expected = {"perplexity": math.exp(nats / count), "nats": nats / count, "accuracy": right / count}
        assert evaluation.scores == pytest.approx(expected, rel=1e-4)

    def test_a_language_model_that_has_diverged_has_finite_scores(self, tiny_backbone, scenes):
        with torch.no_grad():
            tiny_backbone.model.lm_head.weight.fill_(torch.nan)
        scores = TextPerplexity()(tiny_backbone, Listed(scenes)).scores
        assert scores == {"perplexity": pytest.approx(math.exp(100)), "nats": 100.0, "accuracy": 0.0}
        assert Composition()(tiny_backbone, Listed(scenes)).scores["accuracy"] == 0.5


class TestRetrieval:
    def test_equal_sides_find_each_other(self, backbone):
        texts = ("a red cross", "a blue circle", "a large green square", "a small diamond")
        same = [Example(text, query=(text,), target=(text,)) for text in texts]
        scores = Retrieval()(backbone, Listed(same)).scores
        assert scores.pop("chance_r1") == 0.25
        assert set(scores.values()) == {1.0}

    def test_a_shared_caption_is_right_for_each_of_its_pictures(self, backbone):
        pairs = (("a red cross", "a cross"), ("a blue cross", "a cross"), ("a circle", "a circle"))
        evaluation = Retrieval()(backbone, Listed([Example(q, query=(q,), target=(t,)) for q, t in pairs]))
        assert len(evaluation.items) == 5  # three queries, two targets: each query has one right target of two
        assert evaluation.scores["chance_r1"] == 0.5

    def test_a_group_s_captions_are_right_for_all_its_pictures(self, backbone):
        texts = ("a red cross", "a blue circle", "a large green square")
        others = (*texts[1:], texts[0])
        crossed = [
            Example(q, query=(q,), target=(t,), group=group) for q, t, group in zip(texts, others, "aab", strict=True)
        ]
        scores = Retrieval()(backbone, Listed(crossed)).scores
        # The first query's own target is the second text; the second query finds it too, being of the same group.
        assert scores["image_to_text_r1"] == pytest.approx(1 / 3)
        assert scores["chance_r1"] == pytest.approx(5 / 9)

    def test_any_of_several_captions_is_found_and_each_is_searched_for(self, backbone):
        texts = ("a red cross", "a blue circle", "a large green square")
        others = ("a small diamond", "is there a circle ?", "yes")
        several = [
            Example(text, query=(text,), target=(other,), captions=(other, text))
            for text, other in zip(texts, others, strict=True)
        ]
        alone, both = (Retrieval(num_captions=count)(backbone, Listed(several)).scores for count in (1, 2))
        assert both["image_to_text_r1"] == 1.0 and both["chance_r1"] == pytest.approx(1 / 3)
        # Of the six captions three are the queries' own texts; the others are found as often as when alone.
        assert both["text_to_image_r1"] == pytest.approx((1 + alone["text_to_image_r1"]) / 2)

    def test_a_single_caption_in_the_target_s_form_is_the_target(self, backbone, scenes):
        single = [replace(e, captions=e.captions[:1]) for e in scenes]
        target, caption = (Retrieval(num_captions=count)(backbone, Listed(single)) for count in (1, 9))
        assert target == caption


@pytest.fixture
def pointing(tiny_path) -> Fixed:
    return Fixed(str(tiny_path))


class TestLocalizationError:
    def example(self, **fields):
        wide = Image.new("RGB", (96, 48))
        points = (None, (0.5, 0.5), (0.5, 0.5))
        return Example.answering("x", wide, "describe the image .", "a red cross", points=points, **fields)

    def test_distances_are_in_image_widths_on_paper(self, pointing):
        pointing.at = {"a": (9.0, 9.0), "red": (0.8, 0.5), "cross": (0.5, 0.9)}
        evaluation = LocalizationError()(pointing, Listed([self.example()]))
        # 0.3 of the width for "red"; 0.4 of a height that is half the width, 0.2, for "cross"; "a" has no place.
        assert evaluation.scores == {"distance": pytest.approx(0.25)}
        assert evaluation.items == [{"id": "x", "score": pytest.approx(-0.25)}]

    def test_inside_is_the_smallest_box_around_the_true_point(self, pointing):
        pointing.at = {"red": (0.55, 0.5), "cross": (0.8, 0.5)}
        boxes = (Box("all", 0, 0, 1, 1), Box("red cross", 0.4, 0.4, 0.6, 0.6), Box("other", 0.7, 0.4, 0.9, 0.6))
        assert LocalizationError()(pointing, Listed([self.example(boxes=boxes)])).scores["inside"] == 0.5

    def test_a_point_that_is_not_a_number_is_as_far_as_can_be(self, pointing):
        pointing.at = {"red": (math.nan, 0.5), "cross": (math.nan, math.nan)}
        scores = LocalizationError()(pointing, Listed([self.example(boxes=(Box("all", 0, 0, 1, 1),))])).scores
        assert scores == {"distance": pytest.approx(math.hypot(1, 0.5)), "inside": 0.0}

    def test_words_beyond_max_length_are_not_judged(self, pointing):
        pointing.at = {"red": (0.5, 0.5)}
        length = pointing.encoder.conversations([("x", self.example().conversation)]).input_ids.shape[1]
        pointing.encoder.max_length = length - 2  # neither "cross" nor the closing token
        assert LocalizationError()(pointing, Listed([self.example()])).scores == {"distance": 0.0}

    def test_what_it_needs_is_named(self, pointing, backbone):
        with pytest.raises(InputError, match="needs a backbone that points"):
            LocalizationError()(backbone, Listed([self.example()]))
        with pytest.raises(InputError, match="has 1 points, but its last answer has 3 words"):
            LocalizationError()(pointing, Listed([replace(self.example(), points=((0.5, 0.5),))]))
        unpointed = Listed([replace(self.example(), points=(None, None, None))])
        with pytest.raises(InputError, match="the 1 test examples of Listed hold no word with a point"):
            LocalizationError()(pointing, unpointed)
        with pytest.raises(InputError, match="hold no word with a point"):
            LocalizationError().check(unpointed)  # before anything is trained
        LocalizationError().check(Scenes(num_test=8))
        with pytest.raises(InputError, match="hold no word with a point"):
            LocalizationError().check(Scenes(num_test=8, tasks=("question",)))


def test_an_evaluator_s_own_data_are_judged_instead(backbone, scenes):
    own = [replace(scenes[0], id="own", captions=("yes",))]
    caption = CaptionAccuracy(max_new_tokens=2, data=Listed(own), label="own-caption")
    evaluation = caption(backbone, Colored(scenes))
    assert caption.label == "own-caption" and CaptionAccuracy().label == "caption"
    assert [item["id"] for item in evaluation.items] == ["own"]
    assert evaluation.items[0]["prompt"] == "Describe the image." and set(evaluation.scores) == {"exact"}


def test_what_the_lab_points_at_is_inside_its_boxes(tiny_path):
    class Right(Fixed):
        """Points where the lab says."""

        def points(self, tokens):
            places, words = super().points(tokens), self.encoder.words([(e.id, e.conversation) for e in shown])[1]
            for row, example in enumerate(shown):
                for column, word in enumerate(words[row].tolist()):
                    if word >= 0 and example.points[word] is not None:
                        places[row, column] = torch.tensor(example.points[word])
            return places

    scenes = Scenes(num_test=6, tasks=("caption",))
    shown = list(scenes.examples("test"))
    scores = LocalizationError()(Right(str(tiny_path)), scenes).scores
    assert scores == {"distance": pytest.approx(0, abs=1e-6), "inside": 1.0}
    assert LocalizationError()(Fixed(str(tiny_path)), scenes).scores["inside"] == 0.0  # the upper left corner


@pytest.mark.parametrize("language", ["english", "invented"])
def test_existence_is_understood_in_every_language_of_the_lab(backbone, language):
    scenes = Scenes(num_test=4, language=language)
    answers = {question.answer for example in scenes.examples("test") for question in example.existence}
    assert (answers == {"yes", "no"}) == (language == "english")
    asked = [Asked("x", example, question) for example in scenes.examples("test") for question in example.existence]
    scores = judge_answers(asked, [each.question.answer for each in asked])
    assert scores["accuracy"] == scores["f1"] == 1.0 and scores["unparsed"] == 0.0


@pytest.mark.parametrize("split", ["train", "test", "compositional"])
def test_every_split_of_the_lab_can_be_judged(backbone, split):
    scenes = Scenes(num_train=2, num_test=2, num_compositional=2)
    ids = {item["id"] for item in Retrieval(split=split)(backbone, scenes).items}
    assert ids == {f"{split}-{number}{text}" for number in (0, 1) for text in ("", "-text0")}


def test_every_module_keeps_its_mode_and_gets_no_gradient(backbone, scenes):
    backbone.train()
    tower = backbone.parts["vision_tower"].eval()
    Composition(blind=True)(backbone, Listed(scenes))
    assert backbone.training and not tower[0].training
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_what_the_data_lack_is_named(backbone, scenes):
    class Bare(Listed):
        supplies = ("conversation",)

    shown = replace(scenes[0], questions=())
    with pytest.raises(InputError, match="Retrieval requires query, target, but Bare supplies conversation; it lacks"):
        Retrieval()(backbone, Bare(scenes))
    with pytest.raises(InputError, match="CaptionAccuracy: the test split of Listed is empty"):
        CaptionAccuracy()(backbone, Listed([]))
    with pytest.raises(InputError, match="CaptionAccuracy asks about pictures, but example 'x' has none"):
        CaptionAccuracy()(backbone, Listed([Example("x", captions=("a",))]))
    with pytest.raises(InputError, match="the 1 test examples hold no question"):
        VQAAccuracy()(backbone, Listed([shown]))
    with pytest.raises(InputError, match="judges the compositional split, but Listed has only train, val, test"):
        CaptionAccuracy(split="compositional")(backbone, Listed(scenes))
    with pytest.raises(InputError, match="Retrieval needs num_examples >= 1"):
        Retrieval(num_examples=0)
    with pytest.raises(InputError, match="its label names files"):
        Retrieval(label="a/b")
    with pytest.raises(InputError, match="num_captions >= 1"):
        Retrieval(num_captions=0)


def test_a_conversation_s_text_needs_no_picture(backbone):
    turns = (Turn("user", ("what color is a circle ?",)), Turn("assistant", ("red",)))
    assert TextPerplexity()(backbone, Listed([Example("x", text=turns)])).scores["perplexity"] > 1


def test_what_reads_embeddings_alone_judges_a_dual_encoder_and_the_others_refuse(tiny_path):
    dual = open_backbone(str(tiny_path), text_tower=str(tiny_path))
    for evaluator in (Retrieval(), Ranking(), Geometry(), Composition(by="similarity")):
        evaluator.check_backbone(dual)
    answering = (CaptionAccuracy(), VQAAccuracy(), POPE(), CHAIR())
    for evaluator in (*answering, TextPerplexity(), Retention(), Composition(), TokenWeights()):
        with pytest.raises(InputError, match="needs a backbone that generates text, .* is a dual encoder"):
            evaluator.check_backbone(dual)


def test_a_dual_encoder_is_ranked_and_measured(tiny_path):
    dual = open_backbone(str(tiny_path), text_tower=str(tiny_path))
    for evaluator in (Ranking(num_examples=6), Geometry(num_examples=6)):
        assert all(math.isfinite(score) for score in evaluator(dual, Scenes(num_test=6)).scores.values())
