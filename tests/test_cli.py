"""The command line as a person uses it: exit codes, messages without a traceback, also from processes of its own."""

import io
import json
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignlab.cli import main

ROOT = Path(__file__).parents[1]
FOCAL = ROOT / "experiments" / "focal"


def alignlab(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "alignlab.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def called(*arguments, cwd=ROOT):
    """The same in this process, which has imported what takes seconds."""
    said, told = io.StringIO(), io.StringIO()
    with chdir(cwd), redirect_stdout(said), redirect_stderr(told):
        code = main(list(map(str, arguments)))
    return SimpleNamespace(returncode=code, stdout=said.getvalue(), stderr=told.getvalue())


def refused(result, *fragments):
    assert result.returncode == 2, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.startswith("alignlab: error: ")
    for fragment in fragments:
        assert fragment in result.stderr


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["--config", "experiments/mle.yaml", "fit"], ["--config must come after the command: alignlab fit --config"]),
        (["stud"], ["'stud'", "study"]),
        (["fit", "--conf", "experiments/mle.yaml"], ["conf"]),
        (["fit", "--config", "experiments/mle.yaml", "stray"], ["unexpected 'stray'"]),
        (["fit", "--config", "experiments/mle.yaml", "--seed"], ["--seed needs a value"]),
        (["fit", "--config", "experiments/ml.yaml"], ["no such file", "did you mean 'mle.yaml'"]),
        (["evaluate", "runs/nowhere"], ["runs/nowhere is no run"]),
        (["evaluate", "runs/nowhere", "--foo", "3"], ["--foo goes with --config FILE"]),
        (["study", "run", "experiments/studies/quick.yaml"], ["quick.yaml", "quickstart.yaml"]),
        (["study", "report", "runs/nowhere"], ["runs/nowhere"]),
        (["inspect", "experiments/nothing.yaml"], ["no such file"]),
        (["embed", "experiments/mle.yaml", "--model", "scenes-vlm"], ["required: --output"]),
        (["embed", "experiments/mle.yaml", "--model", "./nowhere", "--output", "x"], ["no directory ./nowhere"]),
        (["mine", "experiments/mle.yaml", "--model", "scenes-vl", "--output", "x"], ["--model: ", "'scenes-vlm'"]),
        (["mine", "experiments/mle.yaml", "--margin", "0.1", "--ratio", "0.9"], ["not allowed with"]),
        (["pairs", "experiments/mle.yaml", "--model", "scenes-vl", "--output", "x"], ["--model: ", "'scenes-vlm'"]),
        (["pairs", "experiments/mle.yaml", "--model", "scenes-vlm"], ["required: --output"]),
        (
            ["pairs", "experiments/mle.yaml", "--model", "scenes-vlm", "--output", "x", "--pairs.stp", "3"],
            ["pairs.stp: PairSettings has no argument 'stp'"],
        ),
        (
            ["pairs", "experiments/mle.yaml", "--model", "scenes-vlm", "--output", "x", "--data.num_trains", "3"],
            ["Scenes has no argument 'num_trains'"],
        ),
    ],
)
def test_bad_command_lines_are_refused(arguments, fragments):
    refused(called(*arguments), *fragments)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [(["--seed", "3", "fit"], "alignlab fit --seed"), (["fit", "--config", "experiments/ml.yaml"], "mle.yaml")],
)
def test_a_process_ends_with_the_code_of_bad_input(arguments, fragment):
    refused(alignlab(*arguments), fragment)


def test_all_errors_of_a_config_come_at_once_with_file_and_line(tmp_path):
    (tmp_path / "bad.yaml").write_text(
        f"base: {ROOT}/experiments/base.yaml\nobjective: MLEE\noptimization: {{lr: fast}}\n"
        "trainer: {max_step: 3}\nbackbone: {path: scenes-part}\ndat: 1\n"
    )
    result = called("fit", "--config", tmp_path / "bad.yaml", "--output", tmp_path / "run")
    refused(
        result, "bad.yaml:2", "did you mean 'MLE'", "bad.yaml:3", "expected a number, got 'fast'", "bad.yaml:4",
        "did you mean 'max_steps'", "bad.yaml:5", "did you mean 'scenes-parts'", "bad.yaml:6", "did you mean 'data'",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_help_and_version_come_without_heavy_imports():
    for arguments in (["--help"], ["fit", "--help"], ["study", "run", "--help"], ["--version"]):
        result = alignlab(*arguments)
        assert result.returncode == 0 and "alignlab" in result.stdout


def test_the_catalogue_lists_every_objective():
    from alignlab import objectives

    text = called("objectives").stdout
    for name in ("MLE", "InfoNCE", "Mixture"):
        assert name in objectives.__all__ and f"{name}: " in text
    assert "requires: query, target" in text and "--objective.scale" in text


def test_an_objective_of_ones_own_runs_from_elsewhere(tmp_path, tiny_path):
    (tmp_path / "sharp_mle.py").write_text((FOCAL / "focal_mle.py").read_text())
    assert len((FOCAL / "focal_mle.py").read_text().splitlines()) <= 30
    (tmp_path / "focal.yaml").write_text(
        f"objective: {{class_path: sharp_mle.FocalMLE, init_args: {{gamma: 1.5}}}}\nbackbone: {{path: {tiny_path}}}\n"
        "data: {class_path: Scenes, init_args: {num_train: 32, num_val: 8, num_test: 8, batch_size: 8}}\n"
        "trainer: {max_steps: 3, limit_val_batches: 1}\n"
        "evaluators: [{class_path: Retrieval, init_args: {num_examples: 8}}]\nwandb: {mode: disabled}\n"
    )
    result = alignlab("fit", "--config", "focal.yaml", "--output", "out", "--objective.gamma", "2.5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["objective"] == "FocalMLE"
    assert "gamma: 2.5" in (tmp_path / "out" / "config.yaml").read_text()
    assert called("evaluate", tmp_path / "out").returncode == 0  # finds the class from another directory
    second = called("fit", "--config", "focal.yaml", "--output", "out", "--objective.gamma", "9", cwd=tmp_path)
    refused(second, "holds a run of another config")


def test_focal_with_gamma_zero_is_mle(tiny_backbone, examples, monkeypatch):
    monkeypatch.syspath_prepend(str(FOCAL))
    from focal_mle import FocalMLE

    from alignlab.objectives import MLE

    batch = tiny_backbone.encoder.batch(examples[:4], ("conversation",))
    plain = MLE(tiny_backbone).loss(batch).mean.item()
    assert FocalMLE(tiny_backbone, gamma=0.0).loss(batch).mean.item() == pytest.approx(plain, rel=1e-5)
    assert FocalMLE(tiny_backbone, gamma=2.0).loss(batch).mean.item() < plain


def test_a_corrupt_picture_met_in_a_worker_is_one_message(tmp_path, tiny_path):
    from PIL import Image

    records = []
    for index in range(40):
        Image.new("RGB", (60, 60), "red").save(tmp_path / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\nis there a circle ?"}, {"from": "gpt", "value": "no"}]
        records.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
        content = (tmp_path / f"{index}.png").read_bytes()
        (tmp_path / f"{index}.png").write_bytes(content[: len(content) - 60])  # the header stays readable
    (tmp_path / "data.json").write_text(json.dumps(records))
    (tmp_path / "photos.yaml").write_text(
        f"objective: MLE\nbackbone: {{path: {tiny_path}}}\n"
        "data: {class_path: LlavaJson, init_args: {path: data.json, image_folder: ., batch_size: 4, num_workers: 1}}\n"
        "trainer: {max_steps: 2, limit_val_batches: 0}\nwandb: {mode: disabled}\n"
    )
    result = alignlab("fit", "--config", "photos.yaml", cwd=tmp_path)
    assert "what trains" in result.stderr  # training had begun
    result.stderr = result.stderr[result.stderr.index("alignlab: error:") :]
    refused(result, ".png")


def test_files_of_embeddings_and_negatives_are_made_and_trained_on(tmp_path, tiny_path):
    settings = ["--data.num_train", 40, "--data.num_val", 8, "--data.batch_size", 8, "--data.duplicates", 0.5]
    given = ["experiments/infonce.yaml", "--model", tiny_path, *settings]
    for command, file, said in (
        ("embed", "e.safetensors", "48 embeddings"),
        ("mine", "m.jsonl", "recall of the filter"),
    ):
        result = called(command, *given, "--output", tmp_path / file)
        assert result.returncode == 0 and said in result.stdout and "embedding" in result.stderr, result.stderr
    files = ["--data.embeddings", tmp_path / "e.safetensors", "--data.mined", tmp_path / "m.jsonl"]
    short = ["--backbone.path", tiny_path, "--trainer.max_steps", 1, "--evaluators", "[]", "--wandb.mode", "disabled"]
    fit = ["fit", "--config", "experiments/infonce.yaml", *short, *settings, *files]
    result = called(*fit, "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    refused(called(*fit, "--output", tmp_path / "other", "--data.seed", 1), "e.safetensors was made for another text")
    assert not (tmp_path / "other").exists()


def test_pairs_are_built_once(tmp_path):
    given = ["pairs", "experiments/mle.yaml", "--model", "scenes-vlm", "--output", tmp_path / "pairs"]
    chosen = ["--pairs.corruption.size", 48, "--pairs.corruption", "MoCo", "--pairs.num_examples", 12]
    first = called(*given, *chosen)
    assert first.returncode == 0 and "chosen answer in truth better" in first.stdout, first.stderr
    assert "answering train 12/12" in first.stderr and "there already" not in first.stdout
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "pairs").glob("*.*")}
    assert {path.name for path in files} >= {"train.parquet", "provenance.json"}
    again = called(*given, *chosen)
    assert again.returncode == 0 and again.stdout.endswith("preference pairs, there already\n"), again.stderr
    assert "answering" not in again.stderr
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "pairs").glob("*.*")}
    refused(called(*given, *chosen, "--data.seed", 1), "is there already, finished, and differs in data")


def test_a_corruption_beside_the_config_is_found(tmp_path):
    (tmp_path / "spoiling.py").write_text(
        "from alignlab.data import Corruption\n\n\n"
        "class Upside(Corruption):\n"
        "    def before(self, picture, generator):\n        return picture.rotate(180)\n"
    )
    (tmp_path / "mine.yaml").write_text(f"base: {ROOT / 'experiments' / 'mle.yaml'}\n")
    given = ["--model", "scenes-vlm", "--output", tmp_path / "pairs", "--pairs.num_examples", 8]
    result = called("pairs", tmp_path / "mine.yaml", *given, "--pairs.corruption", "spoiling.Upside")
    assert result.returncode == 0, result.stderr
    known = json.loads((tmp_path / "pairs" / "provenance.json").read_text())
    assert known["settings"]["corruption"]["class_path"] == "spoiling.Upside"


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path, tiny_path):
    settings = [
        "--config", "experiments/mle.yaml", "--backbone.path", tiny_path, "--adapter", "null", "--evaluators", "[]",
        "--backbone.fresh", "[]", "--trainer.accelerator", "cpu", "--trainer.max_steps", "6",
        "--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "0", "--wandb.mode", "disabled",
    ]  # fmt: skip
    curves = []
    for devices, batch_size in ((1, 16), (2, 8)):
        output = tmp_path / str(devices)
        placed = ["--trainer.devices", devices, "--data.batch_size", batch_size, "--output", output]
        result = alignlab("fit", *settings, *placed)
        assert result.returncode == 0, result.stderr
        curves.append([json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()])
        assert json.loads((output / "metrics.json").read_text())["samples"] == 96
    for one, two in zip(*curves, strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
        assert two["train/grad_norm"] == pytest.approx(one["train/grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_go_from_stage_to_stage(tmp_path, tiny_path):
    (tmp_path / "stages.yaml").write_text(
        f"objective: InfoNCE\n"
        f"backbone: {{path: 'stage:one'}}\n"
        f"stages: {{one: {{backbone: {{path: {tiny_path}}}}}}}\n"
        "trainer: {max_steps: 2, limit_val_batches: 0, accelerator: cpu, devices: 2}\n"
        "data: {class_path: Scenes, init_args: {num_train: 16, num_val: 4, batch_size: 1}}\n"  # two, over all processes
        "wandb: {mode: disabled}\n"
    )
    result = alignlab("fit", "--config", tmp_path / "stages.yaml", "--output", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    for folder in (tmp_path / "run", tmp_path / "run" / "stages" / "one"):
        assert json.loads((folder / "metrics.json").read_text())["samples"] == 4
