import copy
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModel, SiglipConfig

from alignlab import InputError
from alignlab.backbones import open_backbone
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.functional import normalize, sigmoid_contrastive
from alignlab.objectives import SigLIP


@pytest.fixture(scope="module")
def siglip_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    write_tiny_dual(folder, SiglipConfig)
    return str(folder)


def embeddings(objective, batch):
    return [normalize(objective.backbone.embed(side)) for side in (batch.query, batch.target)]


def test_equals_the_loss_of_transformers(siglip_path, examples):
    objective = SigLIP(open_backbone(siglip_path, dtype="float64"), scale=8.0, init_bias=-3.0)
    plain = [type(e)(e.id, query=e.query[:1], target=e.target[:1]) for e in examples[:6]]
    batch = objective.backbone.encoder.batch(plain, objective.requires)
    model = AutoModel.from_pretrained(siglip_path, dtype=torch.float64)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(8.0))
        model.logit_bias.fill_(-3.0)
    ids = torch.nn.functional.pad(batch.target.input_ids, (0, 40 - batch.target.input_ids.shape[1]))
    official = model(input_ids=ids, **batch.query.vision, return_loss=True).loss
    loss = objective.loss(batch).mean
    torch.testing.assert_close(loss, official)
    loss.backward()
    official.backward()
    theirs = dict(model.named_parameters())
    for name, parameter in objective.backbone.model.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, msg=name)


def test_equals_its_function_on_the_normalised_embeddings(tiny_backbone64, examples):
    objective = SigLIP(tiny_backbone64, scale=20.0, init_bias=-4.0)
    batch = tiny_backbone64.encoder.batch(examples[:6], objective.requires)
    expected = sigmoid_contrastive(*embeddings(objective, batch), scale=20.0, bias=-4.0)
    loss = objective.loss(batch)
    torch.testing.assert_close(loss.mean, expected)
    assert loss.weight == 6


def test_one_pair_alone_is_pulled_together_only(tiny_backbone64, examples):
    objective = SigLIP(tiny_backbone64)
    batch = tiny_backbone64.encoder.batch(examples[:1], objective.requires)
    query, target = embeddings(objective, batch)
    logit = 10 * (query @ target.T).squeeze() - 10
    torch.testing.assert_close(objective.loss(batch).mean, -torch.nn.functional.logsigmoid(logit))


def test_scale_and_bias_start_where_the_model_left_them_else_as_in_the_paper(siglip_path, tiny_backbone):
    backbone = open_backbone(siglip_path)
    with torch.no_grad():
        backbone.logit_scale.fill_(4.7215)
        backbone.logit_bias.fill_(-16.5)
    objective = SigLIP(backbone)
    assert objective.log_scale is backbone.logit_scale and objective.bias is backbone.logit_bias
    assert objective.log_scale.item() == pytest.approx(4.7215) and objective.bias.item() == -16.5
    assert objective.max_scale is None
    plain = SigLIP(tiny_backbone)
    assert plain.log_scale.exp().item() == pytest.approx(10) and plain.bias.item() == -10


def test_towers_put_together_keep_scale_and_bias(tiny_path, tmp_path):
    backbone = open_backbone(str(tiny_path), text_tower=str(tiny_path))
    objective = SigLIP(backbone, init_bias=-2.5)
    backbone.save(tmp_path)
    again = SigLIP(open_backbone(str(tmp_path)))
    assert again.bias.item() == -2.5 and torch.equal(again.log_scale, objective.log_scale)


def test_auto_sets_the_bias_to_the_share_of_right_pairs(tiny_backbone):
    objective = SigLIP(tiny_backbone, init_bias="auto")
    objective.prepare(SimpleNamespace(batch_size=8), 4)
    assert torch.sigmoid(objective.bias).item() == pytest.approx(1 / 32)
    given = SigLIP(tiny_backbone, init_bias=-3.0)
    given.prepare(SimpleNamespace(batch_size=8), 4)
    assert given.bias.item() == -3
    with pytest.raises(InputError, match="auto needs at least two pairs a step"):
        objective.prepare(SimpleNamespace(batch_size=1), 1)


def test_the_scale_is_clamped_after_the_step_where_asked_for(tiny_backbone):
    for max_scale, expected in ((None, 90 * math.e), (100.0, 100.0)):
        objective = SigLIP(copy.deepcopy(tiny_backbone), scale=90.0, max_scale=max_scale)
        with torch.no_grad():
            objective.log_scale += 1.0
        objective.after_step()
        assert objective.log_scale.exp().item() == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{"scale": -1.0}, {"scale": 200.0, "max_scale": 100.0}])
def test_settings_out_of_range_are_refused(tiny_backbone, settings):
    with pytest.raises(InputError, match="SigLIP needs scale"):
        SigLIP(tiny_backbone, **settings)
