"""Fixtures: tiny real models, built from configs."""

import json
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # also of children; else Lightning sets it, and a fork of a pool of threads hangs
import pytest
import torch

from alignlab.backbones import Backbone
from alignlab.data import Scenes

GOLDEN = Path(__file__).parent / "golden"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """Read a recorded file: golden("contrastive/open_clip_ClipLoss")."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory) -> Path:
    """A directory with a random LLaVA of one layer each, with the lab's processor."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from alignlab.backbones import locate

    folder = tmp_path_factory.mktemp("tiny")
    config = AutoConfig.from_pretrained(locate("scenes-parts"))
    config.vision_config.hidden_size = config.text_config.hidden_size = 32
    config.vision_config.intermediate_size = config.text_config.intermediate_size = 48
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(locate("scenes-parts")).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_backbone(tiny_path) -> Backbone:
    return Backbone(str(tiny_path))


@pytest.fixture
def tiny_backbone64(tiny_path) -> Backbone:
    """In float64, where two ways to the same gradient must agree closely."""
    return Backbone(str(tiny_path), dtype="float64")


@pytest.fixture(scope="session")
def examples():
    """24 training examples of the lab."""
    split = Scenes(num_train=64).examples("train")
    return [split[index] for index in range(24)]
