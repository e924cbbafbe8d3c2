import pytest
import torch

from alignlab.functional import sequence_logps, supervised
from alignlab.objectives import MLE


def batch_of(objective, examples, count=4):
    return objective.backbone.encoder.batch(examples[:count], objective.requires)


def test_equals_the_mean_of_token_logps(tiny_backbone64, examples):
    objective = MLE(tiny_backbone64)
    batch = batch_of(objective, examples)
    chat = batch.conversation
    logits = tiny_backbone64(chat).logits
    expected = -sequence_logps(logits, chat.labels).sum() / supervised(chat.labels).sum()
    loss = objective.loss(batch)
    torch.testing.assert_close(loss.mean, expected)
    assert loss.weight == supervised(chat.labels).sum()


def test_equals_the_loss_of_transformers(tiny_backbone64, examples):
    objective = MLE(tiny_backbone64)
    chat = batch_of(objective, examples).conversation
    official = tiny_backbone64.model(
        input_ids=chat.input_ids, attention_mask=chat.attention_mask, labels=chat.labels, **chat.vision
    ).loss
    mine = objective.loss(batch_of(objective, examples)).mean
    assert mine.item() == pytest.approx(official.item(), rel=1e-6)  # theirs is rounded to float32


def test_a_uniform_head_gives_ln_v(tiny_backbone, examples):
    objective = MLE(tiny_backbone)
    head = tiny_backbone.model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    expected = torch.tensor(float(head.out_features)).log().item()
    assert objective.loss(batch_of(objective, examples)).mean.item() == pytest.approx(expected, rel=1e-6)


def test_token_accuracy_counts_right_guesses(tiny_backbone, examples):
    objective = MLE(tiny_backbone)
    batch = batch_of(objective, examples)
    labels, logits = batch.conversation.labels, tiny_backbone(batch.conversation).logits
    kept = supervised(labels)
    right = (logits[:, :-1].argmax(-1) == labels[:, 1:])[kept].float().mean()
    torch.testing.assert_close(objective.loss(batch).report["token_accuracy"], right)
