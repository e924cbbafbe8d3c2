"""Real pictures: training on photographs in LLaVA's conversation format, through the real processor."""

import json
from pathlib import Path

import pytest
import skimage
from PIL import Image

from alignlab.experiment.config import resolve
from alignlab.experiment.run import run

NAMES = ("astronaut.png", "coffee.png", "chelsea.png", "motorcycle_left.png", "rocket.jpg", "camera.png")


@pytest.fixture
def photographs(tmp_path):
    shipped = [path for path in Path(skimage.__file__).parent.joinpath("data").iterdir() if path.name in NAMES]
    assert shipped, "scikit-image ships photographs in its wheel"
    records = []
    for index in range(24):
        source = shipped[index % len(shipped)]
        target = tmp_path / f"{index}{source.suffix}"
        picture = Image.open(source)
        picture.crop((index, index, picture.width - index, picture.height - index)).save(target)
        turns = [
            {"from": "human", "value": "<image>\ndescribe the image ."},
            {"from": "gpt", "value": "a large black circle ."},
            {"from": "human", "value": "is there a circle ?"},
            {"from": "gpt", "value": "yes"},
        ]
        records.append({"id": f"photo/{index}", "image": target.name, "conversations": turns})
    (tmp_path / "photos.json").write_text(json.dumps(records))
    return tmp_path


def test_a_run_on_photographs(photographs, tiny_path, tmp_path):
    config = {
        "objective": "MLE",
        "backbone": {"path": str(tiny_path)},
        "data": {
            "class_path": "LlavaJson",
            "init_args": {
                "path": str(photographs / "photos.json"), "image_folder": str(photographs), "batch_size": 4,
                "val_fraction": 0.2, "num_workers": 1,
            },
        },
        "optimization": {"lr": 1e-2},
        "trainer": {"max_steps": 8, "log_every_n_steps": 1, "limit_val_batches": 1, "check_val_every_n_epoch": 1},
        "evaluators": [],
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    run(resolve(config), tmp_path / "run")
    curve = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in curve if "train/loss" in line]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.5
