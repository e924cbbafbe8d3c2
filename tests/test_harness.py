"""What is exported is judged by lmms-eval's own code as by ours, where that is installed."""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab.experiment.export import export
from alignlab.experiment.judging import judge

ROOT = Path(__file__).parents[1]
HARNESS = ROOT / "experiments" / "harness" / "lab_task.py"


def test_the_task_asks_what_captionaccuracy_asks(tmp_path):
    runpy.run_path(str(HARNESS))["write_task"](tmp_path / "tasks", num_examples=3)
    rows = [json.loads(line) for line in (tmp_path / "tasks" / "captions.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(Path(row["picture"]).is_file() for row in rows)
    compile((tmp_path / "tasks" / "lab_caption.py").read_text(), "lab_caption.py", "exec")


@pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed (pip install lmms-eval; it brings torchvision, opencv and much more)",
)
def test_lmms_eval_reads_what_is_exported_and_finds_our_answers_and_score(tmp_path):
    export(Path("scenes-vlm"), tmp_path / "exported")
    runpy.run_path(str(HARNESS))["write_task"](tmp_path / "tasks", num_examples=12)
    said = re.search(r"python -m (lmms_eval .*?)\n\n", HARNESS.read_text(), re.S)[1].replace("\\\n", " ").split()
    places = {"TASKS": "tasks", "results": "results"}
    words = [places.get(word, word) for word in said]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, env=offline, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "results").rglob("*_results.json")
    (samples,) = (tmp_path / "results").rglob("*samples_lab_caption.jsonl")
    theirs = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]

    evaluators = "evaluators=[{class_path: CaptionAccuracy, init_args: {num_examples: 12, num_pictures: 0}}]"
    ours = judge(str(tmp_path / "exported"), ROOT / "experiments" / "mle.yaml", [evaluators], output=tmp_path / "ours")
    items = [json.loads(line) for line in (tmp_path / "ours" / "items" / "caption.jsonl").read_text().splitlines()]
    assert theirs == [item["output"] for item in items]
    score = json.loads(results.read_text())["results"]["lab_caption"]["exact,none"]
    assert 0 < score == ours.scores["caption/exact"]
