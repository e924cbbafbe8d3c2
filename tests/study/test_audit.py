"""Arms are matched in budget and in what they are asked, stages included; costs are told."""

import json
from types import SimpleNamespace

import pytest
import yaml
from records import write_study
from rich.console import Console

from alignlab.study.audit import arm_costs, mismatches, total_costs, tried
from alignlab.study.costsheet import SHORT, cost_sheet
from alignlab.study.report import report
from alignlab.study.results import Results

SCORES = {"caption/exact": (0.5, 0.6)}
FLOPS = {"forward": 1e12, "backward": 2e12}


@pytest.fixture
def study(tmp_path):
    """MLE, and an arm whose cells share a stage of training and one of pairs."""
    write_study(tmp_path, {"MLE": SCORES, "own": SCORES})
    change(tmp_path, "MLE", steps=200, samples=6400, tokens=1000, flops=FLOPS, peak_memory_mib=500)
    change(tmp_path, "own", steps=40, samples=1280, tokens=300, flops=FLOPS, peak_memory_mib=400)
    trained = {"steps": 160, "samples": 5120, "tokens": 800, "flops": FLOPS, "peak_memory_mib": 600}
    trained |= {"parameters": {"total": 2000, "trained": 1000}, "seconds": {"fit": 20.0, "evaluate": 0.0}}
    pairs = {"pairs": {"kept": 9}, "seconds": {"pairs": 7.0}, "peak_memory_mib": 450}
    for name, metrics in (("model", trained), ("pairs", pairs)):
        (tmp_path / "stages" / name).mkdir(parents=True)
        (tmp_path / "stages" / name / "metrics.json").write_text(json.dumps(metrics))
    for seed in range(2):
        places = {name: f"../../../stages/{name}" for name in ("model", "pairs")}
        (tmp_path / f"cells/own/own{seed}/stages.json").write_text(json.dumps(places))
    return tmp_path


def change(directory, arm, **metrics):
    for file in (directory / "cells" / arm).glob("*/metrics.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | metrics))


def ask(directory, arm, *items, **settings):
    """Say what the caption evaluator of an arm asked."""
    for cell in (directory / "cells" / arm).iterdir():
        config = {"evaluators": [{"class_path": "CaptionAccuracy", "init_args": {"batch_size": 8, **settings}}]}
        (cell / "config.yaml").write_text(yaml.safe_dump(config))
        lines = [json.dumps({"id": id, "prompt": prompt, "reference": "a"}) + "\n" for id, prompt in items]
        (cell / "items" / "caption.jsonl").write_text("".join(lines))


def test_stages_count_in_every_cell_and_once_in_the_study(study):
    results = Results.read(study)
    assert mismatches(results, "own") == []  # 160 + 40 steps, 5120 + 1280 samples
    own, whole, total = arm_costs(results, "own", stages=False), arm_costs(results, "own"), total_costs(results)
    assert (own.samples, own.training, own.memory) == (1280, 30, 400)
    assert (whole.samples, whole.tokens, whole.training, whole.memory) == (6400, 1100, 30 + 20 + 7, 600)
    assert (whole.forward, whole.backward, whole.evaluation) == (2e12, 4e12, 3)
    # Two cells of MLE, two of own, and the stages.
    assert (total.samples, total.training) == (2 * 6400 + 2 * 1280 + 5120, 4 * 30 + 27)
    change(study, "own", samples=1300)
    notes = mismatches(Results.read(study), "own")
    assert len(notes) == 1 and "samples of own and MLE differ (6\u202f420 against 6\u202f400)" in notes[0]


def test_a_stage_whose_record_is_gone_leaves_the_match_unknown(study):
    (study / "stages/model/metrics.json").unlink()
    results = Results.read(study)
    (note,) = mismatches(results, "own")
    assert note.startswith("Not known whether steps and samples of own and MLE match") and "command" not in note
    assert arm_costs(results, "own").samples is None and arm_costs(results, "own", stages=False).samples == 1280


def test_one_differing_seed_is_enough_not_to_match(study):
    file = study / "cells/own/own1/metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": 41}))
    assert "steps of own and MLE differ (201 against 200)" in mismatches(Results.read(study), "own")[0]


def test_trained_weights_match_within_one_percent_and_the_parts_are_named(study):
    parts = {"projector": {"total": 500, "trained": 500}, "language_model": {"total": 1500, "trained": 500}}
    change(study, "MLE", parameters={"total": 2000, "trained": 1000, "parts": parts})
    (study / "cells/own/own0/stages.json").unlink()
    (study / "cells/own/own1/stages.json").unlink()
    change(study, "own", steps=200, samples=6400)
    for trained, matched in ((1010, True), (1011, False)):
        more = parts | {"adapters": {"total": 99, "trained": trained - 1000}}
        change(study, "own", parameters={"total": 2099, "trained": trained, "parts": more})
        notes = mismatches(Results.read(study), "own")
        assert (notes == []) == matched
    assert "(1\u202f011 against 1\u202f000: adapters 11 against 0)" in notes[0]


def test_what_an_evaluator_asks_is_matched_for_its_metrics_alone(study):
    change(study, "MLE", scores={"caption/exact": 0.5})
    change(study, "own", scores={"caption/exact": 0.6})
    ask(study, "MLE", ("a", "what ?"), ("b", "what ?"), max_new_tokens=8, num_pictures=1)
    ask(study, "own", ("a", "what ?"), ("b", "what ?"), max_new_tokens=8, num_pictures=9)
    assert mismatches(Results.read(study), "own") == []
    ask(study, "own", ("a", "who ?"), ("c", "what ?"), max_new_tokens=16)
    results = Results.read(study)
    (note,) = mismatches(results, "own", metric="caption/exact")
    assert "max_new_tokens 16 against 8" in note and "2 examples against 2, of which 1 are the same" in note
    assert "other prompts" in note and mismatches(results, "own", metric="vqa/accuracy") == []
    (row,) = [row for row in cost_sheet(results).rows if row[0].text == "own"]
    assert row[1].text == "not matched: caption"


def test_another_reference_may_be_asked_for(study):
    results = Results.read(study)
    assert mismatches(results, "MLE") == [] and mismatches(results, "MLE", "own") == []
    change(study, "own", steps=41)
    assert len(mismatches(Results.read(study), "MLE", "own")) == 1


def test_arms_that_were_tuned_longer_are_not_matched(study):
    results = Results.read(study)
    assert tried(results, "own") is None
    object.__setattr__(results, "tuning", SimpleNamespace(tried={"own": 4}))
    assert (tried(results, "own"), tried(results, "MLE")) == (4, 1)
    assert "settings tried of own and MLE differ (4 against 1)" in mismatches(results, "own")[0]
    object.__setattr__(results, "tuned", {"own, tuned": "own"})
    assert (tried(results, "own"), tried(results, "own, tuned")) == (1, 4)
    assert cost_sheet(results).header[-1].text == "settings tried"


def test_costs_stand_in_every_output_and_older_runs_lack_some(study):
    console = Console(record=True, width=120)
    report(study, console=console)
    markdown, page = (study / "report.md").read_text(), (study / "report.html").read_text()
    assert "| own | matched | 200, own 40 | 6\u202f400, own 1\u202f280 | 1\u202f000 | 2\u202f000 |" in markdown
    assert "2 T (2.00×), own 1 T" in markdown and "57 s (1.90×), own 30 s" in markdown
    assert "took 2 min 39 s and 15 TFLOPs of training" in markdown
    assert "Budget and costs" in page and "2 T (2.00×), own 1 T" in page and "matched" in console.export_text()
    for file in study.glob("*/*/*/metrics.json"):
        kept = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("flops", "tokens")}
        file.write_text(json.dumps(kept))
    header = [item.text for item in cost_sheet(Results.read(study)).header]
    assert "tokens" not in header and "FLOPs forward" not in header and "samples" in header
    assert len(cost_sheet(Results.read(study), SHORT).header) == 6
