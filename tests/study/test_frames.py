"""Results as data frames: cells and items, of a study and of a single run."""

import json
import subprocess
import sys

import pytest
import yaml
from records import write_study

import alignlab
from alignlab import InputError

SCORES = {"caption/exact": (0.5, 0.75)}


@pytest.fixture
def directory(tmp_path):
    """Two arms of two cells, which differ in lr; their items add to caption/exact, and one cell has failed."""
    write_study(tmp_path, {"MLE": SCORES, "own": SCORES})
    manifest = json.loads((tmp_path / "study.json").read_text())
    for cell in manifest["cells"]:
        place, rate = tmp_path / cell["directory"], 0.1 if cell["arm"] == "MLE" else 0.2
        cell["differs"] = {} if cell["arm"] == "MLE" else {"optimization.lr": rate, "data.tasks": ["caption"]}
        config = {"objective": {"class_path": "MLE"}, "optimization": {"lr": rate}, "backbone": {"path": "start"}}
        (place / "config.yaml").write_text(yaml.safe_dump(config))
        right = 2 if cell["seed"] == 0 else 3
        rows = [{"id": f"t{n}", "score": 1.0, "metrics": {"exact": float(n < right)}, "output": "x"} for n in range(4)]
        (place / "items/caption.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "items/vqa.jsonl").write_text('{"id": "q", "score": 0.5, "weights": [["a", 1.0]]}\n')
    (tmp_path / "study.json").write_text(json.dumps(manifest))
    (tmp_path / "cells/own/own1/metrics.json").unlink()
    return tmp_path


def test_cells_have_scores_costs_and_the_settings_in_which_arms_differ(directory):
    cells = alignlab.results(directory).cells.set_index(["arm", "seed"])
    assert list(cells.loc["MLE", "caption/exact"]) == [0.5, 0.75]
    assert cells.loc[("own", 1), "state"] == "interrupted" and cells["steps"].isna().sum() == 1
    assert cells.loc[("own", 0), "samples"] == cells.loc[("own", 0), "with_stages.samples"] == 1280
    assert cells.groupby("arm")["config.optimization.lr"].first().to_dict() == {"MLE": 0.1, "own": 0.2}
    assert cells.loc[("own", 0), "config.data.tasks"] == "['caption']"


def test_the_mean_of_a_cell_s_items_is_its_score(directory):
    found = alignlab.results(str(directory))
    items = found.items
    assert len(items) == 3 * 5 and set(items["evaluator"]) == {"caption", "vqa"}
    means = items.groupby(["arm", "seed"])["caption/exact"].mean()
    scores = found.cells.set_index(["arm", "seed"])["caption/exact"].dropna()
    assert means.to_dict() == scores.to_dict()
    assert items.query("evaluator == 'vqa'")["caption/exact"].isna().all()
    assert "weights" not in items and items["reference"].isna().all()


def test_older_items_have_their_score_alone(directory):
    for file in directory.glob("cells/*/*/items/caption.jsonl"):
        file.write_text('{"id": "a", "score": 1.0}\n')
    items = alignlab.results(directory).items
    assert list(items.columns) == [
        *("arm", "start", "seed", "evaluator", "id", "score", "prompt", "output", "reference", "picture")
    ]


def test_a_single_run_is_one_cell(directory):
    place = directory / "cells/MLE/MLE0"
    metrics = json.loads((place / "metrics.json").read_text()) | {"objective": "MLE", "seed": 3}
    (place / "metrics.json").write_text(json.dumps(metrics))
    found = alignlab.results(place)
    assert len(found.cells) == 1 and found.cells.loc[0, ["arm", "start", "seed"]].tolist() == ["MLE", "start", 3]
    assert found.items["caption/exact"].mean() == found.cells.loc[0, "caption/exact"] == 0.5


def test_what_holds_no_results_is_refused(directory, tmp_path):
    for place, words in ((directory / "cells", "neither study.json nor metrics.json"), (tmp_path / "no", "no direct")):
        with pytest.raises(InputError, match=words):
            alignlab.results(place)


def test_importing_alignlab_loads_no_pandas():
    code = "import sys, alignlab, alignlab.cli; assert 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
