import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, CLIPConfig, SiglipConfig

from alignlab import InputError
from alignlab.adapters import Full
from alignlab.backbones import open_backbone
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.data import Scenes
from alignlab.experiment.fitting import fit
from alignlab.functional import normalize
from alignlab.objectives import CLIP, InfoNCE, Optimization, SigLIP


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    write_tiny_dual(folder, CLIPConfig)
    return str(folder)


def batch_of(objective, examples, count=6):
    """Pairs of one picture and one caption."""
    encoder = objective.backbone.encoder
    pairs = [(e.query[:1], e.target[:1]) for e in examples[:count]]
    plain = [type(e)(e.id, query=q, target=t) for e, (q, t) in zip(examples, pairs, strict=False)]
    return encoder.batch(plain, objective.requires)


def test_equals_the_loss_of_transformers(clip_path, examples):
    objective = CLIP(open_backbone(clip_path, dtype="float64"))
    batch = batch_of(objective, examples)
    model = AutoModel.from_pretrained(clip_path, dtype=torch.float64)
    given = {"input_ids": batch.target.input_ids, "attention_mask": batch.target.attention_mask}
    official = model(**given, **batch.query.vision, return_loss=True).loss
    loss = objective.loss(batch).mean
    torch.testing.assert_close(loss, official)
    loss.backward()
    official.backward()
    theirs = dict(model.named_parameters())
    for name, parameter in objective.backbone.model.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


def test_hand_computed():
    # Cosines 1 with the partner and 0 with the other, at the scale ln 3: softmax (3, 1) / 4 in all four rows.
    rows = torch.eye(2)
    objective = CLIP.__new__(CLIP)
    torch.nn.Module.__init__(objective)
    objective.log_scale, objective.training = torch.nn.Parameter(torch.tensor(math.log(math.log(3)))), False
    assert objective.compared(rows, rows).mean.item() == pytest.approx(-math.log(3 / 4))


def test_on_a_vision_language_model_it_is_info_nce(tiny_backbone64, examples):
    objective, other = CLIP(tiny_backbone64), InfoNCE(tiny_backbone64)
    batch = tiny_backbone64.encoder.batch(examples[:6], objective.requires)
    torch.testing.assert_close(objective.loss(batch).mean, other.loss(batch).mean)
    assert {name for name, _ in objective.named_parameters()} - {f"backbone.{n}" for n, _ in
            tiny_backbone64.named_parameters()} == {"log_scale"}  # fmt: skip


def test_the_scale_is_the_models_own_trains_and_is_saved_with_it(clip_path, examples, tmp_path):
    backbone = open_backbone(clip_path)
    Full(parts=["projector"]).apply(backbone)
    objective = CLIP(backbone)
    assert objective.log_scale is backbone.logit_scale
    objective.loss(batch_of(objective, examples)).mean.backward()
    assert backbone.logit_scale.grad.abs() > 0
    with torch.no_grad():
        backbone.logit_scale.fill_(3.25)
    backbone.save(tmp_path)
    assert CLIP(open_backbone(str(tmp_path))).log_scale.item() == 3.25


def test_towers_put_together_get_a_scale_that_they_keep(tiny_path, tmp_path):
    backbone = open_backbone(str(tiny_path), text_tower=str(tiny_path))
    assert backbone.logit_scale is None
    objective = CLIP(backbone, scale=20.0)
    assert objective.log_scale is backbone.logit_scale
    backbone.save(tmp_path)
    assert CLIP(open_backbone(str(tmp_path))).log_scale.exp().item() == pytest.approx(20.0)


def test_without_a_scale_it_starts_at_clips(tiny_backbone):
    assert CLIP(tiny_backbone).log_scale.exp().item() == pytest.approx(1 / 0.07)


def test_the_scale_is_clamped_after_the_step(tiny_backbone):
    objective = CLIP(tiny_backbone, scale=90.0)
    with torch.no_grad():
        objective.log_scale += 1.0
    objective.after_step()
    assert objective.log_scale.exp().item() == pytest.approx(100.0)


def test_a_model_that_comes_with_a_larger_scale_lifts_the_clamp_with_a_warning(clip_path):
    backbone = open_backbone(clip_path)
    with torch.no_grad():
        backbone.logit_scale.fill_(4.7215)  # as released SigLIP weights have it
    with pytest.warns(UserWarning, match="the model's own scale is 112.3, so max_scale = 100 is lifted"):
        objective = CLIP(backbone)
    objective.after_step()
    assert objective.log_scale.item() == pytest.approx(4.7215)
    with torch.no_grad():
        backbone.logit_scale.fill_(math.log(100.0) + 1e-6)  # clamped by an earlier training
    assert CLIP(backbone).max_scale == 100.0


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"scale": 200.0}])
def test_settings_out_of_range_are_refused(tiny_backbone, settings):
    with pytest.raises(InputError, match="CLIP needs scale"):
        CLIP(tiny_backbone, **settings)


def test_a_siglip_model_may_be_trained_so_too(tmp_path, examples):
    write_tiny_dual(tmp_path, SiglipConfig)
    objective = CLIP(open_backbone(str(tmp_path), dtype="float64"))
    batch = batch_of(objective, examples)
    x, y = (normalize(objective.backbone.embed(side)) for side in (batch.query, batch.target))
    logits = objective.backbone.logit_scale.exp() * x @ y.T
    own = torch.arange(6)
    loss = objective.loss(batch)
    torch.testing.assert_close(loss.mean, (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2)
    assert loss.report["scale"].shape == ()


@pytest.mark.parametrize("objective", [CLIP, SigLIP])
def test_chunks_on_a_dual_encoder_that_reads_pictures_alone(objective, tmp_path, examples):
    write_tiny_dual(tmp_path, CLIPConfig)
    backbone = open_backbone(str(tmp_path), dtype="float64")
    alone = [replace(example, query=example.query[:1], target=example.target[:1]) for example in examples[:7]]
    found = []
    for size in (None, 3):
        made = objective(backbone, chunk_size=size).double()
        made.zero_grad()
        loss = made.loss(backbone.encoder.batch(alone, made.requires)).mean
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}))
    (whole, expected), (chunks, gradients) = found
    torch.testing.assert_close(chunks, whole, rtol=1e-10, atol=0)
    assert expected.keys() == gradients.keys() and len(expected) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-10, msg=name)


def test_a_checkpoint_holds_the_scale_as_it_is_clamped(tiny_path, tmp_path):
    objective = CLIP(open_backbone(str(tiny_path)), scale=5.0, max_scale=5.0)
    data = Scenes(num_train=32, num_val=4, batch_size=8)
    objective.optimization = Optimization(lr=0.1)
    fit(objective, data, {"max_steps": 3, "accelerator": "cpu", "limit_val_batches": 0}, tmp_path, checkpoint_every=1)
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["log_scale"]
    assert kept.exp().item() <= 5.0 * (1 + 1e-6)
    assert torch.equal(kept, objective.log_scale.detach())
