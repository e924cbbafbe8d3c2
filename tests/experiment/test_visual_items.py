"""A run whose backbone has a visual tokenizer: its scores, its items with pictures, and what W&B is given of them."""

import json
from functools import partial

import pytest
import torch
from PIL import Image

from alignlab import InputError
from alignlab.experiment.config import resolve
from alignlab.experiment.run import run
from alignlab.modules import PatchPixels, RandomSelection, VisualTokenizer
from alignlab.modules.quantizers import VectorQuantizer


@pytest.fixture
def drawing_path(tiny_backbone, tmp_path):
    """A directory with a backbone that draws."""
    torch.manual_seed(0)
    tokenizer = VisualTokenizer(
        *(32, 36),
        selection=RandomSelection,
        quantizer=partial(VectorQuantizer, num_codes=8),
        **{"depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "code_dim": 4},
    )
    tokenizer.pixel_decoder = PatchPixels(32, grid=(6, 6), patch_size=8, hidden=8)
    tiny_backbone.visual_tokenizer = tokenizer
    tiny_backbone.add_visual_tokens()
    tiny_backbone.save(tmp_path / "drawing")
    return tmp_path / "drawing"


@pytest.fixture
def config(drawing_path):
    sizes = {"num_train": 16, "num_val": 8, "num_test": 8, "num_objects": [1, 2], "batch_size": 8}
    few = {"num_examples": 4, "num_pictures": 2}
    return {
        "objective": "MLE",
        "backbone": {"path": str(drawing_path)},
        "data": {"class_path": "Scenes", "init_args": sizes},
        "trainer": {"max_steps": 1, "limit_val_batches": 1},
        "evaluators": [
            {"class_path": "Reconstruction", "init_args": few},
            {"class_path": "ImageGeneration", "init_args": few},
        ],
        "wandb": {"mode": "offline"},
    }


def test_scores_and_pictures_are_written_and_mirrored(config, tmp_path):
    metrics = run(resolve(config), tmp_path / "run")
    scores = metrics["scores"]
    assert scores["reconstruction/tokens"] == 12 and scores["reconstruction/bits"] == 36
    assert 0 < scores["reconstruction/usage"] <= 1 <= scores["drawing/tokens"] <= 36
    for name, pictured in (("reconstruction", 3), ("drawing", 2)):  # the codebook is shown, too
        file = tmp_path / "run" / "items" / f"{name}.jsonl"
        items = [json.loads(line) for line in file.read_text().splitlines()]
        shown = [item for item in items if item["picture"] is not None]
        assert len(shown) == pictured
        assert all(Image.open(tmp_path / "run" / item["picture"]).width > 96 for item in shown)
        (file,) = (tmp_path / "run").glob(f"wandb/offline-run-*/files/media/table/examples/{name}*.json")
        assert [row[0] for row in json.loads(file.read_text())["data"]] == [item["id"] for item in shown]
        artifacts = (tmp_path / "run" / "wandb" / "artifacts").rglob("*")
        staged = [path.read_bytes() for path in artifacts if path.is_file()]
        assert all((tmp_path / "run" / item["picture"]).read_bytes() in staged for item in shown)


def test_what_cannot_draw_is_refused_before_training(config, tiny_path, tmp_path):
    config["backbone"] = {"path": str(tiny_path)}
    with pytest.raises(InputError, match="ImageGeneration needs a backbone that draws, but .* lacks"):
        run(resolve(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
