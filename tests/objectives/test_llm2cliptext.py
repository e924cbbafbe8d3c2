from dataclasses import replace

import pytest
import torch

from alignlab import InputError
from alignlab.functional import info_nce, normalize
from alignlab.objectives import LLM2CLIPText


def batch_of(objective, examples):
    return objective.backbone.encoder.batch(examples, objective.requires)


def cut(examples, *counts):
    return [replace(e, captions=e.captions[:count]) for e, count in zip(examples, counts, strict=False)]


def test_two_captions_are_info_nce_with_the_others_of_the_same_kind(tiny_backbone64, examples):
    """The official loss in both directions: the other kind's captions, then those of the same kind but for oneself."""
    objective = LLM2CLIPText(tiny_backbone64, scale=20.0)
    batch = batch_of(objective, cut(examples, 2, 2, 2, 2))
    texts = normalize(tiny_backbone64.embed(batch.captions))
    first, second = texts[0::2], texts[1::2]
    oneself = torch.cat([torch.zeros(4, 4), torch.eye(4)], dim=1).bool()
    both = [
        info_nce(one, torch.cat([other, one]), scale=20.0, exclude=oneself)
        for one, other in ((first, second), (second, first))
    ]
    torch.testing.assert_close(objective.loss(batch).mean, sum(both) / 2)


def test_any_number_of_captions_each_in_the_form_of_the_target(tiny_backbone64, examples):
    objective = LLM2CLIPText(tiny_backbone64)
    batch = batch_of(objective, cut(examples, 3, 1, 2))
    assert batch.num_captions.tolist() == [3, 1, 2] and len(batch.captions) == 6
    loss = objective.loss(batch)
    assert loss.weight == 5  # the second picture's only caption has no other to search for
    targets = tiny_backbone64.encoder.contents([examples[0].target])
    whole = batch.captions.attention_mask[0].bool()
    assert examples[0].target[0] == examples[0].captions[0]
    assert torch.equal(batch.captions.input_ids[0][whole], targets.input_ids[0])


def test_one_picture_alone_has_nothing_to_be_told_from(tiny_backbone, examples):
    objective = LLM2CLIPText(tiny_backbone)
    loss = objective.loss(batch_of(objective, cut(examples, 3)))
    loss.mean.backward()
    assert loss.mean == 0 and all(p.grad is None or not p.grad.any() for p in objective.parameters())


def test_examples_without_captions_are_refused(tiny_backbone, examples):
    with pytest.raises(InputError, match="has no captions"):
        batch_of(LLM2CLIPText(tiny_backbone), [examples[0], replace(examples[1], captions=())])


def test_a_scale_out_of_range_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="needs scale > 0"):
        LLM2CLIPText(tiny_backbone, scale=0.0)
