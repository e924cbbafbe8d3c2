import math
from dataclasses import replace

import pytest
import torch

from alignlab import InputError
from alignlab.data import Scenes
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
    objective.after_step()
    assert objective.log_scale.exp().item() == pytest.approx(50.0)


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"scale": 200.0}, {"label_smoothing": 1.0}])
def test_settings_out_of_range_are_refused(tiny_backbone, settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        InfoNCE(tiny_backbone, **settings)


def test_a_scale_above_the_clamp_is_allowed_when_fixed(tiny_backbone):
    InfoNCE(tiny_backbone, scale=200.0, learn_scale=False)


def ragged(examples):
    """Six pairs of which the first has two negatives, a picture the second, no one else any; the last two one group."""
    own = [(("a small red circle .",), ("a large blue cross .",)), ((examples[7].images[0],),), (), (), (), ()]
    groups = ["", "", "", "", "twin", "twin"]
    return [replace(e, negatives=n, group=g) for e, n, g in zip(examples, own, groups, strict=False)]


class TestNegatives:
    def test_they_join_the_candidates_of_all_queries_and_search_for_nothing(self, tiny_backbone64, examples):
        objective = InfoNCE(tiny_backbone64, scale=20.0, negatives=True)
        assert objective.requires == ("query", "target", "negatives")
        batch = batch_of(objective, ragged(examples))
        assert batch.num_negatives.tolist() == [2, 1, 0, 0, 0, 0]
        q, t, n = (normalize(tiny_backbone64.embed(side)) for side in (batch.query, batch.target, batch.negatives))
        there, back = 20 * q @ torch.cat([t, n]).T, 20 * t @ q.T  # (6, 9), (6, 6)
        right = torch.arange(6)
        expected = (there.logsumexp(1) - there[right, right] + back.logsumexp(1) - back[right, right]).mean() / 2
        torch.testing.assert_close(objective.loss(batch).mean, expected)

    def test_none_in_the_batch_is_plain_info_nce(self, tiny_backbone64, examples):
        with_none = [replace(example, negatives=()) for example in examples[:6]]
        losses = [InfoNCE(tiny_backbone64, negatives=negatives) for negatives in (True, False)]
        first, second = (each.loss(batch_of(each, with_none)).mean for each in losses)
        torch.testing.assert_close(first, second)

    def test_a_single_pair_has_its_own_negatives_to_be_told_from(self, tiny_backbone, examples):
        objective = InfoNCE(tiny_backbone, scale=1e-6, negatives=True, symmetric=False)
        loss = objective.loss(batch_of(objective, ragged(examples), 1)).mean
        assert loss.item() == pytest.approx(math.log(3), rel=1e-4)


class TestGroups:
    def test_samples_of_one_group_are_no_negatives_of_each_other(self, tiny_backbone, examples):
        objective = InfoNCE(tiny_backbone, scale=1e-6, groups=True)
        # At chance, four of six samples choose among 6, and the two of one group among 5, in both directions.
        loss = objective.loss(batch_of(objective, ragged(examples))).mean
        assert loss.item() == pytest.approx((4 * math.log(6) + 2 * math.log(5)) / 6, rel=1e-4)

    def test_negatives_are_of_no_group(self, tiny_backbone, examples):
        objective = InfoNCE(tiny_backbone, scale=1e-6, groups=True, negatives=True, symmetric=False)
        loss = objective.loss(batch_of(objective, ragged(examples))).mean
        assert loss.item() == pytest.approx((4 * math.log(9) + 2 * math.log(8)) / 6, rel=1e-4)

    def test_everything_of_one_group_leaves_nothing_to_learn(self, tiny_backbone, examples):
        objective = InfoNCE(tiny_backbone, groups=True)
        one = [replace(example, group="one") for example in examples[:4]]
        loss = objective.loss(batch_of(objective, one)).mean
        loss.backward()
        assert loss == 0 and objective.log_scale.grad == 0


def test_a_batch_of_one_is_zero_without_a_gradient_and_refused_as_a_setting(tiny_backbone, examples):
    objective = InfoNCE(tiny_backbone)
    loss = objective.loss(batch_of(objective, examples, 1)).mean
    loss.backward()
    assert loss == 0 and all(p.grad is None or not p.grad.any() for p in objective.parameters())
    with pytest.raises(InputError, match="InfoNCE compares each sample .* data.batch_size = 1 in one process"):
        objective.prepare(Scenes(batch_size=1), 1)
    objective.prepare(Scenes(batch_size=1), 2)
    InfoNCE(tiny_backbone, negatives=True).prepare(Scenes(batch_size=1), 1)


def test_an_embedding_of_zero_leaves_the_others_their_gradient(tiny_backbone64, examples, monkeypatch):
    objective = InfoNCE(tiny_backbone64)
    batch = batch_of(objective, examples)
    keep = torch.ones(6, 1, dtype=torch.float64)
    keep[2] = 0.0
    embed = tiny_backbone64.embed
    monkeypatch.setattr(tiny_backbone64, "embed", lambda tokens: embed(tokens) * keep)
    loss = objective.loss(batch).mean
    loss.backward()
    gradients = [p.grad.abs().max() for p in objective.parameters() if p.grad is not None]
    assert loss.isfinite() and 0 < max(gradients) < 1e4  # 1 / 1e-12 would be the slope at 0
