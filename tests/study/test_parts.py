"""Baseline, oracle and placebo are arms, one each, and the report knows them again."""

from pathlib import Path

import pytest

from alignlab.study import Study
from alignlab.study.file import StudyFile, read
from alignlab.study.results import Results

ARMS = """
base: base.yaml
arms: {MLE: {objective: MLE}, truth: {objective: InfoNCE}, noise: {objective: MLE, optimization: {lr: 1e-4}}}
"""


def write(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text("data: Scenes\nbackbone: {path: scenes-parts}\nevaluators: [CaptionAccuracy]\n")
    (folder / "mine.yaml").write_text(ARMS + text)
    return folder / "mine.yaml"


def checked(folder: Path, text: str) -> tuple[StudyFile, list[str]]:
    faults: list[str] = []
    return read(write(folder, text), (), faults), faults


def test_oracle_and_placebo_are_told_from_the_other_arms_in_the_results(tmp_path):
    study = Study.load(write(tmp_path, "oracle: truth"), directory=tmp_path / "out", overrides=["placebo=noise"])
    study.save("")
    assert Results.read(tmp_path / "out").parts == {"MLE": "baseline", "truth": "oracle", "noise": "placebo"}


def test_a_study_need_not_have_them(tmp_path):
    file, faults = checked(tmp_path, "oracle: null")
    assert (file.baseline, file.oracle, file.placebo, faults) == ("MLE", None, None, [])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("oracle: trut", "oracle: no arm is called 'trut'; did you mean 'truth'?"),
        ("placebo: [noise]", "placebo: no arm is called ['noise']; did you mean 'noise'?"),
        ("baseline: {a: b}", "baseline: no arm is called {'a': 'b'}; there is MLE, truth, noise"),
        ("oracle: MLE", "oracle: 'MLE' is the baseline already; an arm plays one part"),
        ("baseline: noise\nplacebo: noise", "placebo: 'noise' is the baseline already; an arm plays one part"),
        ("oracle: truth\nplacebo: truth", "placebo: 'truth' is the oracle already; an arm plays one part"),
        (
            "metrics: [vqa/blind/text_only/accuracy, vqa/accuracy]",
            "metrics: a blind score stands beside its metric in the report; name vqa/accuracy instead",
        ),
    ],
)
def test_a_fault_is_one_line(tmp_path, text, fault):
    assert checked(tmp_path, text)[1] == [fault]
