"""What a study is expected to show is checked, known by a hash, and dated when it is first run with."""

import json
from dataclasses import replace

import pytest

from alignlab.errors import InputError
from alignlab.study import Study
from alignlab.study.claims import Claim, register, registered
from alignlab.study.evidence import registration
from alignlab.study.tuning import Tuning

STUDY = """
base: base.yaml
arms: {MLE: {objective: MLE}, CAL: {objective: CAL}, InfoNCE: {objective: InfoNCE}}
claims: %s
"""
GOOD = "[{arm: CAL, metric: caption/exact, direction: higher, smallest: 0.01, says: better}]"
CLAIM = Claim("CAL", "MLE", "caption/exact", "higher", 0.01, "better")


@pytest.fixture
def load(tmp_path):
    (tmp_path / "base.yaml").write_text("data: Scenes\nbackbone: {path: scenes-parts}\ntrainer: {max_steps: 4}\n")

    def load(claims: str) -> Study:
        (tmp_path / "mine.yaml").write_text(STUDY % claims)
        return Study.load(tmp_path / "mine.yaml", directory=tmp_path / "out")

    return load


def test_claims_are_against_what_the_arm_is_compared_with_and_dated_once(load):
    study = load(GOOD)
    assert study.claims == (CLAIM,)
    study.save("alignlab")
    manifest = study.directory / "study.json"
    first = json.loads(manifest.read_text())
    assert first["claims"][0]["seen"] == 0
    first["claims"][0]["date"] = "2020-01-01T00:00:00Z"
    manifest.write_text(json.dumps(first))
    load(GOOD.replace("better", "much better")).save("alignlab")  # words may change
    assert json.loads(manifest.read_text())["claims"][0]["date"] == "2020-01-01T00:00:00Z"
    load(GOOD.replace("0.01", "0.02")).save("alignlab")
    assert json.loads(manifest.read_text())["claims"][0]["date"] > "2026"


def test_claims_made_after_results_say_so():
    lines = register([CLAIM], [], {"CAL": 2, "MLE": 3, "InfoNCE": 4}, {"CAL": 1})
    assert lines[0]["seen"] == 5
    (back,) = registered(json.loads(json.dumps(lines)))
    assert back.claim == CLAIM and back.claim.hash == lines[0]["hash"] and (back.seen, back.dropped) == (5, 1)


def test_results_that_a_study_no_longer_has_were_known_all_the_same(load):
    study = load(GOOD)
    study.save("alignlab")
    for cell in study.cells:
        cell.directory.mkdir(parents=True)
        (cell.directory / "metrics.json").write_text(json.dumps({"config_hash": cell.digest, "scores": {}}))
    base = study.directory.parent / "base.yaml"
    base.write_text(base.read_text().replace("max_steps: 4", "max_steps: 5"))
    load(GOOD.replace("}]", f"}}, {GOOD[1:-1].replace('higher', 'lower')}]")).save("alignlab")
    kept, new = registered(json.loads((study.directory / "study.json").read_text())["claims"])
    assert (kept.seen, kept.dropped) == (0, 2) and registration(kept).endswith(
        "before any cell of its arms had finished; 2 finished cells of its arms, with other settings, left out since"
    )
    assert (new.seen, new.dropped) == (2, 2)


def test_a_claim_of_a_tuned_arm_is_made_after_the_results_of_the_arm_at_its_default(load):
    study = load("[]")
    study.save("alignlab")
    for cell in study.cells:
        cell.directory.mkdir(parents=True)
        (cell.directory / "metrics.json").write_text("{}")
    metric = {arm: "caption/exact" for arm in study.arms}
    tuning = Tuning({arm: ("default", "more") for arm in study.arms}, metric, {}, {}, {}, study.arms)
    replace(study, tuning=tuning, claims=(replace(CLAIM, arm="CAL, tuned", against="MLE, tuned"),)).save("alignlab")
    assert json.loads((study.directory / "study.json").read_text())["claims"][0]["seen"] == 2


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ("yes", "expected a list"),
        ("[CAL]", "number 1: expected {arm"),
        ("[{arm: CAL}]", "number 1: metric is missing"),
        (GOOD.replace("CAL", "CLA"), "no arm is called 'CLA'; did you mean 'CAL'?"),
        (GOOD.replace("CAL", "MLE"), "'MLE' is the arm itself"),
        (GOOD.replace("higher", "better"), "expected higher or lower, got 'better'"),
        (GOOD.replace("0.01", "0"), "expected a number above 0"),
        (GOOD.replace("says", "said"), "unknown key 'said'"),
        (GOOD.replace("]", f", {GOOD[1:-1]}]"), "stands there twice"),
    ],
)
def test_what_is_wrong_with_claims_is_said(load, claims, said):
    with pytest.raises(InputError, match="claims: ") as caught:
        load(claims)
    assert said in str(caught.value)
