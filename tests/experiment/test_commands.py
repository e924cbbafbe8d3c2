"""Commands that train in alignlab's stead: how they are found, run, judged and stopped."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image, List
from safetensors.torch import load_file

from alignlab import InputError, load
from alignlab.cli import main
from alignlab.data import Scenes
from alignlab.experiment.commands import words_of
from alignlab.experiment.config import digest, read, resolve, resolve_file
from alignlab.experiment.run import evaluate_run, run

EXTERNAL = Path(__file__).parents[2] / "experiments" / "external"

SCALE = """
import json, os, shutil, sys
from safetensors.torch import load_file, save_file

output, backbone, *told = sys.argv[1:]
print("told", *told)
assert os.listdir(output) == []
shutil.copytree(backbone, output, dirs_exist_ok=True)
weights = {name: 2 * value for name, value in load_file(f"{output}/model.safetensors").items()}
save_file(weights, f"{output}/model.safetensors", metadata={"format": "pt"})
"""


@pytest.fixture
def config(tiny_path, tmp_path):
    (tmp_path / "scale.py").write_text(SCALE)
    return {
        "command": "python scale.py {output} {backbone} 'two words' --seed={seed} {steps}",
        "backbone": {"path": str(tiny_path)},
        "data": {"class_path": "Scenes", "init_args": {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8}},
        "trainer": {"max_steps": 7},
        "evaluators": [{"class_path": "Retrieval", "init_args": {"num_examples": 8}}],
        "wandb": {"mode": "disabled"},
        "seed": 3,
        "python_path": [str(tmp_path)],
    }


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_what_a_command_leaves_is_judged_and_saved_as_any_run(config, tmp_path, tiny_path, capfd):
    metrics = run(resolve(config), tmp_path / "run")
    start, left = weights(tiny_path), weights(tmp_path / "run" / "backbone")
    assert all(torch.equal(2 * value, left[name]) for name, value in start.items())
    assert (tmp_path / "run" / "command.log").read_text() == "told two words --seed=3 7\n"
    assert "told two words" in capfd.readouterr().out
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["seconds"]["fit"] > 0 and metrics["parameters"]["total"] > 0
    unknown = (metrics["steps"], metrics["samples"], metrics["tokens"], metrics["parameters"]["trained"])
    assert unknown == (None,) * 4
    assert evaluate_run(tmp_path / "run") == pytest.approx(metrics["scores"])
    assert load(tmp_path / "run").model is not None
    before = (tmp_path / "run" / "command.log").stat().st_mtime_ns
    assert run(resolve(config), tmp_path / "run") == metrics
    assert (tmp_path / "run" / "command.log").stat().st_mtime_ns == before


def test_what_a_command_leaves_is_compared_with_what_it_began_with(config, tmp_path):
    config["evaluators"] = [{"class_path": "Retention", "init_args": {"num_examples": 4}}]
    scores = run(resolve(config), tmp_path / "run")["scores"]
    assert scores["retention/text_kl"] > 0.1
    assert evaluate_run(tmp_path / "run") == scores


def test_it_starts_from_fresh_parts_as_an_objective_would(config, tmp_path):
    fresh = {**config, "backbone": {**config["backbone"], "fresh": ["projector"]}, "evaluators": []}
    untrained = {**fresh, "command": None, "objective": "MLE", "trainer": {"max_steps": 0}}
    for name, each in {"trained": fresh, "start": untrained}.items():
        run(resolve(each), tmp_path / name)
    left, start = weights(tmp_path / "trained" / "backbone"), weights(tmp_path / "start" / "backbone")
    assert all(torch.equal(2 * value, left[name]) for name, value in start.items())


def test_keys_that_a_command_does_not_use_are_none(config):
    whole = {**config, "objective": "MLE", "optimization": {"lr": 1e-4}, "adapter": "Full"}
    resolved = resolve(whole)
    assert [resolved[key] for key in ("objective", "optimization", "adapter")] == [None] * 3
    assert resolved == resolve(config) == resolve(resolved)


def test_stages_do_not_inherit_it(config):
    resolved = resolve({**config, "stages": {"first": {"objective": "MLE"}}})
    assert resolved["stages"]["first"]["command"] is None
    assert resolved["stages"]["first"]["objective"]["class_path"] == "MLE"


def test_the_script_is_found_from_anywhere_and_its_content_counts(config, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.yaml").write_text(
        "command: python ../scale.py {output} {backbone}\ndata: Scenes\nbackbone: {path: scenes-vlm}\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resolved = resolve_file(tmp_path / "configs" / "own.yaml")
    assert resolved["python_path"] == [str(tmp_path / "configs")]
    words = words_of(resolved["command"], resolved["python_path"])
    assert words == [sys.executable, str(tmp_path / "scale.py"), "{output}", "{backbone}"]
    before = digest(resolved)
    (tmp_path / "scale.py").write_text(f"{SCALE}\n# changed")
    assert digest(resolved) != before


def test_without_a_command_runs_know_themselves_as_before(config):
    resolved = resolve({**config, "command": None, "objective": "MLE"})
    assert digest(resolved) == digest({name: value for name, value in resolved.items() if name != "command"})


def test_no_shell_sees_it(config, tmp_path):
    command = config["command"].replace("'two words'", "'$(touch gone)' '; false' '*'")
    run(resolve({**config, "command": command, "evaluators": []}), tmp_path / "run")
    assert (tmp_path / "run" / "command.log").read_text() == "told $(touch gone) ; false * --seed=3 7\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": "python scale.py {backbone}"}, "command: it must say {output}"),
        ({"command": "python scale.py {output} {lr}"}, "no placeholder {lr}; there is {output} "),
        ({"command": "python scael.py {output}"}, "there is no file scael.py .looked for in "),
        ({"command": "no-such-program {output}"}, "no-such-program is no program"),
        ({"command": "./scale.py {output}"}, "scale.py may not be executed"),
        ({"command": "python 'scale.py {output}"}, "cannot be split into words"),
        ({"command": "python scale.py {output} {data}"}, "data's path, and Scenes has none"),
        ({"trainer": {}}, "it says {steps}; set trainer.max_steps"),
        ({"command": None}, "objective: missing"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_starts(config, change, message):
    with pytest.raises(InputError, match=message):
        resolve({**config, **change})


def test_a_failure_ends_the_run_with_its_last_lines(config, tmp_path):
    (tmp_path / "scale.py").write_text("print('begun', flush=True)\nraise SystemExit('no memory')")
    with pytest.raises(InputError, match="(?s)ended with exit code 1; all it printed is in .*command.log\n.*no memory"):
        run(resolve(config), tmp_path / "run")
    assert (tmp_path / "run" / "command.log").read_text() == "begun\nno memory\n"
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_what_is_left_must_be_a_model(config, tmp_path):
    (tmp_path / "scale.py").write_text("print('nothing done')")
    with pytest.raises(InputError, match="command: what it left is no model to be judged"):
        run(resolve(config), tmp_path / "run")


def test_after_an_interruption_it_starts_from_nothing(config, tmp_path):
    """The script refuses a directory in which an interrupted one left something."""
    config = resolve({**config, "evaluators": []})

    run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    run(config, tmp_path / "run")
    left, whole = weights(tmp_path / "run" / "backbone"), weights(tmp_path / "whole" / "backbone")
    assert all(torch.equal(value, whole[name]) for name, value in left.items())


def test_a_terminated_run_takes_its_command_along(config, tmp_path):
    pid = tmp_path / "pid"
    (tmp_path / "scale.py").write_text(
        f"import os, time, pathlib\npathlib.Path({str(pid)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    )
    (tmp_path / "own.yaml").write_text(
        "command: python scale.py {output}\ndata: Scenes\nbackbone: {path: scenes-vlm}\nwandb: {mode: disabled}\n"
    )
    command = [sys.executable, "-m", "alignlab.cli", "fit", "--config", str(tmp_path / "own.yaml")]
    process = subprocess.Popen([*command, "--output", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True)
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    assert "interrupted" in process.communicate(timeout=60)[1] and process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_wandb_gets_the_scores_offline(config, tmp_path):
    run(resolve({**config, "wandb": {"mode": "offline"}}), tmp_path / "run")
    (file,) = (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"retrieval/image_to_text_r1" in content and b"command-seed3" in content


def test_fit_and_inspect_of_a_command(config, tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(
        f"command: python scale.py {{output}} {{backbone}}\nbackbone: {{path: {config['backbone']['path']}}}\n"
        "data: {class_path: Scenes, init_args: {num_train: 8, num_test: 8, batch_size: 8}}\n"
        "evaluators: [{class_path: Retrieval, init_args: {num_examples: 8}}]\nwandb: {mode: disabled}\n"
    )
    assert main(["fit", "--config", str(own), "--output", str(tmp_path / "run")]) == 0
    assert "retrieval/image_to_text_r1" in capsys.readouterr().out
    assert main(["inspect", str(own), "--output", str(tmp_path / "page.html")]) == 2
    assert "this config trains by a command" in capsys.readouterr().err
    assert read(tmp_path / "run" / "config.yaml")["objective"] is None


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Eight pairs of the lab, as `alignlab pairs` writes them."""
    folder, examples = tmp_path_factory.mktemp("pairs"), Scenes(num_train=8).examples("train")
    rows = [
        {
            "images": [example.images[0]],
            "prompt": [{"role": "user", "content": example.conversation[0].content[1]}],
            "chosen": [{"role": "assistant", "content": example.conversation[-1].content[0]}],
            "rejected": [{"role": "assistant", "content": example.rejected[0]}],
        }
        for example in map(examples.__getitem__, range(8))
    ]
    Dataset.from_list(rows).cast_column("images", List(Image())).to_parquet(str(folder / "train.parquet"))
    return folder


def test_trl_trains_all_but_the_vision_tower(config, pairs, tmp_path):
    command = (
        "python trl_dpo.py --model {backbone} --pairs {data} --output {output} --steps {steps} --seed {seed} "
        "--batch_size 4 --lr 1e-3 --warmup_steps 1"
    )
    own = {
        "command": command,
        "trainer": {"max_steps": 2},
        "python_path": [str(EXTERNAL)],
        "data": {"class_path": "Preferences", "init_args": {"path": str(pairs), "batch_size": 4}},
        "evaluators": [],
    }
    run(resolve({**config, **own}), tmp_path / "run")
    start, left = weights(Path(config["backbone"]["path"])), weights(tmp_path / "run" / "backbone")
    changed = {name for name, value in start.items() if not torch.equal(value, left[name])}
    assert changed and not any("vision_tower" in name for name in changed)
    assert any("projector" in name for name in changed) and any("lm_head" in name for name in changed)
