"""The oracle says which metrics can carry a conclusion, the blind audit which of them look at pictures."""

import re

import pytest
from records import write_study
from rich.console import Console

from alignlab.study.calibration import calibrate, effect, objections, share, tenths
from alignlab.study.naming import audited, is_chance, lower_is_better
from alignlab.study.report import report

MLE, TRUTH = [0.5, 0.6, 0.7], [0.7, 0.81, 0.9]
PARTS = {"oracle": "truth", "placebo": "noise"}


def outputs(results) -> tuple[str, str, str]:
    """Terminal, Markdown and HTML."""
    console = Console(record=True, width=110, file=open("/dev/null", "w"))
    page = report(results.directory, console=console)
    return console.export_text(), page.with_suffix(".md").read_text(), page.read_text()


def arms(metric: str, **values: list[float]) -> dict[str, dict[str, list[float]]]:
    """One metric's values by arm."""
    return {arm: {metric: numbers} for arm, numbers in values.items()}


def test_calibration_by_hand(tmp_path):
    results = write_study(tmp_path, arms("caption/exact", MLE=MLE, truth=TRUTH), oracle="truth")
    found = calibrate(results, "caption/exact")
    # differences 0.20, 0.21, 0.20: mean 0.20333, standard deviation 0.0057735, so error 0.0033333, of which they are 61
    assert (found.baseline, found.oracle) == pytest.approx((0.6, 0.80333), abs=1e-5)
    assert (found.difference.mean, found.error, found.errors) == pytest.approx((0.20333, 0.0033333, 61), abs=1e-5)
    assert found.pairs == 3 and found.objections == ()


def test_calibration_is_over_the_cells_that_both_arms_have(tmp_path):
    results = write_study(tmp_path, arms("caption/exact", MLE=MLE, truth=TRUTH[:2]), oracle="truth")
    found = calibrate(results, "caption/exact")
    assert (found.pairs, found.baseline) == (2, pytest.approx(0.55))
    assert calibrate(results, "caption/exakt") is None


@pytest.mark.parametrize(
    ("baseline", "gain", "error", "reasons"),
    [
        (0.6, 1.0, 0.1, []),
        (0.3, 1.0, 0.01, []),
        (0.9, 1.0, 0.01, []),
        (0.6, 0.99, 0.1, ["better by 9.9 standard errors, fewer than 10"]),
        (0.6, 0.99999, 0.1, ["better by 9.9 standard errors, fewer than 10"]),
        (0.6, -2.0, 0.1, ["worse by 20.0 standard errors"]),
        (0.6, 0.0, 0.1, ["better by 0.0 standard errors, fewer than 10"]),
        (0.6, 1.0, 0.0, ["equal differences tell no standard error"]),
        (0.6, 1.0, None, ["a single start or seed has no standard error"]),
        (0.2996, 1.0, 0.1, ["mean 0.2996 is not between 0.30 and 0.90"]),
        (4.2, 0.5, 0.1, ["better by 5.0 standard errors, fewer than 10", "mean 4.2 is not between 0.30 and 0.90"]),
    ],
)
def test_objections_name_what_failed_and_its_numbers(baseline, gain, error, reasons):
    found = objections(baseline, gain, error)
    assert len(found) == len(reasons)
    assert all(reason in said for reason, said in zip(reasons, found, strict=True))


def test_a_baseline_whose_mean_is_rounded_off_the_limit_is_within():
    mean = (0.16 + 0.41 + 0.33 + 0.36 + 0.24) / 5
    assert mean < 0.3 and objections(mean, 1.0, 0.01) == []


def test_numbers_of_standard_errors_are_cut():
    assert [tenths(value) for value in (9.99, 9.9, -9.99)] == ["9.9", "9.9", "−9.9"]


def test_an_oracle_of_lower_nats_is_better_and_of_higher_nats_worse(tmp_path):
    results = write_study(tmp_path, arms("text/nats", MLE=TRUTH, truth=MLE, own=[0.6, 0.705, 0.8]), oracle="truth")
    found = calibrate(results, "text/nats")
    assert found.objections == () and found.errors == pytest.approx(-61)
    assert share(results, "own", "text/nats").startswith("50 % [")
    worse = write_study(tmp_path / "worse", arms("text/nats", MLE=MLE, truth=TRUTH, own=TRUTH), oracle="truth")
    assert calibrate(worse, "text/nats").objections == ("the oracle is worse by 61.0 standard errors",)
    assert share(worse, "own", "text/nats") == "n/a (the oracle is worse)"


def test_shares_of_the_gap(tmp_path):
    values = dict(MLE=MLE, truth=TRUTH, half=[0.6, 0.705, 0.8], less=[0.49, 0.58, 0.67], two=[0.6, 0.705])
    results = write_study(tmp_path, arms("caption/exact", **values), oracle="truth")
    assert share(results, "half", "caption/exact") == "50 % [50, 50]"
    # differences -0.01, -0.02, -0.03 of a gap of 0.20333: -0.02 / 0.20333 -+ 0.02484 / 0.20333 and little more
    assert share(results, "less", "caption/exact") == "−10 % [−22, 2]"
    assert share(results, "two", "caption/exact") == "50 % [50, 50]"


def test_a_share_says_of_how_many_pairs_it_is_where_they_are_fewer_than_the_cells(tmp_path):
    values = dict(MLE=MLE, truth=TRUTH[:2], half=[0.6, 0.705, 0.8])
    results = write_study(tmp_path, arms("caption/exact", **values), oracle="truth")
    assert share(results, "half", "caption/exact") == "50 % [50, 50] (2 pairs)"


@pytest.mark.parametrize("truth", [[0.7, 0.6, 0.72], [0.7], [0.7, 0.8, 0.9]])
def test_no_share_is_given_of_a_gap_that_is_not_established(tmp_path, truth):
    results = write_study(tmp_path, arms("caption/exact", MLE=MLE, truth=truth, own=TRUTH), oracle="truth")
    assert share(results, "own", "caption/exact") == "n/a (gap not established)"


@pytest.mark.parametrize(
    ("noise", "words", "told"),
    [
        ([0.55, 0.59, 0.71], "not distinguishable from MLE", False),
        ([0.6, 0.71, 0.8], "distinguishable from MLE", True),
        (MLE, "the same as MLE in every cell", False),
        ([0.9], "n/a: a single seed", None),
        ([], "n/a: no start and seed is finished in both", None),
    ],
)
def test_a_placebo_is_distinguishable_where_its_interval_excludes_zero(tmp_path, noise, words, told):
    results = write_study(tmp_path, arms("caption/exact", MLE=MLE, noise=noise), placebo="noise")
    assert effect(results, "caption/exact") == (words, told)


def test_every_output_tells_calibration_placebo_and_shares(tmp_path):
    values = dict(MLE=MLE, truth=TRUTH, noise=[0.55, 0.59, 0.71], own=[0.6, 0.7, 0.82])
    results = write_study(tmp_path, arms("caption/exact", **values), **PARTS)
    terminal, markdown, page = outputs(results)
    assert re.search(r"accepted +0\.600 +0\.803 +\+0\.203 \(0\.003\) +61\.0 +3", terminal)
    assert "| caption/exact | accepted | 0.600 | 0.803 | +0.203 (0.003) | 61.0 | 3 |" in markdown
    assert '<span class="right">accepted</span>' in page
    assert re.search(r"not distinguishable from MLE +\+0\.017 \[−0\.059, \+0\.093\]", terminal)
    assert "| caption/exact | not distinguishable from MLE | +0.017 [−0.059, +0.093] |" in markdown
    (shares,) = re.findall(r"\| caption/exact \| own \| (\d\d % \[\d\d, \d\d\] \| \S+ % \[\S+, \d\d\]) \|", markdown)
    assert all(text in terminal and text in page for text in shares.split(" | "))
    assert "| truth |" not in markdown.partition("gap closed")[2].partition("## Arms")[0]


def test_the_placebo_has_its_share_where_no_other_arm_is_there(tmp_path):
    values = dict(MLE=MLE, truth=TRUTH, noise=[0.6, 0.705, 0.8])
    _, markdown, _ = outputs(write_study(tmp_path, arms("caption/exact", **values), **PARTS))
    assert "| metric | arm | share closed |\n" in markdown and "| caption/exact | noise | 50 % [50, 50] |\n" in markdown


def test_a_metric_that_no_cell_has_is_not_accepted(tmp_path):
    results = write_study(tmp_path, arms("a/b", MLE=MLE, truth=TRUTH, noise=MLE), metrics=["a/c"], **PARTS)
    for text in outputs(results)[1:]:
        assert "not accepted: no start and seed has it in both arms" in text


def test_a_study_without_an_oracle_or_a_placebo_says_nothing_of_them(tmp_path):
    results = write_study(tmp_path, arms("caption/exact", MLE=MLE, own=TRUTH))
    for text in (text.replace(str(tmp_path), "") for text in outputs(results)):
        assert not re.search("calibration|oracle|placebo|blind audit", text, re.IGNORECASE)


AUDITED = {
    "caption/exact": [0.5, 0.7],
    "caption/blind/shuffled_images/exact": [0.2, 0.3],
    "caption/blind/text_only/exact": [0.1, 0.2],
    "vqa/accuracy": [0.8, 0.8],
    "vqa/blind/bag_of_words/accuracy": [0.4, 0.5],
    "retrieval/recall": [0.3, 0.3],
    "retrieval/chance_r1": [0.0417, 0.0417],
    "retrieval/blind/text_only/chance_r1": [0.0417, 0.0417],
}


def test_blind_scores_stand_in_the_audit_alone(tmp_path):
    results = write_study(tmp_path, {"MLE": AUDITED, "own": {**AUDITED, "caption/blind/text_only/exact": []}})
    terminal, markdown, page = outputs(results)
    assert all(f"{name}/blind/" not in terminal + markdown + page for name in ("caption", "vqa", "retrieval"))
    assert "/<wbr>blind" not in page
    assert "| metric | arm | sighted | shuffled images | text only | bag of words |" in markdown
    assert "| caption/exact | MLE | 0.600 | 0.250 | 0.150 | n/a |" in markdown
    assert "| caption/exact | own | 0.600 | 0.250 | n/a | n/a |" in markdown
    assert "| vqa/accuracy | own | 0.800 | n/a | n/a | 0.450 |" in markdown
    assert re.search(r"MLE +0\.600 +0\.250 +0\.150 +n/a", terminal)
    assert (
        page.count('rowspan="2"') == 2 and page.count('<svg class="plot"') == 3 + 3 + 2
    )  # effects, scores, arms' curves


def test_the_terminal_audits_headline_metrics_alone(tmp_path):
    terminal, markdown, page = outputs(write_study(tmp_path, {"MLE": AUDITED}, metrics=["vqa/accuracy"]))
    assert re.search(r"MLE +0\.800 +0\.450", terminal) and "0.250" not in terminal
    assert markdown.index("| vqa/accuracy | MLE | 0.800 |") < markdown.index("| caption/exact | MLE | 0.600 |")
    assert "Audits of more metrics" in page
    terminal, _, page = outputs(write_study(tmp_path / "other", {"MLE": AUDITED}, metrics=["retrieval/recall"]))
    assert "Blind audit" not in terminal and "Blind audit</h2>" in page


def test_chance_is_no_headline_unless_it_is_named(tmp_path):
    results = write_study(tmp_path, {"MLE": AUDITED})
    assert results.metrics == ["caption/exact", "vqa/accuracy", "retrieval/recall"]
    assert results.all_metrics == [*results.metrics, "retrieval/chance_r1"]
    terminal, markdown, page = outputs(results)
    assert "0.042" not in terminal + markdown and "1 more metric<" in page and "0.042" in page
    named = write_study(tmp_path / "named", {"MLE": AUDITED}, metrics=["retrieval/chance_r1"])
    assert named.metrics == ["retrieval/chance_r1"]


def test_names_say_what_they_are():
    assert audited("vqa/blind/text_only/accuracy") == ("vqa/accuracy", "text_only")
    assert audited("vqa/accuracy") is audited("vqa/blindness/a/b") is audited("vqa/blind/accuracy") is None
    assert is_chance("retrieval/chance_r1") and not is_chance("chance_x/accuracy")
    assert is_chance("chair/mentions") and is_chance("chair/length") and is_chance("pope/random_yes_ratio")
    assert not is_chance("my/mentions") and not is_chance("my/length")  # of one's own, whatever they mean
    names = ("a/perplexity", "a/nats", "a/mean_error", "a/distance", "a/exact", "a/terror", "a/sentence",
             "chair/sentence", "chair/instance", "chair/recall")  # fmt: skip
    lower = {name for name in names if lower_is_better(name)}
    assert lower == {"a/perplexity", "a/nats", "a/mean_error", "a/distance", "chair/sentence", "chair/instance"}
