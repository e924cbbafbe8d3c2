"""Axes multiply arms, are walked in full or together, and every arm is compared with its like."""

from pathlib import Path

import pytest

from alignlab.errors import InputError
from alignlab.study import Study
from alignlab.study.file import StudyFile, read

BASE = """
data: Scenes
backbone: {path: scenes-parts, fresh: [projector]}
optimization: {lr: 2e-3}
trainer: {max_steps: 4}
evaluators: [CaptionAccuracy]
"""
TWO = "arms: {MLE: {objective: MLE}, InfoNCE: {objective: InfoNCE}}\n"
LR = "optimization.lr: [1e-3, 2e-3]"
SIZES = "size: {small: {data: {init_args: {num_train: 64}}}, large: {base: large.yaml}}"


def write(folder: Path, text: str) -> Path:
    (folder / "base.yaml").write_text(BASE)
    (folder / "large.yaml").write_text("data: {class_path: Scenes, init_args: {num_train: 128}}\n")
    (folder / "mine.yaml").write_text("base: base.yaml\n" + text)
    return folder / "mine.yaml"


def checked(folder: Path, text: str, *changes: str) -> tuple[StudyFile, list[str]]:
    faults: list[str] = []
    return read(write(folder, text), changes, faults), faults


def arms(folder: Path, text: str, *changes: str) -> list[str]:
    file, faults = checked(folder, text, *changes)
    assert faults == []
    return list(file.arms)


def test_every_arm_stands_at_every_point(tmp_path):
    assert arms(tmp_path, f"{TWO}axes: {{{LR}, {SIZES}}}") == [
        f"{arm}, lr {lr}, {size}"
        for arm in ("MLE", "InfoNCE")
        for lr in ("0.001", "0.002")
        for size in ("small", "large")
    ]


def test_arms_may_be_left_out_where_there_are_axes(tmp_path):
    assert arms(tmp_path, f"axes: {{{LR}}}") == ["lr 0.001", "lr 0.002"]
    assert checked(tmp_path, f"axes: {{{LR}}}")[0].baseline == "lr 0.001"


def test_axes_that_are_zipped_are_walked_together(tmp_path):
    axes = f"axes: {{{LR}, seeded: {{a: {{}}, b: {{}}}}, {SIZES}}}"
    names = arms(tmp_path, f"{axes}\nzip: [[optimization.lr, size]]")
    assert names == ["lr 0.001, a, small", "lr 0.001, b, small", "lr 0.002, a, large", "lr 0.002, b, large"]


def test_what_matches_all_of_an_exclusion_is_left_out(tmp_path):
    text = f"{TWO}axes: {{{LR}, {SIZES}}}\n"
    names = arms(tmp_path, text + "exclude: [{arm: InfoNCE, optimization.lr: 0.002}, {size: large, arm: MLE}]")
    assert names == [
        *("MLE, lr 0.001, small", "MLE, lr 0.002, small"),
        *("InfoNCE, lr 0.001, small", "InfoNCE, lr 0.001, large"),
    ]
    assert arms(tmp_path, text, "exclude=[{optimization.lr: lr 0.001}]")[0] == "MLE, lr 0.002, small"


def test_an_arm_is_compared_with_the_baseline_at_its_own_point(tmp_path):
    file, faults = checked(tmp_path, f"{TWO}axes: {{{LR}}}\nbaseline: MLE")
    assert faults == [] and file.baseline == "MLE, lr 0.001"
    assert file.against == {"InfoNCE, lr 0.002": "MLE, lr 0.002"}
    assert checked(tmp_path, f"{TWO}axes: {{{LR}}}")[0].against == file.against
    assert checked(tmp_path, f"{TWO}axes: {{{LR}}}\nbaseline: MLE, lr 0.001")[0].against == {}


def test_an_arm_named_as_it_is_written_is_meant_at_the_same_point(tmp_path):
    three = TWO.replace("}}\n", "}, own: {objective: MLE, against: InfoNCE}}\n")
    file, faults = checked(tmp_path, f"{three}axes: {{{LR}}}\nbaseline: MLE, lr 0.001")
    assert faults == []
    assert file.against == {"own, lr 0.001": "InfoNCE, lr 0.001", "own, lr 0.002": "InfoNCE, lr 0.002"}
    lacking = f"{three}axes: {{{LR}}}\nexclude: [{{arm: InfoNCE, optimization.lr: 0.002}}]"
    assert "arm own, lr 0.002: against: InfoNCE is excluded at this point of the axes" in checked(tmp_path, lacking)[1]


CLAIM = "claims: [{arm: %s, metric: caption/exact, direction: higher, smallest: 0.01}]"


def test_claims_name_one_point(tmp_path):
    text = f"{TWO}axes: {{{LR}}}\n"
    file, faults = checked(tmp_path, text + CLAIM % '"InfoNCE, lr 0.002"')
    assert faults == [] and file.claims[0].against == "MLE, lr 0.002"
    several = "claims: number 1: arm: InfoNCE stands for 2 arms: InfoNCE, lr 0.001; InfoNCE, lr 0.002; name one of them"
    assert checked(tmp_path, text + CLAIM % "InfoNCE")[1] == [several]
    one = "exclude: [{arm: InfoNCE, optimization.lr: 0.001}]\n"
    assert checked(tmp_path, text + one + CLAIM % "InfoNCE")[0].claims[0].arm == "InfoNCE, lr 0.002"


@pytest.mark.parametrize(("text", "fault"), [
    ("axes: 3", "axes: expected a mapping of names to values"),
    ("axes: {lr: 3}", "axes: lr: expected a mapping of labels to overrides, or a list of values, got 3"),
    ("axes: {optimization.lr: []}", "axes: optimization.lr: expected a dotted key with a list of at least one value"),
    ("axes: {arm: [1]}", "axes: arm: exclude calls the arms so"),
    ("axes: {size: {1: {}}}", "axes: size: 1: a label must be text"),
    ("axes: {size: {small: 3}}", "axes: size: small: expected a mapping of experiment keys, or experiment files"),
    (f"axes: {{{LR}}}\nzip: [[optimization.lr, siz]]", "zip: no axis is called 'siz'"),
    (f"axes: {{{LR}}}\nzip: [[[optimization.lr], optimization.lr]]", "zip: no axis is called ['optimization.lr']"),
    (f"axes: {{{LR}, size: {{small: {{}}}}}}\nzip: [[optimization.lr, size]]", "have: optimization.lr 2, size 1"),
    (f"axes: {{{LR}, {SIZES}}}\nzip: [[size, optimization.lr], [size, optimization.lr]]",
     "size stands there more than"),
    (f"axes: {{{LR}}}\nzip: optimization.lr", "zip: expected a list of lists of at least two axes"),
    (f"axes: {{{LR}}}\nexclude: [{{optimisation.lr: 0.001}}]",
     "number 1: optimisation.lr: no axis is called so; did you mean 'optimization.lr'?"),
    (f"axes: {{{LR}}}\nexclude: [{{optimization.lr: 0.003}}]", "number 1: optimization.lr: has no value 0.003"),
    (f"axes: {{{LR}}}\nexclude: [{{arm: MLA}}]", "number 1: arm: no arm is written 'MLA'; did you mean 'MLE'?"),
    (f"axes: {{{LR}}}\nexclude: [{{arm: MLE}}, {{arm: MLE, optimization.lr: 0.001}}, {{arm: InfoNCE}}]",
     "exclude: it leaves no arm"),
    (f"axes: {{{LR}, {SIZES}}}\nzip: [[optimization.lr, size]]\nexclude: [{{size: small, optimization.lr: 0.002}}]",
     "exclude: number 1 leaves nothing out"),
    (f"axes: {{{LR}}}\nbaseline: MLA", "baseline: no arm is called 'MLA'; did you mean 'MLE"),
    ("axes: {x: {a b: {}, a-b: {}}}", "axes: 'MLE, a b' and 'MLE, a-b' would share a directory"),
])  # fmt: skip
def test_a_fault_of_the_axes_is_named(tmp_path, text, fault):
    assert any(fault in line for line in checked(tmp_path, TWO + text)[1])


def test_axes_lie_over_the_arms_and_under_the_command_line(tmp_path):
    text = """
overrides: {optimization: {lr: 5e-3}}
arms: {MLE: {objective: MLE, optimization: {lr: 4e-3}}, InfoNCE: {objective: InfoNCE}}
axes: {optimization.lr: [1e-3, 2e-3], objective.scale: [10.0], size: {large: large.yaml}}
exclude: [{arm: MLE, objective.scale: 10.0}]
"""
    study = Study.load(write(tmp_path, text), directory=tmp_path / "out")
    assert [cell.config["optimization"]["lr"] for cell in study.cells] == [1e-3, 2e-3]
    assert study.cells[1].config["objective"]["init_args"]["scale"] == 10.0
    assert study.cells[1].config["data"]["init_args"]["num_train"] == 128
    assert study.cells[1].differs == {"optimization.lr": 2e-3}
    study = Study.load(write(tmp_path, text), directory=tmp_path / "out", overrides=["optimization.lr=7e-3"])
    assert [cell.config["optimization"]["lr"] for cell in study.cells] == [7e-3] * 2
    assert "InfoNCE, lr 0.002, scale 10, large is the same config as" in study.notes[0]


def test_what_the_study_decides_is_no_axis_and_its_faults_are_told_once(tmp_path):
    text = f"{TWO}starts: [scenes-parts]\naxes: {{seed: [1, 2], x: {{a: nowhere.yaml}}, trainer.max_steps.deep: [3]}}"
    with pytest.raises(InputError) as caught:
        Study.load(write(tmp_path, text), directory=tmp_path / "out")
    message = str(caught.value)
    assert message.count("axes: seed: seed: a study's seeds stand under its key 'seeds'") == 1
    assert message.count("nowhere.yaml: no such file") == 1
    assert message.count("has nothing below it") == 1
