"""Every shipped YAML loads; every experiment takes two steps, every recipe's dry run passes."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from alignlab.backbones import PARTS, open_backbone
from alignlab.backbones.depth import Depths, depths
from alignlab.experiment.config import dump, read, resolve, resolve_file
from alignlab.experiment.dryrun import dry_run
from alignlab.experiment.run import run
from alignlab.study import Study

ROOT = Path(__file__).parents[1] / "experiments"
STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
NO_EXPERIMENTS = ("base.yaml", "published.yaml")
EXPERIMENTS = sorted(
    path for path in ROOT.rglob("*.yaml") if path not in (*STUDIES, *RECIPES) and path.name not in NO_EXPERIMENTS
)
SHORT = [
    "trainer.max_steps=2", "trainer.limit_val_batches=1", "wandb.mode=disabled", "data.batch_size=8", "data.num_val=8",
    "evaluators=[]",
]  # fmt: skip


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_experiment_takes_two_steps(path, tmp_path, tiny_path):
    overrides = [*SHORT, f"backbone.path={tiny_path}"]
    if read(path).get("backbone", {}).get("path", "").startswith("stage:"):
        overrides = list(SHORT)
        for name, stage in read(path)["stages"].items():
            overrides += [f"stages.{name}.trainer.max_steps=2", f"stages.{name}.data.num_train=200"]
            if "path" not in stage.get("backbone", {}):
                overrides.append(f"stages.{name}.backbone.path={tiny_path}")
    if path.parent.name == "pretrain":
        config = read(path, overrides)
        for stage in config.get("stages", {}).values():
            stage["backbone"]["path"] = str(tiny_path)
            stage["trainer"]["max_steps"], stage["evaluators"] = 2, []
            stage["data"].setdefault("init_args", {}).update(num_train=100, batch_size=8, num_workers=0)
        config["trainer"] |= {"precision": "32-true", "max_steps": 0 if config.get("stages") else 2}
        metrics = run(resolve(config), tmp_path / "run")
        assert metrics["steps"] == (0 if config.get("stages") else 2)
    else:
        if "Preferences" in str(read(path)["data"]):  # made by a stage, of the lab's data
            overrides.remove("data.num_val=8")
            overrides += ["stages.pairs.pairs={num_examples: 32, max_new_tokens: 8, keep_cut: true}"]
        if path.parent.name == "cached":  # which reads all of them first
            overrides.append("data.num_train=64")
        metrics = run(resolve_file(path, overrides), tmp_path / "run")
        assert metrics["steps"] == 2


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_printed_config_runs_to_the_same_config(path, tmp_path, tiny_path, monkeypatch):
    monkeypatch.chdir(ROOT.parent)
    config = resolve_file(path, [] if path.parent.name != "pretrain" else [f"backbone.path={tiny_path}"])
    (tmp_path / "printed.yaml").write_text(dump(config))
    assert resolve_file(tmp_path / "printed.yaml") == config


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_is_valid(path, tmp_path):
    assert Study.load(path, directory=tmp_path / "study").cells


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder with a few records of the data that the recipes name."""
    folder = tmp_path_factory.mktemp("samples")
    write = runpy.run_path(str(ROOT / "recipes" / "samples.py"))["write_samples"]
    write(folder, num_records=48, num_pairs=48, width=32)
    return folder


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_s_dry_run_passes_on_a_small_shape(path, samples, tiny_path, monkeypatch):
    monkeypatch.chdir(samples)
    overrides = ["data.batch_size=4"]
    config = read(path)
    for name in config.get("stages", {}):
        overrides += [f"stages.{name}.backbone.path={tiny_path}", f"stages.{name}.data.batch_size=4"]
        overrides += [f"stages.{name}.data.num_workers=0"]
    if not config["backbone"]["path"].startswith("stage:"):
        overrides.append(f"backbone.path={tiny_path}")
    if "text_tower" in config["backbone"]:
        overrides.append(f"backbone.text_tower={tiny_path}")
    told = dry_run(resolve_file(path, overrides))
    assert told["main"].probe.flops > 0 and told["main"].parameters["trained"] > 0
    assert [name for name, stage in config.get("stages", {}).items() if "pairs" not in stage] == list(told)[:-1]


def test_a_recipe_says_where_its_numbers_are_from():
    for path in RECIPES:
        head = path.read_text().partition("\nobjective:")[0]
        for words in ("from the paper", "unverified:", "not possible here:", "# Data", "https://arxiv.org/abs/"):
            assert words in head, (path, words)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_options_that_a_recipe_s_head_names_are_known(path):
    head = path.read_text().partition("\nobjective:")[0].partition("\nbackbone:")[0]
    given = re.findall(r"(?<=\s)--([a-z]+(?:\.\w+)+|data) ('[^']*'|[^\s;,)]+)", head)
    given = [(key, value.strip("'")) for key, value in given if "backbone" not in key]  # whose directories are not here
    config = resolve_file(path, [f"{key}={value}" for key, value in given])
    assert config["trainer"]["devices"] == 8 or path.stem == "cal"  # which refers to another
    if path.stem == "unime":  # the command makes embeddings of the first stage's texts
        theirs, ours = config["stages"]["distillation"]["data"]["init_args"], config["data"]["init_args"]
        assert all(theirs[key] == ours[key] for key in ("path", "columns", "splits"))


def test_shapes_have_the_released_models_numbers(tmp_path):
    write = runpy.run_path(str(ROOT / "recipes" / "shapes.py"))["SHAPES"]
    for name in write:
        write[name](tmp_path / name)
    with torch.device("meta"):
        llava = open_backbone(str(tmp_path / "llava-1.5-7b"), fresh=PARTS)
        towers = open_backbone(
            str(tmp_path / "clip-vit-large-336"), text_tower=str(tmp_path / "llama-3-8b"), fresh=PARTS
        )
    # What Hugging Face counts of llava-hf/llava-1.5-7b-hf, and of Llama-3-8B but for its LM head.
    assert sum(weight.numel() for weight in llava.parameters()) == 7_063_427_072
    text = sum(weight.numel() for weight in towers.parts["language_model"].parameters())
    assert text == 8_030_261_248 - 128256 * 4096
    assert depths(str(tmp_path / "llava-1.5-7b")) == Depths(text=32, vision=24, least_vision=2)
    tokens = llava.encoder.contents([(Image.new("RGB", (640, 480)), "a red circle")])
    assert int(tokens.image_mask.sum()) == 576


def test_every_file_says_how_it_is_run():
    for path in (*EXPERIMENTS, *STUDIES, *RECIPES):
        assert "alignlab " in path.read_text().split("\n\n")[0].split("base:")[0], path


def test_the_recipes_benchmark_measures_each_kind_of_data(tiny_path, tmp_path, monkeypatch, capsys):
    for name in ("llava-1.5-7b", "clip-vit-large-336", "llama-3-8b"):
        (tmp_path / name).symlink_to(tiny_path)
    benchmark = ROOT / "benchmarks" / "recipes.py"
    monkeypatch.syspath_prepend(str(benchmark.parent))
    options = "--device cpu --steps 1 --batch-size 2 --precision 32 --objectives SeVa UniMEDistillation LLM2CLIP"
    monkeypatch.setattr(sys, "argv", [str(benchmark), *options.split(), "--shapes", str(tmp_path)])
    runpy.run_path(str(benchmark), run_name="__main__")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["objective"] for row in rows] == ["SeVa", "UniMEDistillation", "LLM2CLIP"]
    assert all(row["samples_per_second"] > 0 and row["peak_gib"] > 0 for row in rows)


@pytest.mark.slow
def test_a_dry_run_at_the_shape_of_seven_billion_weights_passes_on_a_cpu(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(samples)
    runpy.run_path(str(ROOT / "recipes" / "shapes.py"))["SHAPES"]["llava-1.5-7b"](tmp_path / "shape")
    overrides = [f"backbone.path={tmp_path / 'shape'}", "data.batch_size=1", "data.num_workers=0"]
    told = dry_run(resolve_file(ROOT / "recipes" / "llava_stage2.yaml", overrides))["main"]
    assert (told.probe.parameters, told.parameters["total"]) == (7_063_427_072, 7_063_427_072)
    assert told.parameters["trained"] == 7_063_427_072 - 303_507_456  # all but the vision tower
    # 6 operations a weight and token, of all but the embeddings, and 2 more as layers are computed once more, attention
    # on top.
    assert told.probe.flops == pytest.approx(8 * 6.6e9 * told.makeup.tokens, rel=0.1)
