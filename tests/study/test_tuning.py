"""Every arm gets the same few settings, chosen on validation data; what was chosen is an arm of its own."""

import json
from collections.abc import Callable

import pytest

from alignlab.errors import InputError
from alignlab.study import Study, run_study
from alignlab.study.cell import run_cell
from alignlab.study.plan import Cell
from alignlab.study.results import Results
from alignlab.study.running import compute
from alignlab.study.state import write_failure

BASE = """
data: Scenes
backbone: {path: scenes-parts, fresh: [projector]}
optimization: {lr: 2e-3}
trainer: {max_steps: 4}
evaluators: [CaptionAccuracy, TextPerplexity]
"""
ARMS = "arms: {MLE: {objective: MLE}, InfoNCE: {objective: InfoNCE}}\nseeds: [0, 1]\n"
TUNE = "tune: {settings: {optimization.lr: [1e-3, 4e-3]}, metric: caption/exact}\n"


@pytest.fixture
def load(tmp_path):
    """Write a study beside a base, load it, and make the directory its own."""
    (tmp_path / "base.yaml").write_text(BASE)

    def load(text: str, *overrides: str) -> Study:
        (tmp_path / "mine.yaml").write_text("base: base.yaml\n" + text)
        study = Study.load(tmp_path / "mine.yaml", directory=tmp_path / "out", overrides=overrides)
        study.save("")
        return study

    return load


def finish(cell: Cell, **scores: float) -> None:
    """Leave what a finished run leaves."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    (cell.directory / "config.yaml").write_text(f"# alignlab run, digest {cell.digest}\n")
    content = {"config_hash": cell.digest, "scores": {name.replace("__", "/"): x for name, x in scores.items()}}
    (cell.directory / "metrics.json").write_text(json.dumps(content))


def fail(cell: Cell) -> None:
    cell.directory.mkdir(parents=True, exist_ok=True)
    (cell.directory / "config.yaml").write_text(f"# alignlab run, digest {cell.digest}\n")
    write_failure(cell.directory, "the loss is nan")


def lr(cell: Cell) -> float:
    return cell.config["optimization"]["lr"]


def test_every_arm_tries_its_own_config_and_the_settings_on_validation_data(load):
    study = load(ARMS + TUNE)
    assert study.pending and study.arms == ("MLE", "InfoNCE") and study.tuned == {}
    settings = [("default", 2e-3), ("lr 0.001", 1e-3), ("lr 0.004", 4e-3)]
    assert [(cell.arm, lr(cell), cell.seed) for cell in study.trials] == [
        (f"{arm}, trying {label}", value, 0) for arm in ("MLE", "InfoNCE") for label, value in settings
    ]
    assert {each["init_args"]["split"] for cell in study.trials for each in cell.config["evaluators"]} == {"val"}
    assert {each["init_args"]["split"] for cell in study.cells for each in cell.config["evaluators"]} == {"test"}
    assert not {cell.digest for cell in study.trials} & {cell.digest for cell in study.cells}
    assert len({cell.directory for cell in study.unique}) == 10
    assert study.trials[0].directory.parents[2] == study.directory  # where stages are shared from
    differs = [{}, {"optimization.lr": 1e-3}, {"optimization.lr": 4e-3}]
    assert [cell.differs for cell in study.trials] == [
        *differs, *({"objective": "InfoNCE", **each} for each in differs)
    ]  # fmt: skip
    assert "Tuned once all cells of their tuning are done: MLE; InfoNCE." in study.notes


def test_the_best_on_validation_data_becomes_an_arm_over_all_seeds(load):
    exact = {"MLE, trying lr 0.001": 0.9, "InfoNCE, trying default": 0.7}
    for cell in load(ARMS + TUNE).trials:
        finish(cell, caption__exact=exact.get(cell.arm, 0.5))
    study = load(ARMS + TUNE)
    assert not study.pending
    assert study.arms == ("MLE", "InfoNCE", "MLE, tuned", "InfoNCE, tuned")
    assert study.tuned == {"MLE, tuned": "MLE", "InfoNCE, tuned": "InfoNCE"}
    assert study.against == {"InfoNCE, tuned": "MLE, tuned"}  # and MLE, tuned with MLE
    tuned = [(cell.arm, lr(cell), cell.seed, cell.differs) for cell in study.cells[4:]]
    assert tuned == [
        *(("MLE, tuned", 1e-3, seed, {"optimization.lr": 1e-3}) for seed in (0, 1)),
        *(("InfoNCE, tuned", 2e-3, seed, {"objective": "InfoNCE", "optimization.lr": 2e-3}) for seed in (0, 1)),
    ]
    assert [cell.directory for cell in study.cells[6:]] == [cell.directory for cell in study.cells[2:4]]
    study.save("alignlab")
    results = Results.read(study.directory)
    assert results.tuned == study.tuned and results.tuning == study.tuning and not results.pending
    assert results.tuning.chosen == {"MLE": "lr 0.001", "InfoNCE": "default"}
    assert results.tuning.tried == {"MLE": 3, "InfoNCE": 3}
    assert results.tuning.scores["MLE"] == {"default": 0.5, "lr 0.001": 0.9, "lr 0.004": 0.5}
    assert [cell.finished for cell in results.trials] == [True] * 6
    claim = "claims: [{arm: InfoNCE, metric: caption/exact, direction: higher, smallest: 0.1}]\n"
    load(ARMS + TUNE + claim).save("alignlab")
    (registered,) = Results.read(study.directory).claims
    assert (registered.seen, registered.dropped) == (0, 0)  # cells of tuning show nothing of the test data


def test_less_is_better_where_the_metric_says_so_and_equal_settings_leave_the_own_config(load):
    text = ARMS + TUNE.replace("caption/exact", "{MLE: text/perplexity, InfoNCE: caption/exact}")
    for cell in load(text).trials:
        finish(cell, text__perplexity=3.0 if "0.004" in cell.arm else 5.0, caption__exact=0.5)
    assert load(text).tuning.chosen == {"MLE": "lr 0.004", "InfoNCE": "default"}


def test_a_setting_of_which_a_cell_failed_is_out(load):
    text = ARMS + TUNE.replace("}\n", ", seeds: [7, 8]}\n")
    for cell in load(text).trials:
        if cell.arm.startswith("InfoNCE") or ("0.004" in cell.arm and cell.seed == 8):
            fail(cell)
        else:
            finish(cell, caption__exact=0.9 if "0.004" in cell.arm else 0.2 if "0.001" in cell.arm else 0.1)
    study = load(text)
    assert study.tuning.chosen == {"MLE": "lr 0.001", "InfoNCE": None} and study.tuning.tried["MLE"] == 2
    assert study.arms == ("MLE", "InfoNCE", "MLE, tuned") and not study.pending
    assert "Tuning MLE: lr 0.004 has no caption/exact; it is out." in study.notes
    assert "InfoNCE, tuned is left out: none of its settings has a score." in study.notes


def test_a_setting_that_is_the_arm_s_own_config_is_no_other_one(load):
    study = load(ARMS + TUNE.replace("4e-3", "2e-3"))
    assert study.trials[0].directory == study.trials[2].directory and len(study.unique) == 8
    for cell in study.unique:  # what a launcher computes
        finish(cell, caption__exact=0.5)
    again = load(ARMS + TUNE.replace("4e-3", "2e-3"))
    assert again.tuning.tried == {"MLE": 2, "InfoNCE": 2} and not again.pending
    assert again.tuning.chosen == {"MLE": "default", "InfoNCE": "default"}


def test_a_cell_of_tuning_has_a_command_of_its_own(load, capsys):
    trial = load(ARMS + TUNE).trials[0]
    finish(trial, caption__exact=0.5)
    assert run_cell(trial.directory) == 0
    assert "is finished already" in capsys.readouterr().out


def scored(failing: str = "") -> Callable[[Study], list[Cell]]:
    """Finishes cells as a launcher does, the larger the learning rate the better."""

    def launch(study: Study) -> list[Cell]:
        study.save("alignlab")
        for cell in study.unique:
            if cell.state != "finished":
                fail(cell) if cell.arm == failing else finish(cell, caption__exact=lr(cell))
        return [cell for cell in study.unique if cell.state == "failed"]

    return launch


def test_a_study_is_launched_again_until_nothing_is_pending(load, tmp_path):
    study = load(ARMS + TUNE)
    _, failed = compute(study, lambda: load(ARMS + TUNE), scored("InfoNCE, trying lr 0.004"), "alignlab")
    results = Results.read(tmp_path / "out")
    assert results.arms == ("MLE", "InfoNCE", "MLE, tuned", "InfoNCE, tuned") and not results.pending
    assert all(cell.finished for cell in results.cells) and [cell.arm for cell in failed] == [
        "InfoNCE, trying lr 0.004"
    ]
    assert results.values("MLE, tuned", "caption/exact") == {("scenes-parts", seed): 4e-3 for seed in (0, 1)}
    assert results.values("InfoNCE, tuned", "caption/exact") == {("scenes-parts", seed): 2e-3 for seed in (0, 1)}


def test_a_launcher_that_returns_at_once_is_not_asked_again(load):
    asked = []
    load_again = lambda: load(ARMS + TUNE)  # noqa: E731
    _, failed = compute(load_again(), load_again, lambda study: asked.append(study), "alignlab")
    assert len(asked) == 1 and failed is None


@pytest.mark.parametrize(("text", "part"), [
    ("tune: 3", "tune: expected {settings: ..., metric: ...}, got 3"),
    ("tune: {setting: {}}", "tune: unknown key 'setting'; did you mean 'settings'?"),
    ("tune: {settings: {optimization.lr: [1e-3]}}", "tune: metric is missing"),
    ("tune: {settings: 3, metric: caption/exact}", "tune: settings: expected labels with overrides"),
    ("tune: {settings: {default: {}}, metric: caption/exact}",
     "default is the arm's own config, which is always tried"),
    ("tune: {settings: {a b: {}, a-b: {}}, metric: caption/exact}", "'a b' and 'a-b' would share a directory"),
    (TUNE.replace("caption/exact", "exact"), "tune: metric: expected a name such as caption/exact, got 'exact'"),
    (TUNE.replace("caption/exact", "{MLE: [caption/exact], InfoNCE: caption/exact}"),
     "tune: metric: expected a name such as caption/exact, got ['caption/exact']"),
    (TUNE.replace("caption/exact", "{MLE: caption/exact}"), "tune: metric: InfoNCE has none"),
    (TUNE.replace("caption/exact", "{MLA: caption/exact}"),
     "tune: metric: no arm is called 'MLA'; did you mean 'MLE'?"),
    (TUNE.replace("caption/exact", "captoin/exact"), "with a val split gives captoin/exact; did you mean 'caption'?"),
    (TUNE.replace("}\n", ", seeds: [-1]}"), "tune: seeds: expected a list of whole numbers"),
    (TUNE.replace("}\n", ", starts: [x]}"), "tune: starts: no start is called 'x'"),
    (TUNE.replace("optimization.lr: [1e-3, 4e-3]", "seed: [3]"), "tune: settings: seed: a study's seeds stand under"),
    (TUNE.replace("optimization.lr: [1e-3, 4e-3]", "x: {evaluators: [TextPerplexity]}"),
     "what judges is the same for all"),
    (TUNE.replace("optimization.lr: [1e-3, 4e-3]", "optimization.lrr: [3]"),
     "lrr 3: optimization.lrr: Optimization has no"),
    ("tune: null\noverrides: {tune: 3}", "tune: no such key"),
])  # fmt: skip
def test_a_fault_of_tuning_is_named(load, text, part):
    with pytest.raises(InputError) as caught:
        load(ARMS + text)
    assert part in str(caught.value)


OWN = "arms: {MLE: {objective: MLE}, InfoNCE: {objective: InfoNCE, tune: {settings: {objective.scale: %s}}}}\n"


def test_an_arm_may_have_settings_of_its_own_as_many_as_the_others(load):
    study = load(OWN % "[10.0, 30.0]" + TUNE)
    assert study.tuning.settings == {
        "MLE": ("default", "lr 0.001", "lr 0.004"), "InfoNCE": ("default", "scale 10", "scale 30"),
    }  # fmt: skip
    with pytest.raises(InputError, match="arm InfoNCE: tune: settings: 1 where the other arms have 2"):
        load(OWN % "[10.0]" + TUNE)
    with pytest.raises(InputError, match="arm InfoNCE: tune: the study's key 'tune' is missing"):
        load(OWN % "[10.0]")


def test_arms_that_are_judged_by_the_data_of_tuning_are_named(load, tmp_path):
    note = "MLE: evaluators judge validation data, which settings are chosen by"
    one = "arms: {MLE: {objective: MLE}}\n" + TUNE
    assert not any(each.startswith(note) for each in load(one).notes)
    judged = "[{class_path: CaptionAccuracy, init_args: {split: val}}]"
    (tmp_path / "base.yaml").write_text(BASE.replace("[CaptionAccuracy, TextPerplexity]", judged))
    assert any(each.startswith(note) for each in load(one).notes)


def test_a_model_that_is_judged_as_it_is_is_not_tuned(load, tiny_path):
    other = f"other: {{backbone: {{path: {tiny_path}, fresh: []}}, trainer: {{max_steps: 0}}}}"
    study = load(ARMS.replace("}}\n", f"}}, {other}}}\noverrides: {{objective: MLE}}\n") + TUNE)
    assert list(study.tuning.settings) == ["MLE", "InfoNCE"]


def test_tuning_has_starts_of_its_own_and_claims_may_name_what_will_be_chosen(load):
    claim = "claims: [{arm: 'InfoNCE, tuned', metric: caption/exact, direction: higher, smallest: 0.01}]\n"
    text = ARMS + TUNE.replace("}\n", ", starts: [scenes-parts-1]}\n") + "starts: [scenes-parts, scenes-parts-1]\n"
    study = load(text + claim)
    assert {cell.start for cell in study.trials} == {"scenes-parts-1"} and len(study.trials) == 6
    assert study.claims[0].against == "MLE, tuned"


REAL = """
overrides:
  backbone: {{path: {path}}}
  data: {{init_args: {{num_train: 8, num_val: 8, num_test: 8, batch_size: 8}}}}
  trainer: {{max_steps: 1, limit_val_batches: 0}}
  evaluators: [Retrieval]
  wandb: {{mode: disabled}}
arms: {{MLE: {{objective: MLE}}, InfoNCE: {{objective: InfoNCE}}}}
tune: {{settings: {{optimization.lr: [1e-3]}}, metric: retrieval/image_to_text_r1}}
"""


@pytest.mark.slow
def test_a_small_study_is_tuned_from_end_to_end(load, tiny_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("base: base.yaml\n" + REAL.format(path=tiny_path))
    assert run_study(tmp_path / "mine.yaml", output=tmp_path / "out", jobs=2) == 0
    results = Results.read(tmp_path / "out")
    assert not results.pending and results.tuning.tried == {"MLE": 2, "InfoNCE": 2}
    assert results.arms == ("MLE", "InfoNCE", "MLE, tuned", "InfoNCE, tuned")
    assert all(cell.finished for cell in (*results.cells, *results.trials))
    left = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("cells/*/*/metrics.json")}
    assert run_study(tmp_path / "mine.yaml", output=tmp_path / "out", jobs=2) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("cells/*/*/metrics.json")} == left
