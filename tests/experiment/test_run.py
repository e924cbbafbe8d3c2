"""One experiment end to end: the run directory, resuming, stages, evaluating again, W&B files."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import alignlab
from alignlab import InputError
from alignlab.backbones import Encoder
from alignlab.experiment import record, shading
from alignlab.experiment.config import digest, read, resolve
from alignlab.experiment.run import evaluate_run, run
from alignlab.objectives import MLE


@pytest.fixture
def config(tiny_path):
    return {
        "objective": "MLE",
        "backbone": {"path": str(tiny_path)},
        "data": {"class_path": "Scenes", "init_args": {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8}},
        "trainer": {"max_steps": 7, "log_every_n_steps": 1, "limit_val_batches": 1},
        "evaluators": [
            {"class_path": "CaptionAccuracy", "init_args": {"num_examples": 4, "max_new_tokens": 3, "num_pictures": 2}},
            {"class_path": "Retrieval", "init_args": {"num_examples": 8}},
        ],
        "wandb": {"mode": "disabled"},
        "checkpoint_every": 2,
    }


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder):
    return load_file(folder / "backbone" / "model.safetensors")


def named(tensors, part):
    """The first weight whose name holds ``part``; files keep the names of older transformers."""
    return next(value for name, value in tensors.items() if part in name and name.endswith("weight"))


def test_a_run_directory_is_complete(config, tmp_path):
    seen = []
    metrics = run(resolve(config), tmp_path / "run", on_progress=seen.append)
    folder = tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert {"caption/exact", "retrieval/image_to_text_r1"} <= set(metrics["scores"])
    assert metrics["steps"] == 7 and metrics["samples"] == 56 and metrics["tokens"] > 56 * 36
    assert 0 < metrics["seconds"]["fit"] < 100 and 0 < metrics["seconds"]["evaluate"] < 100
    assert metrics["parameters"]["trained"] == metrics["parameters"]["total"] > 0
    assert set(metrics["parameters"]["parts"]) == {"vision_tower", "projector", "language_model"}
    assert [each.step for each in seen if each.parameters == metrics["parameters"]] == [0]
    curve = lines(folder / "curve.jsonl")
    assert [line["step"] for line in curve if "train/loss" in line] == list(range(1, 8))
    assert any("val/loss" in line for line in curve)
    assert resolve(read(folder / "config.yaml")) == resolve(config)
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["packages"]["torch"] == torch.__version__ and "commit" in versions["git"]
    prompt, encoder = json.loads((folder / "prompt.json").read_text()), Encoder.load(str(folder / "backbone"))
    assert prompt["chat_template"] == (folder / "backbone" / "chat_template.jinja").read_text()
    assert prompt["tokenizer_fingerprint"] == encoder.tokenizer_fingerprint()
    items = lines(folder / "items" / "caption.jsonl")
    assert len(items) == 4 and [bool(item["picture"]) for item in items] == [True, True, False, False]
    assert (folder / items[0]["picture"]).exists()
    AutoModelForImageTextToText.from_pretrained(folder / "backbone")


def test_two_evaluators_of_one_class_judge_two_data_sets_side_by_side(config, tmp_path):
    own = {"class_path": "Scenes", "init_args": {"num_test": 3, "seed": 1}}
    settings = {"max_new_tokens": 3, "num_pictures": 1, "data": own, "label": "elsewhere"}
    other = {"class_path": "CaptionAccuracy", "init_args": settings}
    scores = run(
        resolve({**config, "trainer": {"max_steps": 1}, "evaluators": [other, *config["evaluators"]]}), tmp_path
    )
    assert {"elsewhere/exact", "caption/exact"} <= set(scores["scores"])
    assert [len(lines(tmp_path / "items" / f"{name}.jsonl")) for name in ("elsewhere", "caption")] == [3, 4]
    assert lines(tmp_path / "items" / "elsewhere.jsonl")[0]["picture"] == "pictures/elsewhere-0.png"


def test_training_changes_the_weights_and_the_seed_changes_training(config, tmp_path, tiny_path):
    for seed in (0, 1):
        run(resolve({**config, "seed": seed, "evaluators": []}), tmp_path / str(seed))
    first, second, start = weights(tmp_path / "0"), weights(tmp_path / "1"), load_file(tiny_path / "model.safetensors")
    assert not torch.equal(named(first, "lm_head"), named(start, "lm_head"))
    assert not torch.equal(named(first, "lm_head"), named(second, "lm_head"))


def test_an_interrupted_run_resumes_to_the_same_weights_and_curve(config, tmp_path):
    config = resolve({**config, "evaluators": []})
    whole = run(config, tmp_path / "whole")

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "parts", on_progress=stop)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    parts = run(config, tmp_path / "parts")
    assert parts["samples"] == whole["samples"] and parts["tokens"] == whole["tokens"]
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "parts").items())
    curves = [[line for line in lines(tmp_path / name / "curve.jsonl")] for name in ("whole", "parts")]
    assert curves[0] == curves[1]


def test_a_finished_run_is_left_as_it_is(config, tmp_path):
    config = resolve({**config, "evaluators": []})
    metrics = run(config, tmp_path)
    before = (tmp_path / "backbone" / "model.safetensors").stat().st_mtime_ns
    assert run(config, tmp_path) == metrics
    assert (tmp_path / "backbone" / "model.safetensors").stat().st_mtime_ns == before


def test_another_config_or_foreign_files_are_not_overwritten(config, tmp_path):
    run(resolve({**config, "evaluators": []}), tmp_path / "run")
    with pytest.raises(InputError, match="holds a run of another config"):
        run(resolve({**config, "evaluators": [], "seed": 5}), tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="is no run directory"):
        run(resolve(config), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_evaluating_again_gives_the_same_scores_also_after_moving(config, tmp_path):
    metrics = run(resolve(config), tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert evaluate_run(tmp_path / "moved") == pytest.approx(metrics["scores"])
    assert (tmp_path / "moved" / "evaluation" / "scores.json").exists()


def test_retention_compares_with_what_this_stage_began_with_also_after_moving(config, tmp_path):
    config |= {
        "evaluators": [{"class_path": "Retention", "init_args": {"num_examples": 4}}],
        "adapter": {"class_path": "Full", "init_args": {"parts": ["projector"]}},
        "trainer": {"max_steps": 1},
        "stages": {"one": {"backbone": config["backbone"], "adapter": "Full", "evaluators": []}},
        "backbone": {"path": "stage:one"},
    }
    scores = run(resolve(config), tmp_path / "run")["scores"]
    # The first stage changed everything, the second the projector alone.
    assert scores["retention/text_kl"] == 0.0 < scores["retention/image_kl"]
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert evaluate_run(tmp_path / "moved") == scores


def test_load_gives_the_trained_backbone(config, tmp_path):
    run(resolve({**config, "evaluators": []}), tmp_path)
    backbone = alignlab.load(tmp_path)
    assert not backbone.training
    assert torch.equal(backbone.model.lm_head.weight, named(weights(tmp_path), "lm_head"))
    with pytest.raises(InputError, match="no run"):
        alignlab.load(tmp_path / "nothing")


def test_stages_hand_on_named_parts(config, tmp_path):
    config = {
        **config,
        "evaluators": [],
        "trainer": {"max_steps": 0},
        "backbone": {**config["backbone"], "take": {"language_model": "stage:words"}},
        "stages": {
            "words": {
                "trainer": {"max_steps": 2},
                "backbone": {"take": None},
                "data": {"init_args": {"tasks": ["text"]}},
            }
        },
    }
    run(resolve(config), tmp_path)
    stage, final = weights(tmp_path / "stages" / "words"), weights(tmp_path)
    start = load_file(f"{config['backbone']['path']}/model.safetensors")
    assert torch.equal(named(final, "lm_head"), named(stage, "lm_head"))
    assert not torch.equal(named(stage, "lm_head"), named(start, "lm_head"))
    assert torch.equal(named(final, "projector"), named(start, "projector"))


def test_runs_that_share_stages_train_each_once(config, tmp_path):
    def differing(lr: float, **first) -> dict:
        stages = {
            "one": {"trainer": {"max_steps": 2}, "backbone": config["backbone"], **first},
            "two": {"trainer": {"max_steps": 1}, "backbone": {"path": "stage:one"}},
        }
        return resolve(
            {
                **config,
                "evaluators": [],
                "trainer": {"max_steps": 1},
                "backbone": {"path": "stage:two"},
                "optimization": {"lr": lr},
                "stages": {name: {**stage, "optimization": {"lr": 1e-3}} for name, stage in stages.items()},
            }
        )

    shared = tmp_path / "stages"
    for number, each in enumerate((differing(1e-3), differing(2e-3), differing(1e-3, seed=1))):
        run(each, tmp_path / str(number), shared=shared)
        if number == 0:
            trained = {file: file.stat().st_mtime_ns for file in shared.glob("*/metrics.json")}
            assert sorted(file.parent.name.partition("-")[0] for file in trained) == ["one", "two"]
    # Another seed of the first stage is another second stage, although nothing is written differently there.
    after = {file: file.stat().st_mtime_ns for file in shared.glob("*/metrics.json")}
    assert trained.items() < after.items() and len(after) == 4
    assert not (tmp_path / "0" / "stages").exists()
    run(differing(1e-3), tmp_path / "alone")
    assert weights(tmp_path / "alone").keys() == weights(tmp_path / "0").keys()
    assert all(torch.equal(value, weights(tmp_path / "0")[name]) for name, value in weights(tmp_path / "alone").items())


def test_a_limit_that_cuts_images_is_refused_before_the_weights_are_read(config, tmp_path, tiny_path):
    shutil.copytree(tiny_path, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"never read")
    config = {**config, "backbone": {"path": str(tmp_path / "model"), "max_length": 20}}
    with pytest.raises(InputError, match="would cut the image tokens"):
        run(resolve(config), tmp_path / "run")


def test_wandb_gets_the_run_offline(config, tmp_path):
    wandb = {"mode": "offline", "group": "a-study", "tags": ["arm-a"]}
    weights = {"class_path": "TokenWeights", "init_args": {"num_examples": 3, "num_pictures": 2, "high": 4.0}}
    run(resolve({**config, "evaluators": [*config["evaluators"], weights], "wandb": wandb}), tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    for expected in (
        b"a-study",
        b"arm-a",
        b"MLE-seed0",
        b"caption/exact",
        b"examples/caption",
        b"train/loss",
        b"max_steps",
    ):
        assert expected in content, expected
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/examples/caption*.json")
    assert len(json.loads(table.read_text())["data"]) == 2
    assert any(path.is_file() for path in (tmp_path / "wandb" / "artifacts").rglob("*"))  # the table's pictures
    check_table_of_weights(tmp_path)


def check_table_of_weights(folder):
    """The items with pictures, whose tokens are a page each."""
    items = lines(folder / "items" / "weights.jsonl")
    assert [item["picture"] is None for item in items] == [False, False, True]
    assert all(item["bounds"] == [1.0, 4.0] and item["weights"][-1][0] == " </s>" for item in items)
    (file,) = folder.glob("wandb/offline-run-*/files/media/table/examples/weights*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["id", "picture", "prompt", "reference", "output", "score", "weights"]
    assert [row[-1] for row in table["data"]] == ["Html", "Html"]
    staged = [path.read_bytes() for path in (folder / "wandb" / "artifacts").rglob("*") if path.is_file()]
    assert all(shading.page(item).encode() in staged for item in items[:2])


class Noisy(MLE):
    """An objective with randomness of its own."""

    def loss(self, batch):
        loss = super().loss(batch)
        return replace(loss, mean=loss.mean * torch.rand(()))


def test_randomness_goes_on_after_an_interruption(config, tmp_path, monkeypatch):
    monkeypatch.setattr("alignlab.objectives.MLE", Noisy)
    test_an_interrupted_run_resumes_to_the_same_weights_and_curve(config, tmp_path)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interruption_before_the_first_checkpoint_leaves_no_double_curve(config, tmp_path, stop_at):
    config = resolve({**config, "evaluators": [], "checkpoint_every": 5})

    def stop(progress):
        if progress.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, on_progress=stop)
    run(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path / "curve.jsonl") if "train/loss" in line] == list(range(1, 8))


def test_the_last_checkpoint_is_that_of_the_last_step(config, tmp_path):
    run(resolve({**config, "evaluators": []}), tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"class_path": "Scenes", "init_args": {"image_size": 50}}}, "multiple of 24"),
        ({"objective": {"class_path": "InfoNCE", "init_args": {"scale": -1.0}}}, "0 < scale"),
        ({"adapter": {"class_path": "Full", "init_args": {"parts": []}}}, "one or more of vision_tower"),
        ({"optimization": {"betas": [2.0, 3.0]}}, "betas must lie in"),
        ({"optimization": {"weight_decay": -1.0}}, "weight_decay >= 0"),
        ({"trainer": {"max_steps": -5}}, "trainer: .*max_steps"),
        ({"trainer": {"accelerator": "warp"}}, "trainer: .*warp"),
        ({"trainer": {"log_every_n_steps": 0}}, "log_every_n_steps must be at least 1"),
        ({"trainer": {"precision": "bf16-true"}}, "trainer.precision: bf16-true would change"),
        (
            {"data": {"class_path": "Scenes", "init_args": {"num_train": 4}}},
            "4 training examples, fewer than one batch",
        ),
        ({"backbone": {"max_length": -5}}, "max_length must be at least 1"),
        ({"objective": "InfoNCE", "backbone": {"max_length": 44}}, "would cut a content of 48 tokens"),
        (
            {"evaluators": ["Retention"], "backbone": {"fresh": ["language_model"]}},
            "drawn anew, or taken from elsewhere",
        ),
        (
            {"evaluators": [{"class_path": "Retention", "init_args": {"base": "/nowhere"}}]},
            "Retention: base: there is no directory '/nowhere'",
        ),
        ({"evaluators": ["LocalizationError"]}, "LocalizationError needs a backbone that points"),
        ({"evaluators": [{"class_path": "Retrieval", "init_args": {"label": "a/b"}}]}, "its label names files"),
        (
            {
                "data": {"class_path": "Scenes", "init_args": {"tasks": ["caption"]}},
                "evaluators": ["Retrieval"],
                "backbone": {"max_length": 47},
            },
            "would cut a content of 48 tokens",
        ),
        (
            {
                "evaluators": [
                    {
                        "class_path": "Retrieval",
                        "init_args": {"data": {"class_path": "Scenes", "init_args": {"image_size": 50}}},
                    }
                ]
            },
            "multiple of 24",
        ),
    ],
)
def test_what_can_be_known_beforehand_leaves_no_directory(config, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(resolve({**config, **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_where_the_directory_should_be_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="a run needs a directory"):
            run(resolve(config), output)
    assert (tmp_path / "file").read_text() == "precious"


def test_two_processes_do_not_share_a_run_directory(config, tmp_path):
    with record.locked(tmp_path / "run"), pytest.raises(InputError, match="another process is at work"):
        run(resolve(config), tmp_path / "run")


def test_the_last_steps_of_an_epoch_are_logged(config, tmp_path):
    trainer = {"max_steps": -1, "max_epochs": 1, "log_every_n_steps": 4, "limit_val_batches": 0}
    run(resolve({**config, "evaluators": [], "trainer": trainer}), tmp_path)
    assert [line["step"] for line in lines(tmp_path / "curve.jsonl")] == [4, 5]


def test_the_source_of_ones_own_class_is_part_of_the_config(config, tmp_path):
    source = "from alignlab.objectives import MLE\nclass Mine(MLE):\n    '''Mine.'''\n    factor = {}\n"
    digests = set()
    for factor in (1, 7):
        folder = tmp_path / str(factor)
        folder.mkdir()
        (folder / "mine_alone.py").write_text(source.format(factor))
        sys.modules.pop("mine_alone", None)
        own = {**config, "objective": "mine_alone.Mine", "python_path": [str(folder)]}
        digests.add(digest(resolve(own)))
        sys.path.remove(str(folder))
    sys.modules.pop("mine_alone")
    assert len(digests) == 2
