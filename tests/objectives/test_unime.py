import copy
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from alignlab import InputError
from alignlab.functional import hard_negative_info_nce, info_nce, normalize
from alignlab.objectives import UniME
from alignlab.objectives.averages import Averages


def batch_of(objective, examples):
    return objective.backbone.encoder.batch(examples, objective.requires)


def test_equals_its_function_on_the_normalised_embeddings(tiny_backbone64, examples):
    objective = UniME(tiny_backbone64, scale=30.0, num_hard=2, margin=0.01, fill="duplicate")
    batch = batch_of(objective, examples[:6])
    queries, targets = (normalize(tiny_backbone64.embed(side)) for side in (batch.query, batch.target))
    expected = hard_negative_info_nce(queries, targets, scale=30.0, num_hard=2, margin=0.01, fill="duplicate")
    torch.testing.assert_close(objective.loss(batch).mean, expected)


def test_with_all_negatives_and_no_filter_it_is_info_nce(tiny_backbone64, examples):
    objective = UniME(tiny_backbone64, num_hard=99, margin=2.0)
    batch = batch_of(objective, examples[:6])
    queries, targets = (normalize(tiny_backbone64.embed(side)) for side in (batch.query, batch.target))
    torch.testing.assert_close(objective.loss(batch).mean, info_nce(queries, targets, scale=50.0))


def test_what_the_filter_takes_out_is_reported_and_weighs_nothing(tiny_backbone64, examples):
    batch = batch_of(UniME(tiny_backbone64), examples[:6])
    loose, strict = (UniME(tiny_backbone64, margin=margin).loss(batch) for margin in (2.0, -3.0))
    assert loose.weight == 6 and loose.report["filtered"] == 0
    assert strict.weight == 0 and strict.report["filtered"] == 1
    strict.mean.backward()  # nobody to compare with: a loss of 0 that still has a graph
    assert strict.mean == 0


def test_a_copy_of_a_pair_is_the_hardest_negative_unless_the_margin_is_negative(tiny_backbone64, examples):
    # It is exactly as similar as the positive, so a filter with a margin lets it pass, as in the paper.
    batch = batch_of(UniME(tiny_backbone64), [examples[0], replace(examples[0], id="copy"), examples[1]])
    passed, filtered = (UniME(tiny_backbone64, margin=margin, num_hard=1).loss(batch) for margin in (1e-6, -1e-6))
    assert passed.report["filtered"] < filtered.report["filtered"]
    assert passed.mean > filtered.mean


def test_it_falls_on_one_batch(tiny_backbone, examples):
    objective = UniME(copy.deepcopy(tiny_backbone), num_hard=3)
    batch = batch_of(objective, examples[:8])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = objective.loss(batch).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_filtered_is_a_share_of_all_queries_also_where_none_has_a_candidate(tiny_backbone64, examples):
    averages, batch = Averages(), batch_of(UniME(tiny_backbone64), examples[:6])
    averages.add(UniME(tiny_backbone64, margin=-3.0).loss(batch))  # everything is filtered
    averages.add(UniME(tiny_backbone64, margin=2.0).loss(batch))  # nothing is
    found = averages.flush(SingleDeviceStrategy("cpu"))
    assert found["filtered"] == pytest.approx(0.5) and found["loss"] > 0


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"num_hard": 0}])
def test_settings_out_of_range_are_refused(tiny_backbone, settings):
    with pytest.raises(InputError, match="UniME needs scale > 0 and num_hard >= 1"):
        UniME(tiny_backbone, **settings)


def test_own_negatives_and_groups_are_those_of_its_function(tiny_backbone64, examples):
    objective = UniME(tiny_backbone64, num_hard=2, margin=0.5, negatives=True, groups=True)
    assert objective.requires == ("query", "target", "negatives", "group")
    twins = [replace(example, group="twin" if index < 2 else "") for index, example in enumerate(examples[:5])]
    batch = batch_of(objective, twins)
    assert batch.num_negatives.sum() > 0
    queries, targets, negatives = (
        normalize(tiny_backbone64.embed(side)) for side in (batch.query, batch.target, batch.negatives)
    )
    exclude = torch.zeros(5, 5 + len(negatives), dtype=torch.bool)
    exclude[0, 1] = exclude[1, 0] = True
    expected = hard_negative_info_nce(queries, torch.cat([targets, negatives]), num_hard=2, margin=0.5, exclude=exclude)
    torch.testing.assert_close(objective.loss(batch).mean, expected)
    assert abs(UniME(tiny_backbone64, num_hard=2, margin=0.5).loss(batch).mean - expected) > 1e-4
