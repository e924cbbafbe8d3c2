"""A report is made from the study's directory alone, and hides nothing that happened."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from records import write_cell, write_study
from rich.console import Console

from alignlab.errors import InputError
from alignlab.experiment import shading
from alignlab.study import gallery
from alignlab.study.comparison import caveats, compare, power, summary, verdict
from alignlab.study.report import html, markdown, report
from alignlab.study.results import Results
from alignlab.study.wording import score, signed

SCORES = {"MLE": (0.5, 0.6, 0.7), "own": (0.6, 0.7, 0.83)}


def write_item(directory: Path, id: str, output: str, reference: str = "a red square") -> None:
    """One caption with its picture."""
    Image.new("RGB", (8, 8), "red").save(directory / "pictures" / f"{id}.png")
    item = {"id": id, "score": float(output == reference), "prompt": "describe", "output": output}
    with open(directory / "items" / "caption.jsonl", "a") as file:
        file.write(json.dumps({**item, "reference": reference, "picture": f"pictures/{id}.png"}) + "\n")


@pytest.fixture
def directory(tmp_path) -> Path:
    """Two arms of three finished cells, and one with a failed, an interrupted and a new cell."""
    cells = []
    for arm in ("MLE", "own", "bad"):
        for seed in range(3):
            differs = {} if arm == "MLE" else {"objective": arm.upper()}
            place = f"cells/{arm}/{arm}{seed}"
            digest = f"{arm}{seed}"
            cells.append(
                {"arm": arm, "start": "a", "seed": seed, "directory": place, "digest": digest, "differs": differs}
            )
            if arm in SCORES:
                write_cell(tmp_path / place, SCORES[arm][seed])
    (tmp_path / "cells/bad/bad0").mkdir(parents=True)
    (tmp_path / "cells/bad/bad0/failure.json").write_text('{"message": "the loss is <nan>", "traceback": "..."}')
    (tmp_path / "cells/bad/bad1").mkdir()
    (tmp_path / "cells/bad/bad1/curve.jsonl").write_text('{"step": 10, "train/loss": 1.0}\n{"step": 20, "tra')
    manifest = {
        "name": "mine",
        "description": "Does it help?",
        "command": "alignlab study run mine.yaml",
        "arms": ["MLE", "own", "bad"],
        "starts": ["a"],
        "seeds": [0, 1, 2],
        "baseline": "MLE",
        "metrics": [],
        "notes": [],
        "cells": cells,
    }
    (tmp_path / "study.json").write_text(json.dumps(manifest))
    return tmp_path


def change_manifest(directory: Path, **changes: Any) -> None:
    manifest = json.loads((directory / "study.json").read_text())
    (directory / "study.json").write_text(json.dumps(manifest | changes))


def test_scores_and_differences_by_hand(directory):
    results = Results.read(directory)
    entry = compare(results, "own", "caption/exact")
    # differences 0.1, 0.1, 0.13: mean 0.11, standard deviation 0.01732, half width 4.3027 * 0.01732 / sqrt(3) = 0.04303
    assert entry.difference == pytest.approx((0.11, 0.11 - 0.04303, 0.11 + 0.04303), abs=1e-5)
    assert entry.score.mean == pytest.approx(0.71)
    assert entry.p == 0.25
    assert compare(results, "MLE", "caption/exact").difference is None


def test_an_arm_is_compared_with_what_it_names(tmp_path):
    arms = {"MLE": {"m": (0.1, 0.2, 0.3)}, "few": {"m": (0.5, 0.6, 0.7)}, "own, few": {"m": (0.6, 0.7, 0.83)}}
    results = write_study(tmp_path, arms, against={"own, few": "few"}, oracle=None)
    entry = compare(results, "own, few", "m")
    assert entry.differences == pytest.approx((0.1, 0.1, 0.13))
    assert compare(results, "few", "m").differences == pytest.approx((0.4, 0.4, 0.4))
    assert [line.partition(":")[0] for line in summary(results)[1:]] == ["few against MLE", "own, few against few"]
    said = markdown(results)
    assert "| arm | m |" in said and re.search(r"\| own, few \(against few\) \| \**\+0\.110", said)
    page = html(results)
    assert "against few</span>" in page and "against MLE</span>" in page
    console = Console(record=True, width=160)
    report(tmp_path, console=console)
    assert "own, few (against few)" in console.export_text()


def test_arms_of_unequal_seeds_are_not_called_a_grid(tmp_path):
    results = write_study(tmp_path, {"MLE": {"m": (0.1, 0.2)}, "own": {"m": (0.2, 0.3)}})
    assert summary(results)[0] == "2 arms × 1 start × 2 seeds: 4 cells, all finished."
    assert "over 2 seeds has p ≥ 0.5" in power(results)
    fewer = replace(results, cells=results.cells[:-1])
    assert summary(fewer)[0] == "2 arms × 1 start × 2 seeds, not all arms with all of them: 3 cells, all finished."


def test_a_test_is_as_strong_as_each_arm_has_pairs(tmp_path):
    values = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    results = write_study(tmp_path, {"MLE": {"m": values}, "own": {"m": values}, "few": {"m": values}})
    few = [cell for cell in results.cells if cell.arm != "few" or cell.seed < 3]
    said = power(replace(results, cells=tuple(few)))
    assert "over 6 seeds has p ≥ 0.0312: it can reach p < 0.05." in said
    assert "Corrected for 2 comparisons on a metric (Holm), that takes 7 seeds." in said  # 2 * 2^(1 - 7) < 0.05
    assert "over 3 seeds has p ≥ 0.25: it cannot reach" in said


def test_the_verdict_sorts_the_metrics(directory):
    judged = verdict(Results.read(directory), "own")
    assert [entry.metric for entry in judged.higher] == ["caption/exact"]
    assert [entry.metric for entry in judged.same] == ["vqa/accuracy"]
    assert not judged.lower and not judged.undecided and judged.unknown is None


def test_the_summary_says_what_came_out(directory):
    assert summary(Results.read(directory)) == [
        "3 arms × 1 start × 3 seeds: 9 cells, 6 finished. The other 3 cells are listed below.",
        "own against MLE: higher on caption/exact (+0.110); the same on vqa/accuracy.",
        "bad against MLE: no start and seed is finished in both.",
    ]


def test_three_seeds_are_said_to_be_few(directory):
    assert any("p ≥ 0.25: it cannot reach p < 0.05" in note for note in caveats(Results.read(directory)))


def test_unequal_budgets_are_said(directory):
    place = directory / "cells/own/own0/metrics.json"
    metrics = json.loads(place.read_text())
    place.write_text(json.dumps(metrics | {"samples": 2560, "parameters": {"total": 2000, "trained": 1001}}))
    notes = [note for note in caveats(Results.read(directory)) if note.startswith("Not matched")]
    assert len(notes) == 1 and "samples of own and MLE differ" in notes[0]


def test_a_metric_that_no_cell_has_is_said(directory):
    change_manifest(directory, metrics=["caption/exact", "caption/exakt"])
    assert "caption/exakt: no finished cell has this metric." in caveats(Results.read(directory))


def test_metrics_of_another_config_do_not_count(directory):
    place = directory / "cells/own/own0/metrics.json"
    place.write_text(place.read_text().replace("own0", "other"))
    assert [cell.state for cell in Results.read(directory).of("own")] == ["interrupted", "finished", "finished"]


def test_every_cell_is_reported_and_failures_with_their_reason(directory):
    report(directory, console=Console(record=True, width=100, file=open("/dev/null", "w")))
    for text in ((directory / "report.md").read_text(), (directory / "report.html").read_text()):
        for arm in ("MLE", "own", "bad"):
            for seed in range(3):
                assert f"cells/{arm}/{arm}{seed}" in text
        assert "failed" in text and "not finished" in text and "not started" in text
        assert "alignlab study run mine.yaml" in text
    assert "the loss is &lt;nan&gt;" in (directory / "report.html").read_text()


def test_the_terminal_gets_the_table(directory):
    console = Console(record=True, width=80, file=open("/dev/null", "w"))
    page = report(directory, console=console)
    text = console.export_text()
    assert re.search(r"own +0\.710 ± 0\.286 +\+0\.110 \[\+0\.067, \+0\.153\] +3", text)
    assert "bad · a · seed 0: failed: the loss is <nan>" in text
    assert str(page) in text.replace("\n", "")


def test_a_difference_of_fewer_pairs_than_cells_says_so(directory):
    (directory / "cells/MLE/MLE2/metrics.json").unlink()
    console = Console(record=True, width=100, file=open("/dev/null", "w"))
    report(directory, console=console)
    terminal, page = console.export_text(), (directory / "report.html").read_text()
    assert re.search(r"own +0\.710 ± 0\.286 +\+0\.100 \[.*\] +3 \(2 pairs\)", terminal)
    assert re.search(r"MLE +0\.550 ± 0\.635 +2 *\n", terminal)
    assert re.search(r"\| \S*\+0\.100 .*\] ?\S* \(2 pairs\) \| n/a \|", (directory / "report.md").read_text())
    assert re.search(r"\+0\.100.*\(2 pairs\)</small>", page)


def test_markdown_tables_are_whole(directory):
    tables = [line for line in markdown(Results.read(directory)).splitlines() if line.startswith("|")]
    assert "| own | 0.710 ± 0.286 | 0.500 ± 0.000 |" in tables and "| bad | n/a | n/a |" in tables
    assert "| caption/exact | **+0.110 [+0.067, +0.153]** | n/a |" in tables


def test_the_page_needs_nothing_else(directory):
    write_item(directory / "cells/MLE/MLE0", "x", "a red square")
    write_item(directory / "cells/own/own0", "x", "a blue square")
    page = html(Results.read(directory))
    assert not re.search(r"<(script|link|iframe)|@import|url\((?!#)", page)
    assert set(re.findall(r'(?:src|href)="([^"]{5})', page)) <= {"data:"} | {
        m[:5] for m in re.findall(r'"(#[^"]*)"', page)
    }
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_plots_take_the_colours_of_the_page(directory):
    page = html(Results.read(directory))
    assert page.count('<svg class="plot"') == 2 + 2 + 3  # effects, scores, arms' curves
    assert "var(--arm0)" in page and "var(--arm1)" in page and "var(--ink)" in page
    assert not re.search("#0[0-9a-e]0[0-9a-e]0[0-9a-e]", page)


def test_names_are_text_and_not_markup(directory):
    text = (directory / "study.json").read_text().replace('"own"', '"<i>own"')
    (directory / "study.json").write_text(text)
    page = html(Results.read(directory))
    assert "<i>" not in page and "&lt;i&gt;own" in page
    report(directory, console=Console(file=open("/dev/null", "w")))


def test_the_gallery_shows_what_divides_the_arms_first(directory):
    for cell, outputs in (
        ("MLE/MLE0", ("a red square", "a red square")),
        ("own/own0", ("a red square", "a blue square")),
    ):
        for id, output in zip("xy", outputs, strict=True):
            write_item(directory / "cells" / cell, id, output)
    (wall,) = gallery.walls(Results.read(directory))
    assert (wall.evaluator, wall.prompt) == ("caption", "describe")
    divided, agreed = wall.cards
    assert [answer.arms for answer in agreed.answers] == [("MLE", "own")]
    assert [(answer.arms, answer.score) for answer in divided.answers] == [(("MLE",), 1), (("own",), 0)]
    assert divided.answers[1].words == (("a", False), ("blue", True), ("square", False))
    page = html(Results.read(directory))
    assert "<mark>blue</mark>" in page and 'aria-label="right"' in page and 'aria-label="wrong"' in page


def write_weighed(directory: Path, id: str, weights: list[list[Any]], **fields: Any) -> None:
    """A conversation whose last answer was weighed."""
    Image.new("RGB", (8, 8), "red").save(directory / "pictures" / f"{id}.png")
    item = {"id": id, "score": 1.0, "prompt": "describe", "output": "a <b> red", "reference": "a <b> red"}
    item |= {"picture": f"pictures/{id}.png", "weights": weights, "bounds": [1.0, 5.0]}
    with open(directory / "items" / "weights.jsonl", "a") as file:
        file.write(json.dumps(item | fields) + "\n")


def test_tokens_are_shown_in_the_colour_of_their_weights_arm_by_arm(directory):
    weights = [["a", 1.0], [" <b>", 2.0], [" re", 5.0], ["d", 3.0]]
    write_weighed(directory / "cells/MLE/MLE0", "x", [[text, 1.0] for text, _ in weights])
    write_weighed(directory / "cells/own/own0", "x", weights)
    (wall,) = gallery.walls(Results.read(directory))
    assert wall.legends == (shading.legend((1.0, 5.0)),)
    even, uneven = wall.cards[0].answers
    assert (even.arms, uneven.arms) == (("MLE",), ("own",)) and even.words == uneven.words == ()
    shares = [re.findall(r"--share: ([\d.]+)", str(answer.shaded)) for answer in (even, uneven)]
    assert shares == [["0.00"] * 4, ["0.00", "0.25", "1.00", "0.50"]]
    page = html(Results.read(directory))
    assert "What the arms weigh: weights" in page and str(uneven.shaded) in page and str(wall.legends[0]) in page
    # Pieces of a word touch; the space in front of a word has no colour.
    assert 'title="5.00">re</span><span style="--share: 0.50" title="3.00">d</span>' in page
    assert '</span> <span style="--share: 0.25" title="2.00">&lt;b&gt;</span>' in page and "<b> red" not in page
    assert 'aria-label="right"' not in page  # a score of 1 is a number here


def test_written_and_weighed_answers_stand_beside_each_other(directory):
    for cell in ("MLE/MLE0", "own/own0"):
        write_item(directory / "cells" / cell, "x", "a blue square")
        write_weighed(directory / "cells" / cell, "x", [["a", 2.0]] * 200, bounds=[0.0, 2.0 + len(cell)])
    caption, weighed = gallery.walls(Results.read(directory))
    assert caption.legends == () and len(weighed.legends) == 1  # both cells' names are as long
    assert [answer.unshown for answer in weighed.cards[0].answers] == [40, 40]
    page = html(Results.read(directory))
    assert "<mark>blue</mark>" in page and "… and 40 more tokens" in page
    assert not re.search(r"<(script|link|iframe)|@import|url\((?!#)", page)


def test_weights_of_an_evaluator_that_does_not_bound_them_are_not_coloured(directory):
    for cell in ("MLE/MLE0", "own/own0"):
        write_item(directory / "cells" / cell, "x", "a red square")
        file = directory / "cells" / cell / "items/caption.jsonl"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": [0.5, 0.5]}) + "\n")
    (wall,) = gallery.walls(Results.read(directory))
    assert wall.legends == () and wall.cards[0].answers[0].words


def write_made(cell: Path, id: str, color: str, output: str, score: float, width: int = 96) -> None:
    """A picture that an arm has made."""
    Image.new("RGB", (width, 96), color).save(cell / "pictures" / f"made-{id}.png")
    item = {"id": id, "score": score, "prompt": "", "output": output, "reference": ""}
    with open(cell / "items" / "reconstruction.jsonl", "a") as file:
        file.write(json.dumps({**item, "picture": f"pictures/made-{id}.png"}) + "\n")


def test_pictures_that_arms_made_stand_each_with_its_arm(directory):
    baseline, own = directory / "cells/MLE/MLE0", directory / "cells/own/own0"
    for id in ("x", "y"):
        write_made(baseline, id, "red", "12 of 36 patches", 0.5)
        write_made(own, id, "blue" if id == "x" else "red", "12 of 36 patches", 0.5)
    write_made(own, "codebook", "green", "3 of 4 codes", 0.75, width=200)
    (wall,) = gallery.walls(Results.read(directory))
    made, same, book = wall.cards  # of all arms first
    assert made.picture is None and [answer.arms for answer in made.answers] == [("MLE",), ("own",)]
    assert made.answers[0].picture != made.answers[1].picture
    assert not any(odd for _, odd in made.answers[0].words)  # there is no reference
    assert same.picture == made.answers[0].picture and [answer.arms for answer in same.answers] == [("MLE", "own")]
    assert book.picture is None and [answer.arms for answer in book.answers] == [("own",)]  # a wide picture
    page = html(Results.read(directory))
    assert "What the arms make: reconstruction" in page and 'alt="made by own"' in page
    assert page.count("<img") == 4 and "not the reference" not in page and "<dt>question</dt>" not in page


def test_an_evaluator_of_some_arms_alone_has_its_wall(directory):
    write_item(directory / "cells/own/own0", "x", "a blue square")
    (wall,) = gallery.walls(Results.read(directory))
    assert [answer.arms for card in wall.cards for answer in card.answers] == [("own",)]


def test_a_lost_picture_is_left_out(directory):
    for cell in ("MLE/MLE0", "own/own0"):
        write_item(directory / "cells" / cell, "x", "a red square")
    (directory / "cells/MLE/MLE0/pictures/x.png").write_bytes(b"broken")
    assert gallery.walls(Results.read(directory)) == []


def test_large_pictures_are_made_smaller(directory):
    large = Image.effect_noise((2000, 1000), 90)
    for cell in ("MLE/MLE0", "own/own0"):
        write_item(directory / "cells" / cell, "x", "a red square")
        large.save(directory / "cells" / cell / "pictures/x.png")
    (wall,) = gallery.walls(Results.read(directory))
    assert wall.cards[0].width == 320 and len(wall.cards[0].picture) < 100_000


def test_a_single_seed_has_no_interval(directory):
    manifest = json.loads((directory / "study.json").read_text())
    change_manifest(directory, seeds=[0], cells=[cell for cell in manifest["cells"] if cell["seed"] == 0])
    results = Results.read(directory)
    assert score(compare(results, "own", "caption/exact").score) == "0.600 ± n/a"
    assert "allows no interval and no conclusion" in summary(results)[1]
    report(directory, console=Console(file=open("/dev/null", "w")))


def test_a_study_without_results_has_a_report(directory):
    manifest = json.loads((directory / "study.json").read_text())
    change_manifest(directory, arms=["bad"], baseline="bad", cells=[c for c in manifest["cells"] if c["arm"] == "bad"])
    results = Results.read(directory)
    assert "none finished: there is nothing to compare yet" in summary(results)[0]
    report(directory, console=Console(file=open("/dev/null", "w")))


def test_scores_that_are_no_numbers_are_left_out(directory):
    place = directory / "cells/own/own2/metrics.json"
    place.write_text(place.read_text().replace("0.83", "NaN"))
    assert len(compare(Results.read(directory), "own", "caption/exact").values) == 2


def test_another_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no study.json in it"):
        Results.read(tmp_path)
    with pytest.raises(InputError, match="there is no such directory"):
        Results.read(tmp_path / "nowhere")


def test_small_differences_have_no_sign_when_they_round_to_nothing():
    assert [signed(value) for value in (0.0004, -0.0004, -0.02)] == ["0.000", "0.000", "−0.020"]
