"""Another run of a resolved experiment has what resolving it anew would give, to the last key."""

from pathlib import Path

import pytest

from alignlab.experiment.config import digest, merge, moved, read, resolve
from alignlab.study.cells import Maker, judged_arms
from alignlab.study.file import read as read_study
from alignlab.study.layers import arm_configs, placing

STUDIES = Path(__file__).parents[2] / "experiments" / "studies"


@pytest.mark.parametrize("name", ["quickstart", "preference", "llm2clip"])
def test_a_study_s_cells_are_what_resolving_each_gives(name, tmp_path):
    """Of these studies one has no stages, one has pairs, and one has backbones that earlier stages write."""
    faults: list[str] = []
    file = read_study(STUDIES / f"{name}.yaml", ["seeds=[0, 3]", "starts=[scenes-parts, scenes-parts-1]"], faults)
    configs, _ = arm_configs(file, faults)
    judged = judged_arms(file, configs)
    maker = Maker(file, tmp_path)
    cells = [cell for cell in maker.of_arms(configs, judged) if cell.arm not in judged]
    assert faults == [] and not maker.wrong and len({cell.digest for cell in cells}) > 3
    starts = {start.name: start for start in file.starts}
    for cell in cells:
        config = configs[cell.arm]
        whole = resolve(merge(config, placing(name, config, cell.arm, starts[cell.start], cell.seed)))
        assert cell.config == whole and cell.digest == digest(whole)


def test_a_stage_keeps_the_seed_of_its_own_and_has_the_experiment_s_else():
    config = read(STUDIES.parent / "base.yaml") | {"objective": "MLE"}
    config["stages"] = {"own": {"seed": 5}, "shared": {"wandb": {"name": "mine"}}}
    first = resolve(config)
    other = merge(config, {"seed": 9, "wandb": {"name": "other"}, "backbone": {"path": "scenes-parts-1"}})
    assert moved(first, other) == resolve(other)
    assert [moved(first, other)["stages"][name]["seed"] for name in ("own", "shared")] == [5, 9]
    assert digest(moved(first, other)) != digest(first)
    assert first == resolve(config)  # and is left as it was
