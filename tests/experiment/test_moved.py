"""Another run of a resolved experiment has what resolving it anew would give, to the last key."""

from pathlib import Path

import pytest

from alignlab.experiment.config import digest, moved, read, resolve
from alignlab.study import Study

STUDIES = Path(__file__).parents[2] / "experiments" / "studies"


@pytest.mark.parametrize("name", ["quickstart", "preference", "llm2clip"])
def test_a_study_s_cells_are_what_resolving_each_gives(name, tmp_path, monkeypatch):
    """Of these studies one has no stages, one has pairs, and one has backbones that earlier stages write."""
    monkeypatch.setattr("alignlab.study.cells.refused", lambda cells: [])
    changes = ["seeds=[0, 3]"] if name != "quickstart" else []
    fast = Study.load(STUDIES / f"{name}.yaml", directory=tmp_path, overrides=changes)
    monkeypatch.setattr("alignlab.experiment.config.moved", lambda resolved, written: resolve(written))
    slow = Study.load(STUDIES / f"{name}.yaml", directory=tmp_path, overrides=changes)
    assert [cell.config for cell in fast.cells] == [cell.config for cell in slow.cells]
    assert [cell.digest for cell in fast.cells] == [cell.digest for cell in slow.cells]
    assert len({cell.digest for cell in fast.cells}) > 2


def test_a_stage_keeps_the_seed_of_its_own_and_has_the_experiment_s_else():
    config = read(STUDIES.parent / "base.yaml") | {"objective": "MLE"}
    config["stages"] = {"own": {"seed": 5}, "shared": {"wandb": {"name": "mine"}}}
    first = resolve(config)
    other = {**config, "seed": 9, "wandb": {"name": "other"}, "backbone": {"path": "scenes-parts-1"}}
    assert moved(first, other) == resolve(other)
    assert [moved(first, other)["stages"][name]["seed"] for name in ("own", "shared")] == [5, 9]
    assert digest(moved(first, other)) != digest(first)
    assert first == resolve(config)  # and is left as it was
