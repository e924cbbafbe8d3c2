"""The starts in the package: independent of each other, ordinary directories, and small."""

import hashlib

import pytest
from safetensors import safe_open

from alignlab.backbones import Encoder
from alignlab.backbones.locations import CHECKPOINTS, packaged
from alignlab.data.scenes.lexicon import VOCABULARY

STARTS = [f"scenes-{kind}{number}" for kind in ("parts", "vlm") for number in ("", "-1", "-2", "-3", "-4")]


def weights(name):
    with safe_open(CHECKPOINTS / name / "model.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def test_five_starts_of_each_kind_are_in_the_package():
    assert sorted(packaged()) == sorted(STARTS)


def test_no_two_starts_are_the_same():
    files = [(CHECKPOINTS / name / "model.safetensors").read_bytes() for name in STARTS]
    assert len({hashlib.sha256(file).hexdigest() for file in files}) == len(STARTS)


@pytest.mark.parametrize("number", ["", "-1", "-2", "-3", "-4"])
def test_an_aligned_start_has_its_own_parts_tower_and_another_language_model(number):
    parts, aligned = weights(f"scenes-parts{number}"), weights(f"scenes-vlm{number}")
    assert parts.keys() == aligned.keys()
    same = {key for key in parts if parts[key].equal(aligned[key])}
    assert {key for key in parts if "vision_tower" in key} <= same
    assert not {key for key in parts if "language_model" in key and key.endswith("proj.weight")} & same


@pytest.mark.parametrize("name", STARTS)
def test_a_start_knows_every_word_of_the_lab(name):
    tokenizer = Encoder.load(name).tokenizer
    assert tokenizer.unk_token_id not in tokenizer.convert_tokens_to_ids(list(VOCABULARY))


def test_the_starts_are_small():
    size = sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file())
    assert size < 6.1e6
