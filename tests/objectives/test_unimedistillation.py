from dataclasses import replace

import pytest
import torch

from alignlab import InputError
from alignlab.data import Scenes
from alignlab.functional import normalize
from alignlab.objectives import UniMEDistillation


def batch_of(objective, examples, count=6):
    return objective.backbone.encoder.batch(examples[:count], objective.requires)


def test_equals_a_divergence_written_out(tiny_backbone64, examples):
    objective = UniMEDistillation(tiny_backbone64, scale=5.0, teacher_scale=3.0)
    batch = batch_of(objective, examples)
    student, teacher = normalize(tiny_backbone64.embed(batch.target)), normalize(batch.embedding.double())
    total = 0.0
    for i in range(6):
        q = torch.stack([torch.exp(5 * student[i] @ student[j]) for j in range(6)])
        p = torch.stack([torch.exp(3 * teacher[i] @ teacher[j]) for j in range(6)])
        p, q = p / p.sum(), q / q.sum()
        total += sum(p[j] * (p[j].log() - q[j].log()) for j in range(6))
    torch.testing.assert_close(objective.loss(batch).mean, total / 6, rtol=1e-7, atol=0)


def test_a_teacher_that_agrees_leaves_nothing_to_learn(tiny_backbone64, examples):
    for settings in ({}, {"direction": "student_teacher"}, {"include_self": False}):
        objective = UniMEDistillation(tiny_backbone64, **settings)
        batch = batch_of(objective, examples)
        batch = replace(batch, embedding=tiny_backbone64.embed(batch.target).detach() * 3)  # of any length
        loss = objective.loss(batch)
        loss.mean.backward()
        assert abs(loss.mean) < 1e-12 and loss.report["cosine_error"] < 1e-12
        assert max(p.grad.abs().max() for p in objective.parameters() if p.grad is not None) < 1e-9
        objective.zero_grad()


def test_only_the_language_model_is_trained_and_the_teacher_is_not(tiny_backbone, examples):
    objective = UniMEDistillation(tiny_backbone)
    batch = batch_of(objective, examples)
    batch.embedding.requires_grad_()
    objective.loss(batch).mean.backward()
    assert batch.embedding.grad is None
    part = {id(parameter): name for parameter, name in tiny_backbone.part_of()}
    moved = {part[id(p)] for p in tiny_backbone.parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"language_model"}


def test_a_teacher_that_is_sure_of_itself_is_warned_of(tiny_backbone):
    data = Scenes(batch_size=16)
    with pytest.warns(UserWarning, match=r"at a scale of 100 the teacher .* similar to itself alone"):
        UniMEDistillation(tiny_backbone, teacher_scale=100.0).prepare(data, 1)


def test_a_teacher_that_is_not_is_not(tiny_backbone, recwarn):
    UniMEDistillation(tiny_backbone).prepare(Scenes(batch_size=16), 1)
    UniMEDistillation(tiny_backbone, teacher_scale=100.0, include_self=False).prepare(Scenes(batch_size=16), 1)
    assert not [each for each in recwarn if "itself alone" in str(each.message)]


def test_targets_with_pictures_are_refused(tiny_backbone, monkeypatch):
    data = Scenes(batch_size=4)
    shown = [replace(example, target=example.query) for example in data.examples("train")[:8]]
    monkeypatch.setattr(data, "examples", lambda split: shown)
    with pytest.raises(InputError, match="the target of example 'train-0' holds a picture"):
        UniMEDistillation(tiny_backbone).prepare(data, 1)


def test_embeddings_of_two_widths_are_refused(tiny_backbone, examples):
    odd = [examples[0], replace(examples[1], embedding=(1.0, 2.0))]
    with pytest.raises(InputError, match="the embedding of example 'train-1' has 2 numbers"):
        batch_of(UniMEDistillation(tiny_backbone), odd)
    with pytest.raises(InputError, match="'train-0' has no embedding"):
        batch_of(UniMEDistillation(tiny_backbone), [replace(examples[0], embedding=())])


def test_embeddings_that_are_missing_are_named_before_training(tiny_backbone, monkeypatch):
    data = Scenes(batch_size=4)
    some = [
        replace(e, embedding=() if index == 2 else e.embedding) for index, e in enumerate(data.examples("train")[:8])
    ]
    monkeypatch.setattr(data, "examples", lambda split: some)
    with pytest.raises(InputError, match="'train-2' has no embedding"):
        UniMEDistillation(tiny_backbone).prepare(data, 1)


def test_it_brings_the_similarities_to_the_teacher_s(tiny_backbone, examples):
    objective = UniMEDistillation(tiny_backbone)
    batch = batch_of(objective, examples, 12)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    errors = []
    for _ in range(40):
        loss = objective.loss(batch)
        errors.append(loss.report["cosine_error"].item())
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"teacher_scale": -1.0}])
def test_settings_out_of_range_are_refused(tiny_backbone, settings):
    with pytest.raises(InputError, match="UniMEDistillation needs scale > 0"):
        UniMEDistillation(tiny_backbone, **settings)
