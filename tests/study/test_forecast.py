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
  one: &pairs
    stages:
      model:
        objective: MLE
        data: {{class_path: Scenes, init_args: {{num_train: 32, num_val: 8, batch_size: 4}}}}
        trainer: {{max_steps: 3}}
        evaluators: []
      pairs:
        backbone: {{path: "scenes-vlm"}}
        data: {{class_path: Scenes, init_args: {{num_train: 12, num_val: 4, batch_size: 4}}}}
        pairs: {{corruption: DiffusionNoise, num_examples: 12, max_new_tokens: 8, batch_size: 6, keep_cut: true}}
    backbone: {{path: "stage:model"}}
    objective: {{class_path: SeVa, init_args: {{beta: 0.1}}}}
    data: {{class_path: Preferences, init_args: {{path: "stage:pairs", batch_size: 2}}}}
    trainer: {{max_steps: 2, limit_val_batches: 0}}
  other:
    <<: *pairs
    objective: {{class_path: SeVa, init_args: {{beta: 0.2}}}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_path) -> Study:
    folder = tmp_path_factory.mktemp("forecast")
    (folder / "base.yaml").write_text(f"backbone: {{path: {tiny_path}}}\n")
    (folder / "mine.yaml").write_text(STUDY.format())
    return Study.load(folder / "mine.yaml", directory=folder / "out")


@pytest.fixture(scope="module")
def tried(study) -> tuple[Forecast, list[str]]:
    """From trials, with the labels of what was tried."""
    labels: list[str] = []
    return forecast(study, jobs=1, on_part=lambda done, total, label: labels.append(label)), labels


def test_what_cells_share_is_tried_and_counted_once(study, tried):
    found, labels = tried
    assert labels == ["MLE", "one, stage model", "one, stage pairs", "one", "other", ""]
    assert found.shared == 2  # both stages of the second arm that has them
    assert [found.arms[arm].steps for arm in study.arms] == [5, 3 + 2, 3 + 2]
    assert [found.arms[arm].samples for arm in study.arms] == [20, 12 + 4, 12 + 4]
    assert found.whole.steps == 5 + 3 + 2 + 2 and found.left == found.whole
    alone = sum(cost.seconds for cost in found.arms.values())
    assert found.whole.seconds < alone and found.whole.size < sum(cost.size for cost in found.arms.values())
    assert {cost.source for cost in found.arms.values()} == {"tried"} and found.whole.whole
    assert not study.directory.exists()


def test_cells_at_once_take_no_less_than_the_longest(tried):
    found, _ = tried
    assert found.seconds(1) == pytest.approx(found.left.seconds)
    assert found.seconds(1000) == max(cost.seconds for cost in found.arms.values())


def test_finished_cells_tell_what_others_like_them_take_and_trials_had_told_nearly_the_same(study, tried):
    before, _ = tried
    study.save("")
    for cell in study.cells[:2]:
        run(cell.config, cell.directory, shared=study.directory / "stages")
    after = forecast(study, jobs=1)
    assert [after.arms[arm].source for arm in study.arms] == ["finished", "finished", "tried"]
    assert after.left.steps == 2  # of the last arm, whose stages are there
    metrics = json.loads((study.cells[0].directory / "metrics.json").read_text())
    told, took = before.arms["MLE"], after.arms["MLE"]
    assert (took.steps, took.samples) == (told.steps, told.samples) == (metrics["steps"], metrics["samples"])
    assert took.tokens == metrics["tokens"] and told.tokens == pytest.approx(took.tokens, rel=0.1)
    assert took.size == folder_size(study.cells[0].directory)
    for arm in ("MLE", "one"):
        assert before.arms[arm].size == pytest.approx(after.arms[arm].size, rel=0.2)


def test_another_seed_is_like_a_finished_cell_and_another_size_is_not(study):
    first = study.cells[0]
    seeds = tuple(replace(first, seed=seed, config={**first.config, "seed": seed}) for seed in (0, 1))
    longer = replace(first, config={**first.config, "trainer": {**first.config["trainer"], "max_steps": 7}})
    more = [replace(cell, digest=str(number), directory=first.directory.with_name(str(number)))
            for number, cell in enumerate((seeds[1], longer))]  # fmt: skip
    found = forecast(replace(study, arms=("MLE",), cells=(first, more[0])), jobs=1)
    assert found.arms["MLE"].source == "finished" and found.whole.steps == 10 and found.left.steps == 5
    found = forecast(replace(study, arms=("MLE",), cells=(first, more[1])), jobs=1)
    assert found.arms["MLE"].source == "tried" and found.left.steps == 7


def test_what_is_not_known_of_one_makes_a_sum_no_more_than_a_bound():
    known = Cost(steps=3, seconds=2.0, source="finished", whole=True)
    assert added([known, known]) == Cost(steps=6, seconds=4.0, source="finished", whole=True)
    assert added([known, Cost()]) == Cost(steps=3, seconds=2.0, source="finished", whole=False)


def test_stages_are_told_in_a_few_words(study):
    _, one, other = study.cells
    assert differing(study.cells[0]) == "–"
    words = differing(one).split("; ")
    assert "objective.beta: 0.1" in words and "data: Preferences" in words
    assert sum(word.startswith("stage ") for word in words) == 2
    assert any(word.startswith("stage pairs (pairs, ") for word in words) and "stages" not in differing(other)
