from dataclasses import replace

import pytest
import torch
from transformers import CLIPConfig

from alignlab import InputError
from alignlab.adapters import Full
from alignlab.backbones import open_backbone
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.data import Scenes
from alignlab.experiment.config import resolve
from alignlab.experiment.embed import embed
from alignlab.experiment.run import load, run
from alignlab.functional import info_nce, normalize
from alignlab.objectives import CLIP, LLM2CLIP

pytestmark = pytest.mark.filterwarnings("ignore:LLM2CLIP freezes")


@pytest.fixture
def backbone(tiny_path):
    torch.manual_seed(0)
    return open_backbone(str(tiny_path), text_tower=str(tiny_path), dtype="float64")


def states(backbone, examples):
    """What the language model makes of the targets, before the adapter."""
    tokens = backbone.encoder.contents([e.target for e in examples])
    output = backbone.model.language_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    return output.last_hidden_state[torch.arange(len(tokens)), tokens.attention_mask.sum(1) - 1]


def test_equals_clip_between_pictures_and_adapted_states(backbone, examples):
    objective = LLM2CLIP(backbone, label_smoothing=0.1)
    batch = backbone.encoder.batch(examples[:6], objective.requires)
    x, y = normalize(backbone.embed(batch.query)), normalize(backbone.text_adapter(states(backbone, examples[:6])))
    expected = info_nce(x, y, scale=1 / 0.07, symmetric=True, label_smoothing=0.1)
    torch.testing.assert_close(objective.loss(batch).mean, expected)


def test_without_a_frozen_text_tower_it_is_clip(backbone, examples):
    batch = backbone.encoder.batch(examples[:6], ("query", "target"))
    torch.testing.assert_close(LLM2CLIP(backbone).loss(batch).mean, CLIP(backbone).loss(batch).mean)


def test_the_language_model_is_frozen_silent_and_in_evaluation_mode(backbone, examples):
    Full().apply(backbone)
    with pytest.warns(UserWarning, match="freezes the language_model"):
        objective = LLM2CLIP(backbone)
    assert not backbone.model.language_model.training and backbone.model.vision_tower.training
    assert not objective.train().backbone.model.language_model.training
    objective.loss(backbone.encoder.batch(examples[:6], objective.requires)).mean.backward()
    trained = {part for parameter, part in backbone.part_of() if parameter.grad is not None}
    assert trained == {"vision_tower", "projector"} and objective.log_scale.grad is not None


def test_a_frozen_one_is_left_without_a_word(backbone, recwarn):
    Full(parts=["projector"]).apply(backbone)
    LLM2CLIP(backbone)
    assert not [each for each in recwarn if "freezes" in str(each.message)]


def test_precomputed_embeddings_stand_for_the_language_model(backbone, examples):
    found = states(backbone, examples[:6]).tolist()
    known = [replace(e, query=e.query[:1], embedding=tuple(row)) for e, row in zip(examples, found, strict=False)]
    computed, precomputed = LLM2CLIP(backbone), LLM2CLIP(backbone, precomputed=True)
    assert precomputed.requires == ("query", "embedding")
    expected = computed.loss(backbone.encoder.batch(known, computed.requires)).mean
    batch = backbone.encoder.batch(known, precomputed.requires)
    backbone.model.language_model = None  # never run
    torch.testing.assert_close(precomputed.loss(batch).mean, expected, rtol=1e-5, atol=1e-6)  # read as float32


def test_embeddings_of_another_width_are_refused_before_training(backbone, examples):
    data = Scenes(num_train=8, num_val=2, batch_size=4)  # whose own teacher has 184 numbers
    LLM2CLIP(backbone).prepare(data, 1)
    with pytest.raises(InputError, match="the data's embeddings have 184 numbers, but the text tower's have 32"):
        LLM2CLIP(backbone, precomputed=True).prepare(data, 1)
    with pytest.raises(InputError, match="LLM2CLIP compares each sample .* data.batch_size = 1"):
        LLM2CLIP(backbone).prepare(Scenes(batch_size=1), 1)


def test_a_file_of_the_text_tower_s_embeddings_trains_as_the_text_tower_does(backbone, tmp_path):
    data = {"class_path": "Scenes", "init_args": {"num_train": 8, "num_val": 4, "batch_size": 8, "instructions": False}}
    backbone.save(tmp_path / "towers")
    config = {
        "objective": {"class_path": "LLM2CLIP", "init_args": {"precomputed": True}},
        "backbone": {"path": str(tmp_path / "towers")},
        "data": data, "trainer": {"max_steps": 1}, "evaluators": [], "wandb": {"mode": "disabled"},
    }  # fmt: skip
    embed(resolve({**config, "objective": "CLIP"}), tmp_path / "texts.safetensors", str(tmp_path / "towers"))
    init_args = {**data["init_args"], "embeddings": str(tmp_path / "texts.safetensors")}
    run(resolve({**config, "data": {**data, "init_args": init_args}}), tmp_path / "read")
    run(resolve({**config, "objective": "LLM2CLIP"}), tmp_path / "computed")
    first, second = (load(tmp_path / name).state_dict() for name in ("read", "computed"))
    start = backbone.state_dict()
    moved = [name for name, value in first.items() if name in start and not torch.equal(value, start[name])]
    assert any("text_adapter" in name for name in moved) and any("vision_tower" in name for name in moved)
    assert not any("language_model" in name for name in moved)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_backbone_without_an_adapter_is_refused(tiny_backbone, tmp_path):
    write_tiny_dual(tmp_path, CLIPConfig)
    for other in (tiny_backbone, open_backbone(str(tmp_path))):
        with pytest.raises(InputError, match="LLM2CLIP needs a dual encoder whose texts a language model reads"):
            LLM2CLIP(other)


def test_settings_out_of_range_are_refused(backbone):
    with pytest.raises(InputError, match="label_smoothing < 1"):
        LLM2CLIP(backbone, label_smoothing=1.0)
