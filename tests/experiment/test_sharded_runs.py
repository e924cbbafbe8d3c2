"""Runs whose processes hold pieces of the weights (fsdp2): they are the run of one process, on disk and after."""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from safetensors.torch import load_file
from torch import distributed

import alignlab
from alignlab import InputError
from alignlab.certificate.children import run_children
from alignlab.experiment import record
from alignlab.experiment.config import digest, dump, resolve
from alignlab.experiment.run import run

LORA = {"class_path": "LoRA", "init_args": {"rank": 2, "dropout": 0.0, "train": ["projector"]}}
PLAIN = {"strategy": "auto", "devices": 1}
SHARDED = {"strategy": "fsdp2", "devices": 2}


def settings(path: Path, batch_size: int, trainer: dict[str, Any], **other: Any) -> dict[str, Any]:
    data = {"class_path": "Scenes", "init_args": {"num_train": 48, "num_val": 4, "num_test": 4}}
    if other["objective"] == "SeVa":
        data = {"class_path": "Preferences", "init_args": {"path": str(pairs(path.parent)), "val_fraction": 0.1}}
    data["init_args"]["batch_size"] = batch_size
    trainer = {"accelerator": "cpu", "max_steps": 3, "log_every_n_steps": 1, "gradient_clip_val": 0.5, **trainer}
    return resolve(
        {
            "backbone": {"path": str(path), "dtype": other.pop("dtype", "float32")},
            "data": data,
            "trainer": {"val_check_interval": 2, "limit_val_batches": 1, **trainer},
            "optimization": {"lr": 1e-2, "weight_decay": 0.1},
            "wandb": {"mode": "disabled"},
            "checkpoint_every": 1,
            **other,
        }
    )


def pairs(folder: Path) -> Path:
    """A folder with 30 preference pairs."""
    if not (folder / "pairs").exists():
        (folder / "pairs").mkdir()
        rows = [
            {
                "images": [Image.new("RGB", (32, 32), color)],
                "prompt": [{"role": "user", "content": "what is there ?"}],
                "chosen": [{"role": "assistant", "content": f"a {color} square"}],
                "rejected": [{"role": "assistant", "content": "two small circles"}],
                "id": f"{number}-{color}",
            }
            for number in range(10)
            for color in ("red", "blue", "green")
        ]
        table = Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
        table.to_parquet(str(folder / "pairs" / "train.parquet"))
    return folder / "pairs"


def curve(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    return [line for line in lines if "train/loss" in line]


def in_group(rank: int, world: int, store: Path, runs: list[tuple[dict[str, Any], Path]]) -> dict[str, Any]:
    """Several runs, one after the other, by one of ``world`` processes; what went wrong instead, by the run's name."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    rank_zero_only.rank = rank
    wait = timedelta(seconds=50)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=wait)
    found = {}
    for config, folder in runs:
        if folder.name == "resumed" and rank == 0:
            go_on(config, folder, folder.parent / "mle")
        distributed.barrier()
        try:
            run(config, folder)
        except InputError as error:
            found[folder.name] = str(error)
        except Exception as error:
            raise RuntimeError(folder.name) from error
        except SystemExit:  # of the second process, when the first one goes on alone
            pass
        distributed.barrier()
    return found


def go_on(config: dict[str, Any], folder: Path, before: Path) -> None:
    """Make a run directory that stands where another one did a step before its end."""
    (folder / "checkpoints").mkdir(parents=True)
    record.write(folder / "config.yaml", record.claim_line(digest(config)) + dump(config))
    shutil.copy(before / "checkpoints" / "previous.ckpt", folder / "checkpoints" / "last.ckpt")


def together(tmp_path: Path, runs: list[tuple[dict[str, Any], Path]]) -> list[dict[str, Any]]:
    store = tmp_path / f"store-{runs[0][1].name}"
    return run_children(in_group, [(rank, 2, store, runs) for rank in range(2)])


@pytest.fixture(scope="module")
def runs(tiny_path, tmp_path_factory):
    """What two processes with pieces made of configs, and said instead; by name."""
    folder = tmp_path_factory.mktemp("sharded")
    configs = {name: settings(tiny_path, 4, {**SHARDED, **case.pop("trainer", {})}, **case) for name, case in cases()}
    first, second = {}, {}
    for start in (0, 4):  # not all at once, as processes that take long are taken to be stuck
        said = together(folder, [(config, folder / name) for name, config in [*configs.items()][start : start + 4]])
        first |= said[0]
        second |= said[1]
    return folder, first, second


def cases():
    return {
        "mle": {"objective": "MLE", "dtype": "float64"},
        "resumed": {"objective": "MLE", "dtype": "float64"},
        "infonce": {"objective": {"class_path": "InfoNCE", "init_args": {"chunk_size": 3}}, "dtype": "float64"},
        "lora": {"objective": "CAL", "dtype": "float64", "adapter": LORA},
        "half": {"objective": "MLE", "trainer": {"precision": "bf16-mixed"}},
        "copy": {"objective": "SeVa"},
        "seva": {"objective": "SeVa", "adapter": {"class_path": "LoRA", "init_args": {"rank": 2}}, "dtype": "float64"},
    }.items()


@pytest.mark.parametrize("name", ["mle", "resumed", "infonce", "lora", "seva"])
def test_two_processes_with_pieces_are_one_with_whole_weights(runs, tiny_path, tmp_path, name):
    folder, *_ = runs
    run(settings(tiny_path, 8, PLAIN, **dict(cases())[name]), tmp_path / "run")
    found, expected = (
        {file.name: load_file(file) for file in sorted((each / "backbone").rglob("*.safetensors"))}
        for each in (folder / name, tmp_path / "run")
    )
    assert found.keys() == expected.keys() and found
    for file, weights in expected.items():
        for key, value in weights.items():
            torch.testing.assert_close(found[file][key], value, rtol=1e-8, atol=1e-8)
    alignlab.load(folder / name)


def test_a_training_in_pieces_goes_on_in_one_process(runs, tiny_path, tmp_path):
    folder, *_ = runs
    config = settings(tiny_path, 8, PLAIN, **dict(cases())["mle"])
    go_on(config, tmp_path / "one", folder / "mle")
    assert run(config, tmp_path / "one")["steps"] == 3
    found, expected = (
        load_file(each / "backbone" / "model.safetensors") for each in (tmp_path / "one", folder / "mle")
    )
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-8, atol=1e-8)
    assert [line["step"] for line in curve(tmp_path / "one")] == [3]


def test_half_precision_trains_near_to_one_process_and_keeps_whole_weights(runs, tiny_path, tmp_path):
    folder, *_ = runs
    run(settings(tiny_path, 8, {**PLAIN, "precision": "bf16-mixed"}, objective="MLE"), tmp_path / "run")
    losses = [[line["train/loss"] for line in curve(each)] for each in (folder / "half", tmp_path / "run")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2) and losses[0] != losses[1]
    assert {each.dtype for each in load_file(folder / "half" / "backbone" / "model.safetensors").values()} == {
        torch.float32
    }


def test_what_exchanges_whole_weights_is_refused_before_the_first_step(runs):
    folder, first, second = runs
    assert "FrozenCopy exchanges whole weights, which FSDP2 cuts into pieces" in first["copy"] and "copy" in second
    assert set(first) == {"copy"}
    assert not (folder / "copy" / "checkpoints").exists()
