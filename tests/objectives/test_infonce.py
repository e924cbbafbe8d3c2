import math

import pytest
import torch

from alignlab import InputError
from alignlab.functional import normalize
from alignlab.objectives import InfoNCE


def batch_of(objective, examples, count=6):
    return objective.backbone.encoder.batch(examples[:count], objective.requires)


def test_equals_cross_entropies_written_out(tiny_backbone64, examples):
    objective = InfoNCE(tiny_backbone64, scale=20.0)
    batch = batch_of(objective, examples)
    q, t = normalize(tiny_backbone64.embed(batch.query)), normalize(tiny_backbone64.embed(batch.target))
    total = 0.0
    for i in range(6):
        total += torch.log(sum(torch.exp(20 * (q[i] @ t[j] - q[i] @ t[i])) for j in range(6)))
        total += torch.log(sum(torch.exp(20 * (q[j] @ t[i] - q[i] @ t[i])) for j in range(6)))
    torch.testing.assert_close(objective.loss(batch).mean, total / 12, rtol=1e-6, atol=0)


def test_a_tiny_scale_gives_chance(tiny_backbone, examples):
    objective = InfoNCE(tiny_backbone, scale=1e-6)
    assert objective.loss(batch_of(objective, examples)).mean.item() == pytest.approx(math.log(6), rel=1e-5)


def test_the_scale_trains_only_when_learned(tiny_backbone, examples):
    for learn in (True, False):
        objective = InfoNCE(tiny_backbone, learn_scale=learn)
        objective.loss(batch_of(objective, examples)).mean.backward()
        assert (objective.log_scale.grad is not None) == learn


def test_the_scale_is_clamped_after_the_step_but_not_in_the_loss(tiny_backbone, examples):
    objective = InfoNCE(tiny_backbone, scale=50.0, max_scale=50.0)
    with torch.no_grad():
        objective.log_scale += 1.0
    objective.loss(batch_of(objective, examples)).mean.backward()
    assert objective.log_scale.grad != 0  # it could still come back by itself
    objective.on_train_batch_end(None, None, 0)
    assert objective.log_scale.exp().item() == pytest.approx(50.0)


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"scale": 200.0}, {"label_smoothing": 1.0}])
def test_settings_out_of_range_are_refused(tiny_backbone, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        InfoNCE(tiny_backbone, **settings)


def test_a_scale_above_the_clamp_is_allowed_when_fixed(tiny_backbone):
    InfoNCE(tiny_backbone, scale=200.0, learn_scale=False)
