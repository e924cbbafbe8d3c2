"""PLoRA: likelihood through branches of visual tokens alone."""

import copy
from dataclasses import replace

import pytest
import torch

from alignlab import InputError, adapters
from alignlab.adapters import Full, LoRA, adapter_parameters
from alignlab.backbones import Backbone
from alignlab.objectives import MLE, PLoRA


@pytest.fixture
def batch(tiny, examples):
    return tiny.encoder.batch(examples[:8], ("conversation",))


@pytest.fixture
def tiny(tiny_path):
    torch.manual_seed(0)
    return Backbone(str(tiny_path))


def moved(objective):
    """The objective with branches that are not zero any longer."""
    for parameter in adapter_parameters(objective.backbone):
        parameter.data += 0.1 * torch.randn_like(parameter)
    return objective


def test_at_first_it_is_mle(tiny, batch):
    plain = MLE(copy.deepcopy(tiny)).loss(batch)
    loss = PLoRA(tiny, rank=4, dropout=0.0).loss(batch)
    assert torch.equal(loss.mean, plain.mean) and loss.weight == plain.weight


def test_branches_train_and_the_language_model_does_not(tiny):
    Full(parts=("projector", "language_model")).apply(tiny)
    objective = PLoRA(tiny, rank=4)
    added = {id(parameter) for parameter in adapter_parameters(tiny)}
    trained = {"adapters" if id(p) in added else part for p, part in tiny.part_of() if p.requires_grad}
    assert trained == {"adapters", "projector"}
    assert sum(p.numel() for p in objective.parameters() if p.requires_grad) < sum(p.numel() for p in tiny.parameters())


def test_without_an_adapter_all_else_trains(tiny):
    PLoRA(tiny, rank=4)
    added = {id(parameter) for parameter in adapter_parameters(tiny)}
    frozen = {part for p, part in tiny.part_of() if not p.requires_grad and id(p) not in added}
    assert frozen == {"language_model"}


def test_visual_tokens_alone_take_the_branches(tiny, batch, examples):
    objective = moved(PLoRA(tiny, rank=4, dropout=0.0)).eval()
    chat = batch.conversation
    text = tiny.without_images(chat)
    plain = Backbone(tiny.path).eval()
    with torch.no_grad():
        assert torch.equal(tiny.hidden(text), plain.hidden(text))
        before = (chat.image_mask.cumsum(1) == 0) & chat.attention_mask.bool()  # what stands before the picture
        seen, unseen = tiny.hidden(chat), plain.hidden(chat)
        assert before.any() and torch.equal(seen[before], unseen[before])
        assert not torch.allclose(seen[chat.image_mask], unseen[chat.image_mask])
    assert objective.loss(batch).mean != MLE(plain).loss(batch).mean


def test_a_batch_without_pictures_gives_gradients_of_zero(tiny, batch):
    objective = PLoRA(tiny, rank=4)
    objective.loss(replace(batch, conversation=tiny.without_images(batch.conversation))).mean.backward()
    gradients = [parameter.grad for parameter in adapter_parameters(tiny)]
    assert gradients and all(gradient is not None and not gradient.any() for gradient in gradients)


def test_it_is_refused_over_other_adapters(tiny):
    LoRA(rank=2).apply(tiny)
    with pytest.raises(InputError, match="PLoRA"):
        PLoRA(tiny, rank=4)


def test_it_is_refused_where_its_own_kind_trains_already(tiny):
    adapters.PLoRA(ranks={"all": 2}).apply(tiny)
    with pytest.raises(InputError, match="MLE with the adapter PLoRA"):
        PLoRA(tiny, rank=4)


def test_it_stands_beside_branches_of_an_earlier_stage(tiny, tmp_path):
    moved(PLoRA(tiny, rank=4)).backbone.save(tmp_path / "first")
    again = Backbone(str(tmp_path / "first"))
    old = [p.detach().clone() for p in adapter_parameters(again)]
    PLoRA(again, rank=2)
    trained = [p for p in adapter_parameters(again) if p.requires_grad]
    frozen = [p for p in adapter_parameters(again) if not p.requires_grad]
    assert {min(p.shape) for p in trained} == {2} and {min(p.shape) for p in frozen} == {4}
    assert len(frozen) == len(old)
