"""What a report shows of how methods work: kinds of questions, similarity matrices, preference pairs, long lists."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from records import write_study

from alignlab.batch import Turn
from alignlab.data.pairs import Pair, trl_row, write_parquet
from alignlab.study import gallery
from alignlab.study.breakdown import kinds_of
from alignlab.study.page import html
from alignlab.study.pictures import pictures
from alignlab.study.results import Results

EXACT = {"m": (0.1, 0.2)}


def write_items(directory: Path, arm: str, seed: int, evaluator: str, items: list[dict[str, Any]]) -> None:
    file = directory / f"cells/{arm}/{arm}{seed}/items/{evaluator}.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))


def matrix(own: float, other: float, size: int = 4) -> list[dict[str, Any]]:
    """Searches of which each comes so near to its own text and so near to all others."""
    cosines = np.where(np.eye(size, dtype=bool), own, other).tolist()
    items = [{"id": f"q{i}", "score": 1.0, "metrics": {}, "similarities": row} for i, row in enumerate(cosines)]
    return [*items, {"id": "later", "score": 0.0, "metrics": {}}]


def test_kinds_are_metrics_of_some_items_whose_scores_they_are():
    items = [
        {"id": "a", "score": 1.0, "metrics": {"accuracy": 1.0, "color": 1.0, "f1": 0.5}},
        {"id": "b", "score": 0.0, "metrics": {"accuracy": 0.0, "color": 0.0}},
        {"id": "c", "score": 1.0, "metrics": {"accuracy": 1.0, "count": 1.0}},
    ]
    assert kinds_of(items, "vqa") == {"vqa/color": 2, "vqa/count": 1}  # accuracy is of all, f1 is no item's score
    assert kinds_of(items[:2], "vqa") == {}
    assert kinds_of([{"id": "a", "score": 1.0}], "vqa") == {}


@pytest.fixture
def kinds(tmp_path) -> Results:
    scores = {"MLE": ((0.5, 0.6), (0.4, 0.4)), "own": ((0.2, 0.298), (0.4, 0.6))}
    arms = {arm: {"vqa/color": color, "vqa/count": count} for arm, (color, count) in scores.items()}
    results = write_study(tmp_path, arms, metrics=["vqa/color"])
    for arm in arms:
        items = [{"id": kind, "score": 1.0, "metrics": {kind: 1.0}} for kind in ("color", "count")]
        write_items(tmp_path, arm, 0, "vqa", items)
    return results


def test_a_breakdown_has_every_kind_of_every_arm(kinds):
    (table,) = pictures(kinds).breakdowns
    assert table.kinds == {"vqa/color": 1, "vqa/count": 1}
    assert [entry.score.mean for entry in table.rows["own"]] == pytest.approx([0.249, 0.5])
    assert table.strongest == pytest.approx(0.301)
    assert [table.strength(entry) for entry in table.rows["own"]] == pytest.approx([-1.0, 0.1 / 0.301])
    assert [table.strength(entry) for entry in table.rows["MLE"]] == [0.0, 0.0]


def test_only_differences_that_exclude_0_are_coloured(kinds):
    (table,) = pictures(kinds).breakdowns
    color, count = table.rows["own"]
    assert color.clear and not count.clear
    page = html(kinds)
    assert page.count('class="down"') == 1 and page.count('class="up"') == 0


def test_a_matrix_says_how_far_the_diagonal_stands_out(tmp_path):
    results = write_study(tmp_path, {"MLE": EXACT, "own": EXACT})
    for seed, (own, other) in enumerate([(0.5, 0.5), (0.5, 0.5)]):
        write_items(tmp_path, "MLE", seed, "retrieval", matrix(own, other))
    for seed, (own, other) in enumerate([(0.9, 0.1), (0.7, 0.1)]):
        write_items(tmp_path, "own", seed, "retrieval", matrix(own, other))
    (shown,) = pictures(results).similarities
    collapsed, good = shown.matrices
    assert collapsed.gap.mean == 0 and collapsed.found.mean == 0  # as near as the others is not nearer
    assert good.matched == pytest.approx(0.8) and good.others == pytest.approx(0.1) and good.found.mean == 1
    # gaps 0.8 and 0.6: mean 0.7, half width 12.706 * 0.14142 / sqrt(2) = 1.2706
    assert good.gap == pytest.approx((0.7, 0.7 - 1.2706, 0.7 + 1.2706), abs=1e-4)
    assert np.diag(good.cosines) == pytest.approx(np.full(4, 0.8)) and shown.size == 4
    assert "Similarity matrices: retrieval" in html(results)


def test_matrices_share_one_scale(tmp_path):
    results = write_study(tmp_path, {"MLE": EXACT, "own": EXACT})
    write_items(tmp_path, "MLE", 0, "retrieval", matrix(0.9, 0.1))
    write_items(tmp_path, "own", 0, "retrieval", matrix(0.5, 0.1))
    (shown,) = pictures(results).similarities
    heat = [decoded(each.uri) for each in shown.matrices]
    assert heat[0].size == (4, 4)
    assert heat[0].getpixel((1, 0)) == heat[1].getpixel((1, 0))  # 0.1 in both
    brightness = [sum(each.getpixel((0, 0))) for each in heat]
    assert brightness[0] > brightness[1] > sum(heat[1].getpixel((1, 0)))


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def write_stage(directory: Path, arm: str, rows: list[dict[str, Any]]) -> None:
    stage = directory / "stages/pairs-1"
    (stage / "pairs").mkdir(parents=True, exist_ok=True)
    with open(stage / "pairs/train.parquet", "wb") as file:
        write_parquet(file, rows)
    train = {"asked": 10, "kept": 4, "truth": {"better": 0.5, "equal": 0.25, "worse": 0.25}}
    (stage / "metrics.json").write_text(json.dumps({"pairs": {"splits": {"train": train}}}))
    (directory / f"cells/{arm}/{arm}0/stages.json").write_text(json.dumps({"pairs": "../../../stages/pairs-1"}))


def test_preference_pairs_mark_what_sets_the_answers_apart(tmp_path):
    results = write_study(tmp_path, {"MLE": EXACT, "SeVa": EXACT, "again": EXACT})
    picture = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    prompt = [Turn("user", (picture, "describe ."))]
    qualities = ("better", "better", "worse", None)
    pairs = [Pair(number, f"a red cross {number}", f"a blue cross {number}") for number in range(4)]
    write_stage(tmp_path, "SeVa", [trl_row(str(p.index), prompt, p, q) for p, q in zip(pairs, qualities, strict=True)])
    (tmp_path / "cells/again/again0/stages.json").write_text(json.dumps({"pairs": "../../../stages/pairs-1"}))
    (found,) = pictures(results).pairs
    assert found.arms == ("SeVa", "again") and (found.kept, found.asked) == (4, 10)
    assert [pair.quality for pair in found.shown] == ["better", "worse", None, "better"]  # one of each, then more
    first = found.shown[0]
    assert first.chosen == (("a", False), ("red", True), ("cross", False), ("0", False))
    assert [word for word, odd in first.rejected if odd] == ["blue"]
    assert decoded(first.picture).getpixel((0, 0)) == (255, 0, 0)
    page = html(results)
    assert "better in 50 %" in page and "<mark>blue</mark>" in page and "in truth worse" in page


def test_a_stage_without_its_pairs_is_not_shown(tmp_path):
    results = write_study(tmp_path, {"MLE": EXACT, "SeVa": EXACT})
    write_stage(tmp_path, "SeVa", [])
    (tmp_path / "stages/pairs-1/pairs/train.parquet").unlink()
    assert pictures(results).pairs == () and "Preference pairs" not in html(results)


def test_a_study_without_any_has_no_such_headings(tmp_path):
    page = html(write_study(tmp_path, {"MLE": EXACT, "own": EXACT}))
    assert not any(title in page for title in ("By kind of question", "Similarity matrices", "Preference pairs"))


def test_long_lists_of_arms_and_pictures_are_folded(tmp_path):
    arms = [f"arm {number}" for number in range(8)]
    results = write_study(tmp_path, {arm: EXACT for arm in arms})
    for number, arm in enumerate(arms):
        place = tmp_path / f"cells/{arm}/{arm}0"
        for item in range(10):
            Image.new("RGB", (8, 8), "red").save(place / f"pictures/{item}.png")
        said = "the same" if number in (3, 7) else f"own {number}"
        item = {"score": 0.0, "prompt": "p", "output": said, "reference": "r", "panels": ["picture", "drawing"]}
        items = [{"id": str(each), "picture": f"pictures/{each}.png", **item} for each in range(10)]
        write_items(tmp_path, arm, 0, "caption", items)
    (wall,) = gallery.walls(results)
    assert (len(wall.cards), wall.folded) == (10, 4) and wall.panels == ("picture", "drawing")
    card = wall.cards[0]
    assert card.answers[0].arms == ("arm 3", "arm 7") and (len(card.answers), card.folded) == (7, 3)
    page = html(results)
    assert "4 more pictures" in page and page.count("3 more arms") == 10
    assert page.count("own 6") == 0 and page.count("<mark>6</mark>") == 10  # nothing is lost by folding
