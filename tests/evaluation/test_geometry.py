"""Geometry: its measures on paper and at their limits."""

import math

import pytest
import torch
from listed import Listed

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.errors import InputError
from alignlab.evaluation import Geometry
from alignlab.evaluation.geometry import (
    alignment,
    effective_rank,
    filter_quality,
    hard_margins,
    same_group,
    uniformity,
)
from alignlab.functional import hard_negatives, info_nce, normalize


def test_alignment_and_uniformity_on_paper():
    x, y = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert alignment(x, y) == pytest.approx((0 + 2) / 2)
    assert uniformity(x) == pytest.approx(-4)  # squared distance 2, times -2
    # Squared distances 2, 2 and 4.
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    assert uniformity(three) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))


def test_effective_rank_between_its_limits():
    assert effective_rank(torch.eye(5, 8)) == pytest.approx(5)
    assert effective_rank(torch.ones(5, 8)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(5, 8)) == 1.0
    # Singular values 3 and 1: shares 3/4 and 1/4.
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)


def test_collapsed_embeddings_are_not_uniform():
    assert uniformity(torch.ones(5, 8)) == 0.0


COSINES = torch.tensor([[0.5, 0.7, 0.1], [0.75, 0.62, 0.2], [0.9, 0.3, 0.4]])
SAME = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])


def test_margins_leave_the_group_out():
    assert hard_margins(COSINES, SAME).tolist() == pytest.approx([0.4, 0.42, -0.5])


def test_the_filter_s_precision_and_recall_on_paper():
    # Above the positive by over 0.1: (0, 1) and (1, 0), of one group, and (2, 0), which is a true hard negative.
    found = filter_quality(COSINES, SAME, 0.1)
    assert found == pytest.approx({"filtered": 3 / 6, "filter_precision": 2 / 3, "filter_recall": 1.0})
    # By over 0.18 only (0, 1) and (2, 0).
    found = filter_quality(COSINES, SAME, 0.18)
    assert found == pytest.approx({"filtered": 2 / 6, "filter_precision": 1 / 2, "filter_recall": 1 / 2})
    assert set(filter_quality(COSINES, SAME, 2.0).values()) == {0.0}
    assert filter_quality(COSINES, torch.eye(3, dtype=torch.bool), 0.1)["filter_recall"] == 0.0


def test_the_filter_is_that_of_hard_negatives():
    cosines = torch.rand(12, 12, generator=torch.manual_seed(0))
    _, missing = hard_negatives(cosines, num_hard=12, margin=0.1)
    filtered = filter_quality(cosines, torch.eye(12, dtype=torch.bool), 0.1)["filtered"]
    assert filtered == pytest.approx((missing.sum().item() - 12) / 132)  # without the positive itself


def test_groups_without_a_name_are_of_one():
    examples = [Example("a", group="x"), Example("b"), Example("c", group="x"), Example("d")]
    assert same_group(examples).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_scores_are_those_of_the_embeddings(backbone, scenes):
    evaluation = Geometry(scale=20.0, margin=0.01)(backbone, Listed(scenes))
    scores = evaluation.scores
    backbone.eval()
    with torch.no_grad():
        queries, targets = (
            normalize(backbone.embed(backbone.encoder.contents([getattr(e, side) for e in scenes]))).double()
            for side in ("query", "target")
        )
    cosines = queries @ targets.T
    off = cosines[~torch.eye(6, dtype=torch.bool)]
    assert scores["positive_cosine"] == pytest.approx(cosines.diagonal().mean().item(), abs=1e-5)
    assert scores["negative_cosine"] == pytest.approx(off.mean().item(), abs=1e-5)
    assert scores["alignment"] == pytest.approx(2 - 2 * scores["positive_cosine"], abs=1e-5)
    assert scores["info_nce"] == pytest.approx(info_nce(queries, targets, scale=20.0, symmetric=True).item(), abs=1e-4)
    assert scores["chance_info_nce"] == pytest.approx(math.log(6)) and scores["finite"] == 1.0
    assert scores["modality_gap"] == pytest.approx((queries.mean(0) - targets.mean(0)).norm().item(), abs=1e-5)
    assert scores["effective_rank_query"] == pytest.approx(effective_rank(queries), abs=1e-3)
    assert scores["uniformity_target"] == pytest.approx(uniformity(targets), abs=1e-4)
    wrong = cosines.masked_fill(torch.eye(6, dtype=torch.bool), -1).amax(1)
    margins = (cosines.diagonal() - wrong).tolist()
    assert [item["score"] for item in evaluation.items] == pytest.approx(margins, abs=1e-5)
    assert scores["hard_margin"] == pytest.approx(sum(margins) / 6, abs=1e-5)


def test_one_picture_with_two_captions_is_one_group(backbone):
    pairs = (("a", "a red cross"), ("a", "a cross"), ("b", "a blue circle"))
    examples = [Example(text, query=(text,), target=(text,), group=group) for group, text in pairs]
    scores = Geometry(margin=-2.5)(backbone, Listed(examples)).scores
    # All six others are filtered; two of them are of the query's group.
    assert scores["filtered"] == 1.0 and scores["filter_precision"] == pytest.approx(1 / 3)
    assert scores["filter_recall"] == 1.0 and scores["alignment"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_collapsed_or_broken_embeddings_have_finite_scores(tiny_path, scenes, value):
    backbone = Backbone(str(tiny_path))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(value)
    scores = Geometry()(backbone, Listed(scenes)).scores
    assert all(math.isfinite(score) for score in scores.values())
    assert scores["uniformity_query"] == scores["uniformity_target"] == 0.0
    assert scores["effective_rank_query"] == scores["effective_rank_target"] == pytest.approx(1)
    assert scores["info_nce"] == pytest.approx(scores["chance_info_nce"]) and scores["hard_margin"] == 0.0
    assert scores["finite"] == float(value == 0.0)


def test_what_it_needs_is_named():
    same = [Example(name, query=(name,), target=(name,), group="x") for name in "ab"]
    for examples in (same, same[:1]):
        with pytest.raises(InputError, match="test examples of Listed are one group"):
            Geometry().check(Listed(examples))
    with pytest.raises(InputError, match="needs scale > 0, got 0"):
        Geometry(scale=0)
