"""CAL with weights that are computed once: they stay those of the start, and a step is one pass."""

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from alignlab.data import Scenes
from alignlab.objectives import CAL, Optimization

FOLDER = Path(__file__).parents[1] / "experiments" / "cached"


def encode(objective, examples):
    return objective.backbone.encoder.batch(examples, objective.requires)


@pytest.fixture
def trained(monkeypatch, tiny_backbone):
    """After three steps, with its twin from before."""
    before = copy.deepcopy(tiny_backbone)
    monkeypatch.syspath_prepend(FOLDER)
    from cached_cal import CachedCAL

    objective = CachedCAL(tiny_backbone)
    objective.optimization = Optimization(lr=1e-2, schedule="constant")
    trainer = Trainer(max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                      enable_model_summary=False, limit_val_batches=0)  # fmt: skip
    trainer.fit(objective, datamodule=Scenes(num_train=24, batch_size=8))
    return objective, CAL(before)


def test_gains_stay_those_of_the_start(trained):
    objective, start = trained
    split = Scenes(num_train=24).examples("train")
    batch = encode(objective, [split[index] for index in range(20, 12, -1)])
    chat = batch.conversation

    def gain(of, by):
        return of.gain(batch, by.backbone.hidden(chat), of.blind_states(batch, by.backbone.features(chat)))

    torch.testing.assert_close(gain(objective, objective), gain(start, start), rtol=1e-4, atol=1e-5)
    assert (gain(CAL(objective.backbone), objective) - gain(start, start)).abs().max() > 1e-3


def test_a_step_is_one_pass_and_other_data_get_their_gains_anew(trained):
    objective, _ = trained
    passes = []
    objective.backbone.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    for split, expected in (("train", 1), ("val", 2)):
        objective.train(split == "train")
        found = Scenes(num_train=24).examples(split)
        objective.loss(encode(objective, [found[index] for index in range(4)]))
        assert len(passes) == expected
        passes.clear()
