"""The report's page: what came out in words first, tables that are read at many arms, claims, costs, curves."""

import json
import re
from pathlib import Path

import pytest
from records import write_study
from rich.console import Console

from alignlab.study.claims import Claim
from alignlab.study.curves import MOST_STEPS, common, curve_plot, sparse
from alignlab.study.drawn import draw
from alignlab.study.evidence import evidence_sheet, expected, tuning_sheet
from alignlab.study.markdown import markdown
from alignlab.study.page import html, rows
from alignlab.study.payoff import OPERATIONS, SECONDS, payoffs
from alignlab.study.plots import color_index
from alignlab.study.report import report
from alignlab.study.results import Results
from alignlab.study.scatter import payoff_plot

METRIC = "caption/exact"
VALUES = {"MLE": (0.50, 0.52, 0.51, 0.53, 0.54), "own": (0.60, 0.63, 0.60, 0.64, 0.63)}
CLAIM = Claim("own", "MLE", METRIC, "higher", 0.05, says="it helps", source="a paper")


def study(directory: Path, *, arms: int = 2, **manifest) -> Results:
    """MLE and arms that are better than it."""
    names = ["own", *(f"arm {number}" for number in range(2, arms))]
    values = {"MLE": {METRIC: VALUES["MLE"]}} | {name: {METRIC: VALUES["own"]} for name in names}
    return write_study(directory, values, **manifest)


def claimed(claim: Claim, seen: int = 0) -> dict:
    fields = ("arm", "against", "metric", "direction", "smallest", "says", "source")
    line = {field: getattr(claim, field) for field in fields}
    return {**line, "hash": claim.hash, "date": "2026-01-02T03:04:05Z", "seen": seen}


def change(results: Results, arm: str, **metrics) -> None:
    """Write other numbers into the records of an arm."""
    for cell in results.of(arm):
        place = cell.directory / "metrics.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | metrics))


def test_a_claim_stands_on_top_with_verdict_hash_date_and_what_was_known(tmp_path):
    results = study(tmp_path, claims=[claimed(CLAIM), claimed(Claim("own", "MLE", METRIC, "lower", 0.01), seen=3)])
    page = html(results)
    top = page[: page.index('<h2 id="scores">')]
    assert '<span class="badge supported">supported</span>' in top
    assert '<span class="badge refuted">not supported</span>' in top
    assert CLAIM.hash in top and "it helps (a paper)" in top and "own higher than MLE on caption/exact" in top
    assert "registered 2026-01-02 03:04:05 UTC, before any cell of its arms had finished" in top
    assert "after 3 cells of its arms had finished" in top
    said = markdown(results)
    assert "| own higher than MLE on caption/exact, by 0.05 or more | supported | +0.100 [" in said
    console = Console(record=True, width=200, file=open("/dev/null", "w"))
    report(tmp_path, console=console)
    terminal = console.export_text()
    assert f"supported {expected(CLAIM)}" in terminal
    assert "Registered claims" not in html(study(tmp_path / "none"))


def test_a_comparison_that_is_not_matched_is_marked_and_says_why(tmp_path):
    results = study(tmp_path)
    assert "popovertarget" not in html(results)
    change(results, "own", samples=2560)
    results = Results.read(tmp_path)
    page = html(results)
    marks = re.findall(r'<button class="unmatched"[^>]*popovertarget="(\w+)"', page)
    assert len(marks) >= 2  # in words and in the table
    for mark in marks:
        reason = page.partition(f'<div popover id="{mark}">')[2].partition("</div>")[0]
        assert "samples" in reason and "2\N{NARROW NO-BREAK SPACE}560" in reason
    drawing = draw(results, rows(results, results.metrics)).effects[METRIC]
    assert dict(zip(drawing.header, drawing.rows[0], strict=True))["matched"] == "no"
    assert 'class="badge supported"' not in page


@pytest.mark.parametrize(("arms", "down"), [(2, "metric"), (4, "arm")])
def test_the_longer_of_arms_and_metrics_goes_down(tmp_path, arms, down):
    names = ["MLE", *(f"arm {number}" for number in range(1, arms))]
    metrics = {"a/x": (0.1, 0.2), "a/y": (0.2, 0.3), "a/z": (0.3, 0.4)}
    results = write_study(tmp_path, {name: metrics for name in names})
    assert f"<thead><tr><th>{down}</th>" in html(results)
    assert f"| {down} | {'a/x | a/y | a/z' if down == 'arm' else 'MLE | arm 1'} |" in markdown(results)


def test_every_link_of_the_page_leads_somewhere(tmp_path):
    page = html(study(tmp_path, claims=[claimed(CLAIM)]))
    links = re.findall(r'<a href="#([^"]+)"', page)
    assert {"scores", "effects", "cost", "curves", "arms", "cells", "reading", "made"} == set(links)
    assert all(page.count(f'id="{link}"') == 1 for link in links)
    order = [page.index(f'id="{link}"') for link in links]
    assert order == sorted(order)


def test_the_terminal_of_many_arms_has_one_line_an_arm(tmp_path):
    results = study(tmp_path, arms=7, claims=[claimed(CLAIM)])
    change(results, "arm 2", samples=2560)
    console = Console(record=True, width=100, file=open("/dev/null", "w"))
    report(tmp_path, console=console)
    lines = console.export_text().splitlines()
    assert len(lines) < 25 and lines[-1].startswith("Report: ")
    assert any(re.match(r"\s*own +0\.620▲", line) for line in lines)
    assert any(re.match(r"\s*arm 2 ≠ +0\.620▲", line) for line in lines)
    assert not any("against MLE" in line for line in lines)


def test_points_are_filled_where_the_difference_is_supported_alone(tmp_path):
    values = {"MLE": VALUES["MLE"], "own": VALUES["own"], "mixed": (0.6, 0.4, 0.6, 0.4, 0.6), "none": ()}
    results = write_study(tmp_path, {arm: {METRIC: found} for arm, found in values.items()})
    drawing = draw(results, rows(results, results.metrics)).effects[METRIC]
    points = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "o"]
    assert [point.get_markerfacecolor() == point.get_markeredgecolor() for point in points] == [True, False]
    assert [row[0] for row in drawing.rows] == ["own", "mixed"]  # one has no score, one is the baseline
    assert [dict(zip(drawing.header, row, strict=True))["verdict"] for row in drawing.rows] == [
        "supported",
        "inconclusive",
    ]


def test_arms_stand_below_what_they_are_compared_with(tmp_path):
    results = study(tmp_path, arms=4, against={"arm 3": "own"})
    (axes,) = draw(results, rows(results, results.metrics)).effects[METRIC].figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["", "own", "arm 2", "", "arm 3"]
    assert [text.get_text() for text in axes.texts] == ["against MLE", "against own"]


def test_tests_and_their_findings_have_a_table(tmp_path):
    sheet = evidence_sheet(study(tmp_path))
    head, (row,) = [item.text for item in sheet.header], sheet.rows
    found = dict(zip(head, (item.text for item in row), strict=True))
    # Five differences of one sign: 2 of 2^5 assignments are as far from 0; a single comparison needs no correction.
    assert found["p"] == found["p (Holm)"] == "0.0625" and found["pairs"] == "5"
    assert found["P(improvement)"] == "1.00" and found["finding"].startswith("supported: ")


def test_tuned_arms_stand_beside_their_defaults(tmp_path):
    values = {"MLE": {METRIC: VALUES["MLE"]}, "MLE, tuned": {METRIC: VALUES["own"]}}
    results = write_study(tmp_path, values, tuned={"MLE, tuned": "MLE"})
    (row,) = tuning_sheet(results).rows
    assert [item.text for item in row] == ["MLE", "", "0.520 → 0.620"] and row[2].tone == "right"
    assert '<h2 id="tuned">Default and tuned</h2>' in html(results)
    assert "<summary>1 tuned arm</summary>" in html(results)
    assert tuning_sheet(study(tmp_path / "none")) is None and 'id="tuned"' not in html(study(tmp_path / "other"))


def test_a_tuned_arm_is_a_square_in_its_arms_colour_without_a_name_of_its_own(tmp_path):
    arms = ("MLE", "own", "MLE, tuned", "own, tuned")
    tuned = {"MLE, tuned": "MLE", "own, tuned": "own"}
    results = write_study(tmp_path, {arm: {METRIC: [0.4, 0.5, 0.6]} for arm in arms}, tuned=tuned)
    for place, arm in enumerate(arms):
        for cell in results.of(arm):
            path = cell.directory / "metrics.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": {"fit": 10.0 + 9 * place}}))
    results = Results.read(tmp_path)
    assert [color_index(results, arm) for arm in arms] == [0, 1, 0, 1]
    (axes,) = payoff_plot(results, payoffs(results, METRIC)).figure.axes
    assert [line.get_marker() for line in axes.lines if line.get_marker() in ("D", "s")] == ["D", "s", "s"]
    assert [text.get_text() for text in axes.texts] == ["MLE (baseline)", "own"]
    assert "A square is the tuned arm of its colour." in html(results)


def test_names_of_tuned_arms_are_not_cut_in_the_plot_of_effects(tmp_path):
    arms = ("MLE", "UniME, both stages", "UniME, both stages, tuned")
    values = {arm: {METRIC: [0.4, 0.5, 0.6 + place / 9]} for place, arm in enumerate(arms)}
    results = write_study(tmp_path, values, tuned={arms[2]: arms[1]})
    plot = draw(results, rows(results, results.metrics)).effects[METRIC]
    names = plot.figure.axes[0].get_yticklabels()
    assert [name.get_text() for name in names] == list(arms[1:])
    plot.figure.draw_without_rendering()
    assert all(name.get_window_extent().x0 >= 0 for name in names)


def test_costs_are_operations_with_stages_or_else_seconds(tmp_path):
    results = study(tmp_path)
    assert payoffs(results, METRIC) is None  # all cost the same
    change(results, "MLE", flops={"forward": 1e9, "backward": 2e9})
    change(results, "own", flops={"forward": 2e9, "backward": 4e9}, seconds={"fit": 90.0, "evaluate": 5.0})
    stage = tmp_path / "stages/first"
    stage.mkdir(parents=True)
    stage_metrics = {"flops": {"forward": 5e9, "backward": 0.0}, "seconds": {"fit": 8.0}, "steps": 5, "samples": 9}
    (stage / "metrics.json").write_text(json.dumps(stage_metrics))
    for cell in results.of("own"):
        (cell.directory / "stages.json").write_text(json.dumps({"first": "../../../stages/first"}))
    found = payoffs(Results.read(tmp_path), METRIC)
    assert found.cost == OPERATIONS and found.unmatched == {"own"}
    assert [trade.means[0].mean for trade in found.trades] == pytest.approx([3.0, 11.0])
    drawing = payoff_plot(Results.read(tmp_path), found)
    assert [row[0] for row in drawing.rows] == ["MLE", "own"] and [row[-1] for row in drawing.rows] == ["yes", "no"]
    change(results, "MLE", flops=None)
    found = payoffs(Results.read(tmp_path), METRIC)
    assert found.cost == SECONDS and [trade.means[0].mean for trade in found.trades] == pytest.approx([30.0, 98.0])


def test_curves_of_three_cells_are_a_band_and_of_fewer_are_lines(tmp_path):
    results = write_study(tmp_path, {"MLE": {METRIC: VALUES["MLE"]}, "own": {METRIC: (0.1, 0.2)}})
    cells = results.of("MLE")
    for seed, cell in enumerate(cells):
        lines = [{"step": step, "train/loss": seed + 1.0 / step} for step in (1, 2, 4)][: 2 if seed == 4 else 3]
        (cell.directory / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = Results.read(tmp_path)
    steps, values = common(results.of("MLE"), "train/loss")
    assert steps == [1, 2] and values[1] == [0.5, 1.5, 2.5, 3.5, 4.5]
    (axes,) = curve_plot(results, "MLE").figure.axes
    assert len(axes.collections) == 1 and len(axes.lines) == 1
    assert list(axes.lines[0].get_ydata()) == pytest.approx([3.0, 2.5])
    for cell in results.of("MLE")[2:]:
        (cell.directory / "metrics.json").unlink()
        (cell.directory / "curve.jsonl").unlink()
    (axes,) = curve_plot(Results.read(tmp_path), "MLE").figure.axes
    assert len(axes.collections) == 0 and len(axes.lines) == 3  # two cells and their mean


def test_long_curves_are_drawn_sparsely_from_their_first_step_to_their_last():
    few = sparse(list(range(100_000)))
    assert len(few) == MOST_STEPS and (few[0], few[-1]) == (0, 99_999)
    assert sparse([1, 2, 3]) == [1, 2, 3]


def test_the_page_names_commit_and_packages(tmp_path):
    results = study(tmp_path)
    versions = {
        "packages": {"torch": "2.13.0", "bitsandbytes": None},
        "git": {"commit": "0123456789abcdef", "changed": ""},
    }
    for cell in results.cells:
        (cell.directory / "versions.json").write_text(json.dumps(versions))
    page = html(Results.read(tmp_path))
    assert "At commit 0123456789ab." in page and "pip install torch==2.13.0</pre>" in page
