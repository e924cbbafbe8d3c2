"""Ranking: hits among own candidates, and what ties, collapse and missing numbers do to them."""

from dataclasses import replace

import pytest
import torch
from listed import Listed
from PIL import Image

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.data import Scenes
from alignlab.errors import InputError
from alignlab.evaluation import Ranking
from alignlab.evaluation.blindfolds import exchanged
from alignlab.evaluation.ranking import is_collapsed, is_found


def test_hits_agree_with_recorded_outputs_of_mmeb(golden):
    record = golden("localization_rl_metrics/mmeb_ranking")
    candidates, hits = record["inputs"]["candidate_emb"], []
    for query, asked in zip(record["inputs"]["query_emb"], record["inputs"]["queries"], strict=True):
        names = list(dict.fromkeys(asked["cand_names"]))  # the label stands first
        hits.append(is_found(torch.tensor([candidates[name] for name in names]) @ torch.tensor(query)))
    assert hits == [bool(hit) for hit in record["v1_style"]["correct"]]
    assert sum(hits) / len(hits) == record["v1_style"]["accuracy"] == record["expected_local"]["precision@1"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_are_wrong_where_the_authors_scorer_calls_them_right(value):
    scores = torch.full((5,), value)
    assert scores.numpy().__neg__().argsort(kind="stable")[0] == 0  # the label, to the authors' scorer
    assert not is_found(scores)
    assert not is_found(torch.tensor([0.5, 0.5 - 1e-7, 0.1])) and is_found(torch.tensor([0.5, 0.4999, 0.1]))


def test_order_sets_differ_by_their_ties_alone(golden):
    """Those of ARO, whose scorer takes the first of the largest; the true caption comes first."""
    record = golden("localization_rl_metrics/aro")["order"]
    rows = torch.tensor(record["scores"])[:, 0]
    tied = [bool((row[1:] == row[0]).any() and (row[0] == row.max())) for row in rows]
    hits = [is_found(row) or tie for row, tie in zip(rows, tied, strict=True)]
    assert any(tied) and sum(hits) / len(hits) == pytest.approx(record["expected"][0]["Precision@1"])


def test_what_is_not_a_number_is_not_found():
    assert not is_found(torch.tensor([torch.nan, 0.1])) and not is_found(torch.tensor([0.9, torch.nan]))
    assert not is_found(torch.tensor([-torch.inf, -torch.inf]))


def test_collapse_is_told():
    assert is_collapsed(torch.ones(3, 4)) and is_collapsed(torch.zeros(3, 4))
    assert is_collapsed(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))
    assert not is_collapsed(torch.eye(2)) and not is_collapsed(torch.ones(1, 4))
    assert is_collapsed(torch.ones(50, 4) + 1e-5 * torch.randn(50, 4, generator=torch.manual_seed(0)))


TEXTS = ("a red cross", "a blue circle", "a large green square", "a small diamond")


def searching(text: str, right: bool, source: str, others: tuple[str, ...] = TEXTS) -> Example:
    """A text that looks for itself, or, where that is not right, for another one while it is there itself."""
    rest = tuple((other,) for other in others if other != text)
    target, negatives = ((text,), rest) if right else (rest[0], ((text,), *rest[1:]))
    return Example(f"{source}-{text}", query=(text,), target=target, negatives=negatives, source=source)


def test_accuracy_is_the_mean_over_sources(backbone):
    easy = [searching(text, True, "easy") for text in TEXTS]
    mixed = [searching(TEXTS[0], True, "mixed", TEXTS[:2]), searching(TEXTS[1], False, "mixed", TEXTS[:2])]
    evaluation = Ranking()(backbone, Listed([*easy, *mixed]))
    assert evaluation.scores == {
        **{"easy": 1.0, "mixed": 0.5, "accuracy": 0.75, "micro_accuracy": pytest.approx(5 / 6)},
        **{"chance": (1 / 4 + 1 / 2) / 2, "collapsed": 0.0},
    }
    assert [item["score"] for item in evaluation.items] == [1, 1, 1, 1, 1, 0]


def test_examples_without_a_source_are_one_and_a_candidate_counts_once(backbone):
    doubled = searching(TEXTS[0], True, "", TEXTS[:2])
    doubled = replace(doubled, negatives=(*doubled.negatives, doubled.target, *doubled.negatives))
    scores = Ranking()(backbone, Listed([doubled])).scores
    assert scores == {"accuracy": 1.0, "micro_accuracy": 1.0, "chance": 0.5, "collapsed": 0.0}


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_collapsed_backbone_finds_nothing_and_is_told(tiny_path, scenes, value):
    backbone = Backbone(str(tiny_path))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(value)
    scores = Ranking()(backbone, Listed(scenes)).scores
    assert scores["accuracy"] == scores["micro_accuracy"] == 0.0 and scores["collapsed"] == 1.0


def test_candidates_of_several_examples_are_embedded_once(backbone):
    seen = []
    examples = [searching(text, True, "x") for text in TEXTS]
    Ranking()(backbone, Listed(examples), on_batch=lambda done, total: seen.append(total))
    assert set(seen) == {8}  # four queries and four candidates, though each stands in four lists


def test_pictures_are_candidates_too(backbone):
    red, blue = (Image.new("RGB", (48, 48), color) for color in ("red", "blue"))
    found = [Example("x", query=(red, "a"), target=(red, "a"), negatives=((blue, "a"),))]
    assert Ranking()(backbone, Listed(found)).scores["accuracy"] == 1.0


def test_the_audit_exchanges_pictures(backbone, scenes):
    scores = Ranking(blind=True)(backbone, Listed(scenes)).scores
    exchange = Ranking()(backbone, Listed(exchanged(scenes))).scores
    assert {name: scores[f"blind/shuffled_images/{name}"] for name in exchange} == exchange


def test_every_search_of_the_lab_can_be_ranked(backbone):
    searches = ("caption", "picture", "classification", "question", "grounding")
    data = Scenes(searches=searches, num_test=40)
    scores = Ranking()(backbone, data).scores
    names = {"scenes", *(f"scenes/{search}" for search in searches[1:])}
    assert names < set(scores) and 0 < scores["chance"] < 0.5 and scores["collapsed"] == 0.0
    assert scores["accuracy"] == pytest.approx(sum(scores[name] for name in names) / 5)


def test_a_target_without_negatives_is_named_before_anything_is_trained():
    bare = replace(searching(TEXTS[0], True, "x"), negatives=())
    for each in (bare, replace(bare, negatives=(bare.target,))):
        with pytest.raises(InputError, match="example 'x-a red cross' of Listed has none beside its target"):
            Ranking().check(Listed([searching(TEXTS[1], True, "x"), each]))
    Ranking().check(Listed)
    with pytest.raises(InputError, match="requires query, target, negatives, but .* lacks negatives"):
        Ranking().check(type("Bare", (Listed,), {"supplies": ("query", "target")}))
