"""Evaluators run on the packaged backbone, whose own outputs serve as references where a right answer is needed."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from alignlab.backbones import Backbone
from alignlab.batch import Example, Question
from alignlab.data import AlignmentData, Scenes
from alignlab.errors import InputError
from alignlab.evaluation import CaptionAccuracy, Evaluator, Retrieval, VQAAccuracy

EVALUATORS = (
    CaptionAccuracy(num_examples=5, batch_size=2, max_new_tokens=6, num_pictures=2),
    VQAAccuracy(num_examples=5, batch_size=3, max_new_tokens=3, num_pictures=2),
    Retrieval(num_examples=5, batch_size=2),
)


class Listed(AlignmentData):
    """Examples given as they are."""

    supplies = ("query", "target", "captions", "questions")

    def __init__(self, examples: Sequence[Example]) -> None:
        super().__init__()
        self.listed = examples

    def examples(self, split):
        return self.listed


class Colored(Listed):
    attributes = {"color": ("red", "blue"), "size": ("small",)}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone("scenes-parts")


@pytest.fixture(scope="module")
def scenes() -> list[Example]:
    return list(Scenes(num_test=6).examples("test"))


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda each: each.name)
def test_scores_and_items_have_the_promised_form(evaluator: Evaluator, backbone, scenes):
    seen = []
    evaluation = evaluator(backbone, Listed(scenes), on_batch=lambda done, total: seen.append((done, total)))
    assert all(math.isfinite(score) and 0 <= score <= 1 for score in evaluation.scores.values())
    assert len({item["id"] for item in evaluation.items}) == len(evaluation.items) >= 5
    assert [item["id"] for item in evaluation.items][0].startswith("test-0")
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    for index, item in enumerate(evaluation.items):
        assert item["score"] in (0.0, 1.0)
        if evaluator.name != "retrieval":
            assert {"prompt", "output", "reference"} <= set(item)
            assert isinstance(item["picture"], Image.Image) == (index < 2)


def test_the_batch_size_changes_nothing(backbone, scenes):
    for kind, settings in ((CaptionAccuracy, {"max_new_tokens": 6}), (VQAAccuracy, {}), (Retrieval, {})):
        one, all_ = (kind(batch_size=size, **settings)(backbone, Listed(scenes)) for size in (1, 64))
        assert one.scores == all_.scores
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


def test_an_attribute_no_reference_mentions_has_no_score(backbone, scenes):
    spoken = [replace(e, captions=("a red cross",)) for e in scenes]
    assert set(CaptionAccuracy(max_new_tokens=2)(backbone, Colored(spoken)).scores) == {"exact", "color"}


def test_equal_sides_find_each_other(backbone):
    texts = ("a red cross", "a blue circle", "a large green square", "a small diamond")
    same = [Example(text, query=(text,), target=(text,)) for text in texts]
    scores = Retrieval()(backbone, Listed(same)).scores
    assert scores.pop("chance_r1") == 0.25
    assert set(scores.values()) == {1.0}


def test_a_shared_caption_is_right_for_each_of_its_pictures(backbone):
    pairs = (("a red cross", "a cross"), ("a blue cross", "a cross"), ("a circle", "a circle"))
    evaluation = Retrieval()(backbone, Listed([Example(q, query=(q,), target=(t,)) for q, t in pairs]))
    assert len(evaluation.items) == 3  # three queries, two targets: each query has one right target of two
    assert evaluation.scores["chance_r1"] == 0.5


def test_every_module_keeps_its_mode_and_gets_no_gradient(backbone, scenes):
    backbone.train()
    tower = backbone.parts["vision_tower"].eval()
    Retrieval()(backbone, Listed(scenes))
    assert backbone.training and not tower[0].training
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_what_the_data_lack_is_named(backbone, scenes):
    class Bare(Listed):
        supplies = ("conversation",)

    with pytest.raises(InputError, match="Retrieval requires query, target, but Bare supplies conversation; it lacks"):
        Retrieval()(backbone, Bare(scenes))
    with pytest.raises(InputError, match="CaptionAccuracy: the test split of Listed is empty"):
        CaptionAccuracy()(backbone, Listed([]))
    with pytest.raises(InputError, match="example 'x' has none"):
        CaptionAccuracy()(backbone, Listed([Example("x", captions=("a",))]))
    with pytest.raises(InputError, match="the 1 test examples hold no question"):
        VQAAccuracy()(backbone, Listed([Example("x")]))
    with pytest.raises(InputError, match="Retrieval needs num_examples >= 1"):
        Retrieval(num_examples=0)
