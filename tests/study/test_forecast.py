"""What a study is said to take is what it takes, and what cells share is counted once."""

import json
from dataclasses import replace

import pytest

from alignlab.experiment.run import run
from alignlab.study import Study
from alignlab.study.dryrun import differing
from alignlab.study.forecast import Forecast, added, forecast
from alignlab.study.probes import Cost, folder_size

STUDY = """
base: base.yaml
overrides:
  data: {{class_path: Scenes, init_args: {{num_train: 32, num_val: 8, num_test: 16, batch_size: 4}}}}
  trainer: {{max_steps: 5, val_check_interval: 2, check_val_every_n_epoch: null}}
  checkpoint_every: 3
  wandb: {{mode: disabled}}
  evaluators:
    - {{class_path: Retrieval, init_args: {{batch_size: 8, data: {{class_path: Scenes, init_args: {{num_test: 16}}}}}}}}
arms:
  MLE: {{objective: MLE}}
  pairs:
    stages:
      model: &model
        objective: MLE
        data: {{class_path: Scenes, init_args: {{num_train: 32, num_val: 8, num_test: 16, batch_size: 4}}}}
        trainer: {{max_steps: 3}}
        evaluators: []
      pairs:
        backbone: {{path: {path}}}
        data: {{class_path: Scenes, init_args: {{num_train: 12, num_val: 4, batch_size: 4}}}}
        pairs: {{corruption: DiffusionNoise, num_examples: 12, max_new_tokens: 8, batch_size: 6, keep_cut: true}}
    backbone: {{path: "stage:model"}}
    objective: {{class_path: SeVa, init_args: {{beta: 0.1}}}}
    data: {{class_path: Preferences, init_args: {{path: "stage:pairs", batch_size: 2}}}}
    trainer: {{max_steps: 2, limit_val_batches: 0}}
  after:
    stages:
      model: *model
    backbone: {{path: "stage:model"}}
    objective: MLE
    trainer: {{max_steps: 2, limit_val_batches: 0}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_path) -> Study:
    folder = tmp_path_factory.mktemp("forecast")
    (folder / "base.yaml").write_text(f"backbone: {{path: {tiny_path}}}\n")
    (folder / "mine.yaml").write_text(STUDY.format(path=tiny_path))
    return Study.load(folder / "mine.yaml", directory=folder / "out")


@pytest.fixture(scope="module")
def tried(study) -> tuple[Forecast, list[str]]:
    """From trials, with the labels of what was tried."""
    labels: list[str] = []
    return forecast(study, jobs=1, on_part=lambda done, total, label: labels.append(label)), labels


def test_what_cells_share_is_tried_and_counted_once(study, tried):
    found, labels = tried
    assert labels == ["MLE", "pairs, stage model", "pairs, stage pairs", "pairs", "after", ""]
    assert found.shared == 1  # the model of the last arm
    assert [found.arms[arm].steps for arm in study.arms] == [5, 3 + 2, 3 + 2]
    assert [found.arms[arm].samples for arm in study.arms] == [20, 12 + 4, 12 + 8]
    assert found.whole.steps == 5 + 3 + 2 + 2 and found.left == found.whole
    alone = sum(cost.seconds for cost in found.arms.values())
    assert found.whole.seconds < alone and found.whole.size < sum(cost.size for cost in found.arms.values())
    assert {cost.source for cost in found.arms.values()} == {"tried"} and found.whole.whole
    assert not study.directory.exists()


def test_cells_at_once_take_no_less_than_the_longest(tried):
    found, _ = tried
    assert found.seconds(1) == pytest.approx(found.left.seconds)
    assert found.seconds(1000) == max(cost.seconds for cost in found.arms.values())


def test_stages_are_told_in_a_few_words(study):
    _, pairs, after = study.cells
    assert differing(study.cells[0]) == "–"
    words = differing(pairs).split("; ")
    assert "objective.beta: 0.1" in words and "data: Preferences" in words
    assert [word.partition(",")[0] for word in words if word.startswith("stage ")] == [
        "stage model (MLE", "stage pairs (pairs",
    ]  # fmt: skip
    assert "stage model (MLE, " in differing(after)


def test_a_finished_cell_tells_what_others_like_it_take_and_a_trial_had_told_nearly_the_same(study, tried):
    before, _ = tried
    first = study.cells[0]
    study.save("")
    run(first.config, first.directory, shared=study.directory / "stages")
    config = {**first.config, "seed": 1}
    other = replace(first, seed=1, config=config, digest="1", directory=first.directory.with_name("1"))
    labels: list[str] = []
    after = forecast(
        replace(study, arms=("MLE",), cells=(first, other)),
        jobs=1,
        on_part=lambda done, total, label: labels.append(label),
    )
    assert labels == [""] and after.got is None  # nothing was tried
    assert after.whole.steps == 10 and after.left.steps == 5  # of the other seed
    metrics = json.loads((first.directory / "metrics.json").read_text())
    told, took = before.arms["MLE"], after.arms["MLE"]
    assert (told.source, took.source) == ("tried", "finished")
    assert (took.steps, took.samples) == (told.steps, told.samples) == (metrics["steps"], metrics["samples"])
    assert took.tokens == metrics["tokens"] and told.tokens == pytest.approx(took.tokens, rel=0.1)
    assert took.size == folder_size(first.directory) == pytest.approx(told.size, rel=0.2)


def test_what_is_not_known_of_one_makes_a_sum_no_more_than_a_bound():
    known = Cost(steps=3, seconds=2.0, source="finished", whole=True)
    assert added([known, known]) == Cost(steps=6, seconds=4.0, source="finished", whole=True)
    assert added([known, Cost()]) == Cost(steps=3, seconds=2.0, source="finished", whole=False)
