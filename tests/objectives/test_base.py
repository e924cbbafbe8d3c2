"""What the base class promises: exact weighting, buffered logs, per-part learning rates."""

import copy
import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from alignlab import InputError
from alignlab.adapters import Full
from alignlab.data import Scenes
from alignlab.modules import GradientCodebook
from alignlab.objectives import MLE, InfoNCE, LaVITTokenizer, Optimization
from alignlab.objectives.optimization import optimizer_and_schedule, schedule_factor


class Recorder(Logger):
    """Keeps what is logged."""

    name = version = "recorder"

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *arguments):
        pass


def fit(objective, *, steps=1, batch_size=8, lr=1e-3, **settings):
    objective.optimization = Optimization(lr=lr, schedule="constant")
    recorder = Recorder()
    trainer = Trainer(
        max_steps=steps, logger=recorder, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, **settings,
    )  # fmt: skip
    trainer.fit(objective, datamodule=Scenes(num_train=24, batch_size=batch_size))
    return recorder


def gradient_of(objective, **settings):
    """The gradient that the optimizer saw in one step."""
    seen = {}
    original = objective.on_before_optimizer_step

    def spy(optimizer):
        original(optimizer)
        seen.update({name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None})

    objective.on_before_optimizer_step = spy
    fit(objective, **settings)
    return seen


def test_accumulation_equals_one_batch_though_token_counts_differ(tiny_backbone64):
    micro = MLE(copy.deepcopy(tiny_backbone64))
    whole = gradient_of(MLE(tiny_backbone64), batch_size=24)
    parts = gradient_of(micro, batch_size=8, accumulate_grad_batches=3)
    worst = max((whole[name] - parts[name]).abs().max() / whole[name].abs().max().clamp(min=1e-6) for name in whole)
    assert worst < 1e-6  # transformers' RMSNorm rounds to float32 inside; the naive average is off by percents


def test_averaging_micro_batch_means_would_not_be_equal(tiny_backbone64, examples):
    # The guard of the test above: on these examples the naive average is visibly wrong.
    objective = MLE(tiny_backbone64)
    encode = objective.backbone.encoder.batch
    whole = objective.loss(encode(examples, objective.requires)).mean
    naive = sum(objective.loss(encode(examples[i : i + 8], objective.requires)).mean for i in (0, 8, 16)) / 3
    assert abs(whole - naive) > 1e-4


def test_the_step_equals_plain_autograd(tiny_backbone64):
    objective = MLE(tiny_backbone64)
    twin = copy.deepcopy(objective)
    seen = gradient_of(objective, batch_size=24)
    split = Scenes(num_train=24).examples("train")
    twin.loss(twin.backbone.encoder.batch([split[i] for i in range(24)], twin.requires)).mean.backward()
    for name, parameter in twin.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                seen[name], parameter.grad, rtol=1e-5, atol=1e-8
            )  # the model's norms round to float32


def test_clipping_sees_the_rescaled_gradient(tiny_backbone64):
    # With sums instead of means the norm would be hundreds of times larger and the step cut down to nothing.
    plain, clipped = MLE(tiny_backbone64), MLE(copy.deepcopy(tiny_backbone64))
    fit(plain)
    fit(clipped, gradient_clip_val=1e3)
    for one, other in zip(plain.parameters(), clipped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_metrics_are_flushed_as_weighted_means_over_the_window(tiny_backbone):
    recorder = fit(MLE(tiny_backbone), steps=4, log_every_n_steps=2)
    assert [step for step, _ in recorder.lines] == [2, 4]
    assert {"train/loss", "train/token_accuracy", "train/lr", "train/grad_norm"} <= set(recorder.lines[0][1])


def test_validation_loss_is_weighted_by_tokens(tiny_backbone64):
    data = Scenes(num_train=24, num_val=20, batch_size=8)
    objective, recorder = MLE(tiny_backbone64), Recorder()
    trainer = Trainer(
        logger=recorder, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False
    )
    trainer.validate(objective, datamodule=data, verbose=False)
    split = data.examples("val")
    whole = objective.loss(objective.backbone.encoder.batch([split[i] for i in range(20)], objective.requires)).mean
    assert recorder.lines[0][1]["val/loss"] == pytest.approx(whole.item(), rel=1e-9)


def test_codebooks_do_not_decay(tiny_backbone):
    form = {"depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "code_dim": 8}
    objective = LaVITTokenizer(tiny_backbone, quantizer=partial(GradientCodebook, num_codes=12), **form)
    objective.optimization = Optimization(lr=1.0, weight_decay=0.1)
    groups = optimizer_and_schedule(objective, objective.optimization, 10)["optimizer"].param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    codebook = objective.tokenizer.quantizer.codebook
    assert codebook.ndim == 2 and decay[id(codebook)] == 0.0
    matrices = {id(each) for each in objective.parameters() if each.requires_grad and each.ndim > 1}
    assert {decay[each] for each in matrices - {id(codebook)}} == {0.1}


def test_each_part_has_its_own_learning_rate(tiny_backbone):
    objective = InfoNCE(tiny_backbone)
    objective.optimization = Optimization(lr=1.0, part_lr={"projector": 0.5}, weight_decay=0.1)
    optimizer = optimizer_and_schedule(objective, objective.optimization, 10)["optimizer"]
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["projector"]["initial_lr"] == 0.5 and groups["vision_tower"]["initial_lr"] == 1.0
    assert groups["vision_tower_vectors"]["weight_decay"] == 0.0 and groups["language_model"]["weight_decay"] == 0.1
    assert [id(p) for p in groups["objective_vectors"]["params"]] == [id(objective.log_scale)]
    everything = [p for group in groups.values() for p in group["params"]]
    assert len(everything) == len(set(map(id, everything))) == len(list(objective.parameters()))


def test_frozen_parts_do_not_move_and_the_others_do(tiny_backbone):
    Full(parts=["projector"]).apply(tiny_backbone)
    before = copy.deepcopy(tiny_backbone)
    fit(MLE(tiny_backbone), steps=2)
    for (now, part), (then, _) in zip(tiny_backbone.part_of(), before.part_of(), strict=True):
        assert torch.equal(now, then) == (part != "projector")


def test_warm_up_and_decay():
    settings = Optimization(warmup_steps=4, schedule="cosine")
    factors = [schedule_factor(step, settings, 12) for step in range(13)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0 and factors[8] == pytest.approx(0.5) and factors[12] == pytest.approx(0.0)
    assert schedule_factor(8, Optimization(warmup_steps=4, schedule="linear"), 12) == 0.5
    assert schedule_factor(11, Optimization(schedule="constant"), 12) == 1.0


def test_bad_learning_rates_are_refused():
    with pytest.raises(InputError, match="must be positive"):
        Optimization(part_lr={"projector": 0.0})
    with pytest.raises(InputError, match="parts vision_tower, projector, language_model, not head"):
        Optimization(part_lr={"head": 1.0})


def test_an_objective_that_requires_more_than_the_data_supply_is_refused(tiny_backbone):
    class Picky(MLE):
        requires = ("conversation", "reward")

    with pytest.raises(InputError, match="Picky requires conversation, reward, but Scenes supplies .* lacks reward"):
        fit(Picky(tiny_backbone))


def test_accumulating_a_coupled_loss_warns(tiny_backbone):
    with pytest.warns(UserWarning, match="accumulating micro-batches is not a larger batch"):
        fit(InfoNCE(tiny_backbone), accumulate_grad_batches=2)


def test_a_step_that_sees_nothing_to_train_on_changes_nothing(tiny_backbone):
    class Empty(MLE):
        def loss(self, batch):
            loss = super().loss(batch)
            return type(loss)(loss.mean * 0, 0)

    objective = Empty(tiny_backbone)
    before = copy.deepcopy(tiny_backbone.state_dict())
    fit(objective, lr=1e-2)
    assert all(torch.equal(before[name], value) for name, value in tiny_backbone.state_dict().items())
    assert not any(math.isnan(value.sum()) for value in tiny_backbone.state_dict().values())
