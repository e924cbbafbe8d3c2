"""What a study is expected to show is checked, known by a hash, and dated when it is first run with."""

import json

import pytest

from alignlab.errors import InputError
from alignlab.study import Study
from alignlab.study.claims import Claim, register, registered

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
    lines = register([CLAIM], [], {"CAL": 2, "MLE": 3, "InfoNCE": 4})
    assert lines[0]["seen"] == 5
    (back,) = registered(json.loads(json.dumps(lines)))
    assert back.claim == CLAIM and back.claim.hash == lines[0]["hash"] and back.seen == 5


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
