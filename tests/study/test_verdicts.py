"""One rule says what may be said of a difference, of arms and of registered claims."""

import json
from pathlib import Path

import numpy as np
import pytest
from records import write_cell, write_study

from alignlab.study.claims import Claim, Registered
from alignlab.study.comparison import caveats, compare, power, summary
from alignlab.study.results import Results
from alignlab.study.statistics import mean_interval
from alignlab.study.verdicts import RULE, judge

MLE = [0.5, 0.6, 0.7, 0.6]
CLEAR = [0.6, 0.71, 0.8, 0.71]  # +0.105, half width 3.1824 * 0.0057735 / 2 = 0.0092


def claimed(results: Results, direction: str = "higher", smallest: float = 0.05, **names: str):
    names = {"arm": "own", "against": "MLE", "metric": "caption/exact"} | names
    return judge(results, Registered(Claim(direction=direction, smallest=smallest, **names), "2026-01-01T00:00:00Z", 0))


def study(directory: Path, own: list[float], **arms: list[float]) -> Results:
    values = {"MLE": MLE, "own": own} | arms
    return write_study(directory, {arm: {"caption/exact": numbers} for arm, numbers in values.items()})


def write_starts(directory: Path, arms: dict[str, dict[tuple[str, int], list[float]]]) -> Results:
    """A study of several starts that keeps items: values by arm, start and seed; the first arm is the baseline."""
    cells = []
    for arm, found in arms.items():
        for (start, seed), values in found.items():
            digest = f"{arm}-{start}-{seed}"
            place = f"cells/{digest}"
            cells.append(dict(arm=arm, start=start, seed=seed, directory=place, digest=digest, differs={}))
            write_cell(directory / place, 0.0, scores={"vqa/accuracy": float(np.mean(values))})
            items = [{"id": f"{i}", "score": v, "metrics": {"accuracy": v}} for i, v in enumerate(values)]
            lines = "".join(json.dumps(item) + "\n" for item in items)
            (directory / place / "items/vqa.jsonl").write_text(lines)
    starts, seeds = (sorted({key[i] for found in arms.values() for key in found}) for i in (0, 1))
    own = dict(name="mine", description="", command="", arms=[*arms], starts=starts, seeds=seeds)
    own |= dict(baseline=next(iter(arms)), metrics=[], notes=[], cells=cells)
    (directory / "study.json").write_text(json.dumps(own))
    return Results.read(directory)


@pytest.mark.parametrize(
    ("own", "direction", "smallest", "verdict", "why"),
    [
        (CLEAR, "higher", 0.05, "supported", "the interval excludes 0 and all 4 seeds agree in sign"),
        (CLEAR, "lower", 0.05, "not supported", "the difference goes the other way"),
        (CLEAR, "higher", 0.2, "not supported", "there is a difference, but the interval excludes +0.200"),
        ([0.51, 0.6, 0.69, 0.6], "higher", 0.05, "not supported", "the interval excludes +0.050, the smallest"),
        ([0.51, 0.6, 0.69, 0.6], "lower", 0.05, "not supported", "the interval excludes −0.050, the smallest"),
        ([0.7, 0.5, 0.9, 0.6], "higher", 0.05, "inconclusive", "includes both 0 and effects of +0.050 and more"),
        (MLE, "higher", 0.05, "inconclusive", "the same difference in every seed tells no spread"),
        ([0.6, 0.7, 0.8, 0.7], "higher", 0.05, "inconclusive", "the same difference in every seed tells no spread"),
        ([0.9], "higher", 0.05, "inconclusive", "a single seed allows no interval"),
        ([], "higher", 0.05, "inconclusive", "no start and seed of own and MLE is finished"),
    ],
)
def test_verdicts_of_claims(tmp_path, own, direction, smallest, verdict, why):
    judged = claimed(study(tmp_path, own), direction, smallest)
    assert judged.finding.verdict == verdict and why in judged.finding.why
    assert judged.entry.finding == judged.finding and (judged.entry.difference is None) == (own == [])


def test_the_units_needed_are_more_than_there_are_and_enough(tmp_path):
    # differences 0.06, 0.01, 0.09, 0.02 are 0.045 on average, standard deviation 0.0370
    needed = claimed(study(tmp_path, [0.56, 0.61, 0.79, 0.62])).finding.needed
    few = compare(study(tmp_path / "few", [0.56, 0.61, 0.79, 0.62]), "own", "caption/exact")
    assert needed == few.finding.needed == 8
    samples = np.random.default_rng(0).normal(0.045, 0.0370, size=(2, 2000, 8))
    shown = [np.mean([mean_interval(values[:n]).excludes_zero for values in samples[0]]) for n in (7, 8)]
    assert shown[0] < 0.83 and shown[1] > 0.78


def test_a_unit_of_the_other_sign_forbids_support(tmp_path):
    values = [0.5] * 12
    own = [0.6, 0.61, 0.59, 0.6, 0.62, 0.58, 0.6, 0.61, 0.59, 0.6, 0.6, 0.499]
    results = write_study(tmp_path, {"MLE": {"m": values}, "own": {"m": own}})
    entry = compare(results, "own", "m")
    assert entry.clear and entry.finding.verdict == "inconclusive" and entry.finding.needed is None
    assert entry.finding.why == "the interval excludes 0, but 1 of 12 seeds do not agree in sign"


def test_a_comparison_that_is_not_matched_supports_nothing(tmp_path):
    results = study(tmp_path, CLEAR, other=[0.9, 1.0, 1.11, 1.02])
    for seed in range(4):
        place = tmp_path / f"cells/own/own{seed}/metrics.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"samples": 2560}))
    results = Results.read(tmp_path)
    for finding in (claimed(results).finding, compare(results, "own", "caption/exact").finding):
        assert finding.verdict == "inconclusive" and "not matched" in finding.why and "samples of own" in finding.why
    refuted = claimed(results, "lower").finding
    assert refuted.verdict == "not supported" and "samples of own" in refuted.why
    # the two arms of the claim decide, whatever the study compares them with
    apart = claimed(results, arm="other", against="own").finding
    assert apart.verdict == "inconclusive" and "samples of other and own" in apart.why
    assert claimed(results, arm="other").finding.verdict == "supported"


def test_an_arm_is_supported_in_its_own_direction_and_never_refuted(tmp_path):
    results = study(tmp_path, CLEAR, same=[0.5, 0.61, 0.69, 0.6], less=[0.4, 0.49, 0.6, 0.49])
    verdicts = [compare(results, arm, "caption/exact").finding.verdict for arm in ("own", "same", "less")]
    assert verdicts == ["supported", "inconclusive", "supported"]
    assert compare(results, "MLE", "caption/exact").finding is None


def test_claims_of_arms_that_the_study_compares_share_its_correction(tmp_path):
    results = study(tmp_path, CLEAR, other=MLE)
    judged = claimed(results)
    assert judged.entry.p == 0.125 and judged.entry.p_holm == 0.25
    assert claimed(results, arm="other", against="own").entry.p_holm is None


def test_starts_are_the_units_where_there_are_several(tmp_path):
    base = {(start, seed): [0.0, 1.0, 0.0, 1.0] for start in "abc" for seed in (0, 1)}
    own = {key: [1.0, 1.0, 0.0, 1.0] if key[1] == 0 else [0.0, 1.0, 0.0, 1.0] for key in base}
    own["b", 0] = [1.0, 1.0, 1.0, 1.0]
    entry = compare(write_starts(tmp_path, {"MLE": base, "own": own}), "own", "vqa/accuracy")
    # of the cells' differences 0.25 and 0, 0.5 and 0, 0.25 and 0 a start has the mean
    assert len(entry.differences) == 6 and entry.spread.units == (0.125, 0.25, 0.125)
    assert entry.p == 0.25 and entry.improvement == 1 and entry.spread.items == 4
    assert entry.improvement_interval.low == pytest.approx(0.025 ** (1 / 3))


def test_items_widen_the_interval_where_all_cells_judged_the_same(tmp_path):
    generator = np.random.default_rng(0)
    base = {(start, 0): (generator.random(100) < 0.5).astype(float).tolist() for start in "abc"}
    fixed = generator.random(100) < 0.4  # the same items are right in every start
    own = {key: np.maximum(values, fixed).tolist() for key, values in base.items()}
    results = write_starts(tmp_path, {"MLE": base, "own": own})
    entry = compare(results, "own", "vqa/accuracy")
    table = np.array([own[key] for key in base]) - np.array([base[key] for key in base])
    assert entry.spread.items == 100 and entry.spread.units == pytest.approx(table.mean(axis=1))
    by_hand = 3 * table.mean(axis=0).var(ddof=1)  # MI
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    assert entry.spread.item_error**2 == pytest.approx((by_hand - (rest**2).sum() / 198) / 300)
    assert entry.difference.half_width > mean_interval(entry.spread.units).half_width
    assert "the variance of the items is inside" in " ".join(caveats(results))

    file = next((tmp_path / "cells").glob("own-a-0/items/vqa.jsonl"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))  # its mean is the score no longer
    results = Results.read(tmp_path)
    entry = compare(results, "own", "vqa/accuracy")
    assert entry.spread.items is None and entry.difference == mean_interval(entry.spread.units)
    assert "over starts alone" in " ".join(caveats(results))


def test_items_of_other_names_are_not_matched(tmp_path):
    values = {(start, 0): [0.0, 1.0, 1.0] for start in "ab"}
    write_starts(tmp_path, {"MLE": values, "own": values})
    file = tmp_path / "cells/own-b-0/items/vqa.jsonl"
    file.write_text(file.read_text().replace('"id": "2"', '"id": "3"'))
    results = Results.read(tmp_path)
    assert compare(results, "own", "vqa/accuracy").spread.items is None


def test_reports_say_the_rule_the_units_and_what_a_test_can_show(tmp_path):
    base = {(start, seed): [0.0, 1.0] for start in "abc" for seed in (0, 1)}
    results = write_starts(tmp_path, {"MLE": base, "own": base, "two": base})
    notes = caveats(results)
    assert RULE in notes and not any("There is one start" in note for note in notes)
    assert "Corrected for 2 comparisons on a metric (Holm), that takes 7 starts." in power(results)
    assert summary(results)[1] == "own against MLE: the same on vqa/accuracy."
    assert any("There is one start" in note for note in caveats(study(tmp_path / "one", CLEAR)))
