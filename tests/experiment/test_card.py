"""What is exported says what it is, how it is loaded, and how it came about; the card's own code is run."""

import json
import re

import pytest
import yaml
from PIL import Image
from plain import run_plain
from transformers import CLIPConfig, GenerationConfig

import alignlab
from alignlab import Backbone
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.batch import Turn
from alignlab.cli import main
from alignlab.experiment.card import _fenced, _hub_names, _template
from alignlab.experiment.config import resolve, resolve_file
from alignlab.experiment.export import export
from alignlab.experiment.run import run

DATA = {"class_path": "Scenes", "init_args": {"num_train": 16, "num_val": 8, "num_test": 8, "batch_size": 8}}
CAPTIONS = {"class_path": "CaptionAccuracy", "init_args": {"num_examples": 4, "max_new_tokens": 7, "num_pictures": 0}}


@pytest.fixture(scope="module")
def config(tiny_path):
    return {
        "objective": {"class_path": "CAL", "init_args": {"high": 4.0}},
        "backbone": {"path": str(tiny_path)},
        "data": DATA,
        "trainer": {"max_steps": 2, "limit_val_batches": 1, "log_every_n_steps": 1},
        "evaluators": [CAPTIONS, {"class_path": "Retrieval", "init_args": {"num_examples": 100}}],
        "wandb": {"mode": "disabled"},
    }


@pytest.fixture(scope="module")
def exported(config, tmp_path_factory):
    """A run's directory, and what is exported of it."""
    folder = tmp_path_factory.mktemp("exported")
    run(resolve(config), folder / "run")
    export(folder / "run", folder / "out")
    return folder / "run", folder / "out"


def card(folder):
    text = (folder / "README.md").read_text()
    _, front, rest = text.split("---\n", 2)
    return yaml.safe_load(front), rest


def test_the_card_says_what_how_and_how_well(exported):
    front, text = card(exported[1])
    metrics = json.loads((exported[0] / "metrics.json").read_text())
    assert front == {
        "library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["alignlab", "cal", "scenes-lab"],
    }  # fmt: skip
    assert "Xiao et al. 2024, https://arxiv.org/abs/2405.17871" in text and "high: 4.0" in text
    assert "16 training examples" in text and "num_train: 16" in text
    for row in (
        "| steps | 2 |",
        "| samples | 16 |",
        f"| tokens | {metrics['tokens']} |",
        "AdamW: lr 0.001",
        "CPU cores",
    ):
        assert row in text
    for name, value in metrics["scores"].items():
        assert f"| {name} | {value:.4f} |" in text
    assert "CaptionAccuracy, 4 examples of the scenes lab's test split" in text
    assert "Retrieval, 8 examples" in text and "claims about the lab" in text
    assert json.loads((exported[0] / "versions.json").read_text())["packages"]["peft"] in text
    assert "classes or scripts of its own" not in text and str(exported[0]) not in text


def test_only_of_modules_of_ones_own_it_says_that_they_are_not_in_it(exported, config, tmp_path):
    assert "of its own" not in card(exported[1])[1]
    (tmp_path / "own_mle.py").write_text("from alignlab.objectives import MLE\n\n\nclass OwnMLE(MLE):\n    pass\n")
    own = {**config, "objective": "own_mle.OwnMLE", "evaluators": [], "python_path": [str(tmp_path)]}
    run(resolve(own), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    assert "not in here: own_mle." in card(tmp_path / "out")[1] and str(tmp_path) not in card(tmp_path / "out")[1]


def test_its_code_loads_and_asks_without_alignlab_as_alignlab_does(exported, tmp_path):
    load, use = re.findall(r"```python\n(.*?)```", card(exported[1])[1], re.S)[:2]
    code = load.replace('folder = "."', f"folder = {str(exported[1])!r}") + use
    code += "\nimport sys\nassert not [name for name in sys.modules if name.startswith('alignlab')]"
    done = run_plain(code)
    backbone, picture = alignlab.load(exported[0]), Image.new("RGB", (224, 224), "red")
    question = "describe the image ."
    assert question in use
    prompts = backbone.encoder.prompts([(Turn("user", (picture, question)),)])
    assert done.stdout.strip() == backbone.generate(prompts, max_new_tokens=7)[0] != ""


def test_its_config_is_the_run_s_and_its_commands_are_valid(exported, monkeypatch, capsys):
    out = exported[1]
    assert resolve_file(out / "alignlab_config.yaml") == resolve_file(exported[0] / "config.yaml")
    commands = re.search(r"```bash\n(.*?)```", card(out)[1], re.S)[1].splitlines()
    monkeypatch.chdir(out)
    places = {"runs/again": str(out.parent / "again"), "runs/judged": str(out.parent / "judged")}
    for line in commands:
        words = line.partition("#")[0].split()
        assert words[0] == "alignlab" and main([places.get(word, word) for word in words[1:]]) == 0
    scores = [
        json.loads((out.parent / file).read_text())["scores"] for file in ("again/metrics.json", "judged/scores.json")
    ]
    assert scores[0] == scores[1] == json.loads((exported[0] / "metrics.json").read_text())["scores"]


def test_it_answers_greedily_and_as_long_as_its_evaluators_asked(exported, tiny_path, tmp_path):
    settings = GenerationConfig.from_pretrained(exported[1])
    assert settings.do_sample is False and settings.max_new_tokens == 7
    backbone = Backbone(str(tiny_path))
    backbone.model.generation_config.update(do_sample=True, temperature=0.3, max_new_tokens=5)
    backbone.save(tmp_path / "sampling")
    export(tmp_path / "sampling", tmp_path / "out")
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.do_sample, settings.temperature, settings.max_new_tokens) == (True, 0.3, 5)
    assert "by sampling, as its start did" in card(tmp_path / "out")[1]


def test_of_a_directory_that_is_no_run_it_says_no_more_than_is_known(tiny_path, tmp_path):
    export(tiny_path, tmp_path / "out")
    front, text = card(tmp_path / "out")
    assert front["tags"] == ["alignlab"] and "is not known here" in text
    assert "## Training" not in text and "## Chat template" in text
    assert not (tmp_path / "out" / "alignlab_config.yaml").exists()


def test_of_a_dual_encoder_it_says_how_transformers_loads_it(tmp_path):
    write_tiny_dual(tmp_path / "clip", CLIPConfig)
    export(tmp_path / "clip", tmp_path / "out")
    front, text = card(tmp_path / "out")
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert "AutoModel.from_pretrained" in text and "## Chat template" not in text
    assert not (tmp_path / "out" / "generation_config.json").exists()


def test_adapters_beside_the_model_come_with_the_card_of_their_run(config, tmp_path):
    plora = {"adapter": {"class_path": "PLoRA", "init_args": {"ranks": {"visual": 2}}}, "evaluators": []}
    run(resolve({**config, **plora}), tmp_path / "run")
    assert export(tmp_path / "run", tmp_path / "out") is not None
    text = card(tmp_path / "out")[1]
    assert "PeftModel.from_pretrained" in re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert "ranks: {visual: 2}" in text and "It was not judged" in text


def test_a_run_with_stages_can_be_made_again_and_a_stage_alone_cannot(config, tmp_path, tiny_path):
    whole = {**config, "evaluators": [], "backbone": {"path": "stage:b"}}
    stages = {"a": {"backbone": {"path": str(tiny_path)}}, "b": {"backbone": {"path": "stage:a"}}}
    run(resolve({**whole, "stages": stages}), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "whole")
    assert "after the stages a, b" in card(tmp_path / "whole")[1] and "alignlab fit" in card(tmp_path / "whole")[1]
    export(tmp_path / "run" / "stages" / "b", tmp_path / "stage")
    assert "one stage of a run" in card(tmp_path / "stage")[1] and "alignlab fit" not in card(tmp_path / "stage")[1]
    assert alignlab.load(tmp_path / "run" / "stages" / "b").start == str(tmp_path / "run/stages/b/../a/backbone")


def test_only_names_of_the_hub_are_told_to_it_as_base_models():
    settings = {"path": "llava-hf/llava-1.5-7b-hf", "take": {"projector": "../there/model"}, "text_tower": None}
    assert _hub_names(settings) == ["llava-hf/llava-1.5-7b-hf"]
    for path in ("scenes-parts", "/models/llava", "runs/a/backbone", "stage:a"):
        assert _hub_names({"path": path, "take": None, "text_tower": "meta-llama/x"}) == ["meta-llama/x"]


def test_what_would_break_a_table_or_a_fence_is_escaped():
    assert _template().environment.filters["cell"]("a | b\nc \\") == "a \\| b c \\\\"
    assert _fenced("x\n```\ny") == "````yaml\nx\n```\ny\n````"
