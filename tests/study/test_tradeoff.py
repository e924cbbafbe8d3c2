"""The trade-off of a study: its names beside their points, its table, its plot, what is said of it."""

import itertools
import json
import random
import re

import pytest
from records import write_study

from alignlab.study import scatter
from alignlab.study.comparison import caveats, summary, trade_note, trades
from alignlab.study.figures import svg_for_page
from alignlab.study.labels import Box, Point, place_names
from alignlab.study.naming import is_chance, is_size, lower_is_better
from alignlab.study.report import html, markdown
from alignlab.study.results import Results

GAIN, COST = "caption/exact", "retention/text_kl"
ARMS = {
    "MLE": {GAIN: (0.5, 0.6, 0.7), COST: (0.1, 0.2, 0.3)},
    "<own>": {GAIN: (0.6, 0.7, 0.8), COST: (0.0, 0.0)},
}


@pytest.fixture
def results(tmp_path) -> Results:
    return write_study(tmp_path, ARMS, tradeoff=[GAIN, COST])


@pytest.mark.parametrize("spread", [0, 10, 60])
@pytest.mark.parametrize("seed", range(5))
def test_ten_names_stand_apart_inside_and_off_every_point(spread, seed):
    draw = random.Random(seed)
    inside = Box(60, 40, 510, 350)
    points = [Point(280 + draw.uniform(-spread, spread), 190 + draw.uniform(-spread, spread)) for _ in range(10)]
    sizes = [(6.6 * draw.randint(3, 18), 14.0) for _ in points]
    boxes = place_names(points, sizes, inside, [])
    assert all(one.overlap(other) == 0 for one, other in itertools.combinations(boxes, 2))
    for box, (width, height) in zip(boxes, sizes, strict=True):
        assert box.overlap(inside) == pytest.approx(width * height)
        assert all(box.overlap(point.box(4)) == 0 for point in points)


def test_a_lonely_name_stands_right_of_its_point_and_left_where_the_plot_ends():
    inside = Box(0, 0, 300, 300)
    for x, side in ((100, 1), (280, -1)):
        (box,) = place_names([Point(x, 150)], [(60, 14)], inside, [])
        assert box.bottom + box.top == pytest.approx(300) and (box.left > x) == (side == 1)
    covered = place_names([Point(100, 150)], [(60, 14)], inside, [Box(100, 140, 180, 160)])[0]
    assert covered.overlap(Box(100, 140, 180, 160)) == 0


def test_an_arm_s_means_are_over_the_cells_that_have_both(results):
    baseline, own = trades(results)
    assert (baseline.arm, own.arm) == ("MLE", "<own>")
    assert baseline.cells == ((0.5, 0.6, 0.7), (0.1, 0.2, 0.3))
    assert own.cells == ((0.6, 0.7), (0.0, 0.0)) and own.means[0].mean == pytest.approx(0.65)
    # Half width: 12.706 * 0.0707 / sqrt(2) = 0.635; no spread, no width.
    assert own.means[0].half_width == pytest.approx(0.635, abs=1e-3) and own.means[1] == (0.0, 0.0, 0.0)
    assert "| <own> | 0.650 ± 0.635 | 0.000 ± 0.000 |" in markdown(results)


def test_the_page_draws_it_in_its_own_colours_with_names_at_the_points(results):
    page = html(results)
    figure = page[page.index('class="card tradeoff"') :].partition("</figure>")[0]
    names = re.findall(r"<text[^>]*>(.*?)</text>", figure)
    assert {"MLE (baseline)", "&lt;own&gt;", GAIN, COST} <= set(names)
    assert "var(--arm0)" in figure and "var(--arm1)" in figure
    assert not re.search("#0[0-9a-e]0[0-9a-e]0[0-9a-e]", figure)
    assert trade_note(results).endswith("has more of caption/exact (right) and less of retention/text_kl (down).")


def test_names_that_are_drawn_do_not_cover_each_other(tmp_path):
    arms = {f"an arm called {number}": {GAIN: (0.5, 0.6), COST: (0.1, 0.2)} for number in range(10)}
    results = write_study(tmp_path, arms, tradeoff=[GAIN, COST])
    svg = svg_for_page(scatter.tradeoff_plot(results, trades(results)))
    found = [
        (float(x), float(y), len(name))
        for x, y, name in re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>(an arm called [^<]*)<', svg)
    ]
    assert len(found) == 10
    for (x, y, size), (u, v, other) in itertools.combinations(found, 2):
        assert abs(y - v) > 12 or abs(x - u) > 3.0 * (size + other)


def test_a_single_cell_has_a_point_without_intervals(tmp_path):
    results = write_study(tmp_path, {"MLE": {GAIN: (0.5,), COST: (0.1,)}}, tradeoff=[GAIN, COST])
    assert "MLE (baseline)" in svg_for_page(scatter.tradeoff_plot(results, trades(results)))
    assert "| MLE | 0.500 ± n/a | 0.100 ± n/a |" in markdown(results)


def test_without_the_key_or_the_metrics_there_is_none(tmp_path):
    results = write_study(tmp_path / "none", ARMS)
    assert trades(results) == [] and "Trade-off" not in html(results) + markdown(results)
    manifest = json.loads((tmp_path / "none" / "study.json").read_text())
    assert "tradeoff" not in manifest  # as older studies wrote it
    missing = write_study(tmp_path / "missing", ARMS, tradeoff=[GAIN, "retention/text_lk"])
    assert "Trade-off" not in html(missing) + markdown(missing)
    assert "retention/text_lk: no finished cell has this metric." in caveats(missing)


def test_what_is_lost_is_known_by_its_name():
    lost = ("retention/text_kl", "retention/image_kl", "retention/text_log_ratio", "retention/text_perplexity")
    assert all(map(lower_is_better, lost)) and not lower_is_better("pope/yes_ratio")
    assert is_chance("retention/text_perplexity_start") and not any(map(is_chance, lost))


BITS, COSINE, PERPLEXITY = "reconstruction/bits", "reconstruction/cosine", "reconstruction/code_perplexity"
TRIANGLE = {
    "codes": {BITS: (96.0, 100.0), COSINE: (0.8, 0.82), PERPLEXITY: (180.0, 200.0)},
    "one code": {BITS: (8.0, 8.0), COSINE: (0.3, 0.31), PERPLEXITY: (2.0, 3.0)},
    "continuous": {BITS: (73728.0, 73728.0), COSINE: (1.0, 1.0)},
    "no tokenizer": {GAIN: (0.5, 0.6)},
}


def test_a_third_metric_is_the_area_of_points_and_hollow_ones_have_none(tmp_path):
    results = write_study(tmp_path, TRIANGLE, tradeoff=[BITS, COSINE, PERPLEXITY])
    found = trades(results)
    assert [trade.arm for trade in found] == ["codes", "one code", "continuous"]
    assert [trade.size and trade.size.mean for trade in found] == [190, 2.5, None]
    svg = svg_for_page(scatter.tradeoff_plot(results, found))
    names = re.findall(r"<text[^>]*>(.*?)</text>", svg)
    # Tenth, half and whole of the largest are explained, and bits are told apart by their ratios.
    assert {PERPLEXITY, "19", "95", "190", "10", "1000", "100000"} <= set(names)
    assert svg.count("stroke-width: 1.8") == 2  # the hollow one, defined and used
    assert trade_note(results).endswith(
        "has less of reconstruction/bits (left) and more of reconstruction/cosine (up). The area of a point is its "
        "reconstruction/code_perplexity; a hollow one has none."
    )
    assert "| continuous | 73728 ± 0 | 1.000 ± 0.000 | n/a |" in markdown(results)
    assert "| codes | 98.000 ± 25.412 | 0.810 ± 0.127 | 190.000 ± 127.062 |" in markdown(results)


def test_areas_are_in_proportion(tmp_path):
    arms = {str(size): {GAIN: (size / 100,), COST: (0.1,), "a/b": (size,)} for size in (100.0, 25.0)}
    results = write_study(tmp_path, arms, tradeoff=[GAIN, COST, "a/b"])
    larger, smaller = scatter._width(1.0), scatter._width(0.25)
    assert (smaller / larger) ** 2 == pytest.approx(0.25) and scatter._width(0.0) > 0
    assert "stroke-width: 1.8" not in svg_for_page(scatter.tradeoff_plot(results, trades(results)))


def test_an_arm_that_lacks_metrics_stands_in_every_table_and_plot(tmp_path):
    results = write_study(tmp_path, TRIANGLE, tradeoff=[BITS, COSINE, PERPLEXITY])
    said = summary(results)
    assert said[-1] == "no tokenizer against codes: no metric is scored in both."
    assert said[2].startswith("continuous against codes: ") and "perplexity" not in said[2]
    assert "| reconstruction/code_perplexity | 190.000 ± 127.062 | 2.500 ± 6.353 | n/a | n/a |" in markdown(results)
    page = html(results)
    assert page.count(">no score</text>") == 1 + 1 + 2 + 3  # bits, cosine, perplexity, caption


def test_sizes_are_drawn_by_their_ratios_and_less_is_better():
    sizes = ("reconstruction/tokens", "reconstruction/bits", "own/bits_entropy")
    assert all(map(is_size, sizes)) and all(map(lower_is_better, sizes))
    others = ("reconstruction/cosine", "reconstruction/psnr", "reconstruction/usage", "reconstruction/code_perplexity")
    assert not any(map(is_size, others)) and not any(map(lower_is_better, others))
    assert not lower_is_better("my_label/code_perplexity")  # whatever the evaluator is called
    assert lower_is_better("reconstruction/quantization_error") and lower_is_better("text/perplexity")
    assert is_chance("reconstruction/tokens_std") and is_chance("drawing/tokens")
    assert is_chance("reconstruction/cosine_constant")
    assert not is_chance("reconstruction/tokens") and not is_chance("reconstruction/code_perplexity")
    assert not is_size("own/tokens_std")
