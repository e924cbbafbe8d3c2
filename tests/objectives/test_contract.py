"""What every shipped objective keeps, whatever it minimises."""

import ast
import copy
import inspect

import pytest
import torch
from shipped import MAKERS

from alignlab import InputError, objectives
from alignlab.backbones import open_backbone
from alignlab.backbones.tiny import give_tokenizer
from alignlab.experiment.config import describe_objectives
from alignlab.objectives import (
    Loss,
    Objective,
    PLoRA,
)

TWO_TOWERS = ("LLM2CLIP",)
"""What needs a dual encoder."""

TOKENIZED = ("LaVIT",)
"""What needs a visual tokenizer."""

LONG = ("LaVITTokenizer", "LaVIT", "Emu")
"""What has more in its file than fits on two pages: a phase without codes and one with, two kinds of sequences."""


def make(name, path, **settings):
    text_tower = str(path) if name in TWO_TOWERS else None
    backbone = open_backbone(str(path), text_tower=text_tower, **settings)
    if name in TOKENIZED:
        give_tokenizer(backbone)
    return MAKERS[name](backbone)


@pytest.fixture(params=MAKERS)
def made(request, tiny_path, examples):
    torch.manual_seed(0)
    objective = make(request.param, tiny_path)
    return objective, objective.backbone.encoder.batch(examples[:8], objective.requires)


def test_the_whole_catalogue_is_covered():
    assert {entry.name for entry in describe_objectives()} == set(MAKERS)
    assert {name for name, item in vars(objectives).items() if inspect.isclass(item) and issubclass(item, Objective)
            and not getattr(item.loss, "__isabstractmethod__", False)} == set(MAKERS)  # fmt: skip


def test_the_loss_is_a_finite_scalar_with_a_graph_and_a_detached_report(made):
    objective, batch = made
    loss = objective.loss(batch)
    assert isinstance(loss, Loss) and loss.mean.shape == () and loss.mean.isfinite() and loss.mean.requires_grad
    assert float(loss.weight) > 0
    for name, value in loss.report.items():
        assert torch.as_tensor(value).shape == () and not torch.as_tensor(value).requires_grad, name


def test_the_batch_is_unchanged(made):
    objective, batch = made
    before = copy.deepcopy(batch)
    objective.loss(batch).mean.backward()
    for now, then in zip(batch, before, strict=True):
        for name, value in vars(then).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(now, name), value), name
        assert all(torch.equal(now.vision[key], value) for key, value in then.vision.items())


def test_it_falls_on_one_batch(made):
    objective, batch = made
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = objective.loss(batch).mean
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_permuting_the_batch_changes_nothing(made, examples):
    objective, batch = made
    shuffled = objective.backbone.encoder.batch(examples[:8][::-1], objective.requires)
    torch.testing.assert_close(objective.loss(shuffled).mean, objective.loss(batch).mean, rtol=1e-5, atol=1e-6)


def test_padding_side_changes_nothing(made, examples):
    objective, batch = made
    encoder = copy.copy(objective.backbone.encoder)
    encoder.padding_side = "left"
    left = encoder.batch(examples[:8], objective.requires)
    assert any((tokens.attention_mask[:, 0] == 0).any() for tokens in left)
    torch.testing.assert_close(objective.loss(left).mean, objective.loss(batch).mean, rtol=1e-4, atol=1e-5)


def test_every_parameter_that_should_train_gets_a_gradient(made):
    objective, batch = made
    for parameter in objective.parameters():
        if parameter.requires_grad and not parameter.any():  # zero in new adapters, which lets no gradient through
            parameter.data += 0.1 * torch.randn_like(parameter)
    objective.loss(batch).mean.backward()
    # The embedding objective never uses the LM head, and CLIP's last norm follows the layer that LLaVA reads.
    unused = ["lm_head", "post_layernorm"]
    if not any(tokens.num_images.any() for tokens in batch):  # what reads texts alone
        unused += ["vision_tower", "multi_modal_projector"]
    if isinstance(objective, PLoRA):  # no one looks at what the last layer, here the only one, makes of visual tokens
        unused += ["q_proj.lora", "o_proj.lora", "mlp"]
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad and not any(part in name for part in unused):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_its_state_makes_a_round_trip(made, tiny_path):
    objective, batch = made
    torch.manual_seed(1)
    name = type(objective).__name__
    if name == "SeVa":  # whose loss is relative to where it began, here both at the same
        twin = make(name, tiny_path)
        torch.nn.init.normal_(twin.backbone.model.get_output_embeddings().weight)
        with pytest.raises(InputError, match="trained with another reference than"):
            make(name, tiny_path, fresh=["language_model"]).load_state_dict(objective.state_dict())
    else:
        twin = make(name, tiny_path, fresh=["language_model"])
    assert not torch.equal(twin.loss(batch).mean, objective.loss(batch).mean)
    twin.load_state_dict(objective.state_dict())
    torch.testing.assert_close(twin.loss(batch).mean, objective.loss(batch).mean)


def test_its_file_has_a_headline_and_documents_its_arguments(made):
    cls = type(made[0])
    module = inspect.getmodule(cls)
    assert module.__doc__.startswith(f"{cls.__name__}: ")
    for name in inspect.signature(cls.__init__).parameters:
        assert name in ("self", "backbone") or f"\n        {name}: " in cls.__doc__, name
    methods = [n for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, ast.FunctionDef)]
    assert any(method.name == "loss" for method in methods) or cls is PLoRA  # which is MLE with an adapter
    assert len(inspect.getsource(module).splitlines()) <= (240 if cls.__name__ in LONG else 120)


def test_loss_logs_nothing_and_needs_no_trainer(made):
    objective, batch = made
    assert objective._trainer is None
    objective.loss(batch)
    assert not objective._seen.rows
