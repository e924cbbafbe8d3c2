"""SeVa: against whole passes of two models, against TRL, and at its limits."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from datasets import Dataset, Image, List
from peft import LoraConfig
from test_base import fit
from transformers import AutoModelForImageTextToText, AutoProcessor

from alignlab import InputError
from alignlab.adapters import Full
from alignlab.backbones import Backbone
from alignlab.backbones.tiny import make_exact
from alignlab.batch import Turn
from alignlab.experiment.config import resolve
from alignlab.experiment.resolving import ConfigError
from alignlab.functional import preference, sequence_logps
from alignlab.objectives import MLE, Free, Mixture, SeVa

LN2 = math.log(2)
DECODER = r".*language_model.*\.(q_proj|v_proj|down_proj)"


def batch_of(objective, examples, count=8):
    return objective.backbone.encoder.batch(examples[:count], objective.requires)


def whole(backbone, batch):
    """(2, B) from the logits of all positions, each side by itself."""
    sides = (batch.conversation, batch.rejected)
    return torch.stack([sequence_logps(backbone(tokens).logits, tokens.labels) for tokens in sides])


def move(objective, batch, steps=2, lr=1e-2):
    """Train a little."""
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr)
    for _ in range(steps):
        objective.zero_grad()
        objective.loss(batch).mean.backward()
        optimizer.step()
    objective.zero_grad()


@pytest.mark.parametrize("parts", [("vision_tower", "projector", "language_model"), ("projector", "language_model")])
def test_the_loss_and_its_gradient_are_those_of_two_models(tiny_backbone64, examples, parts):
    make_exact(tiny_backbone64.model)
    Full(parts=parts).apply(tiny_backbone64)
    start = copy.deepcopy(tiny_backbone64).requires_grad_(False)
    objective = SeVa(tiny_backbone64, beta=0.5)
    batch = batch_of(objective, examples)
    move(objective, batch)
    loss = objective.loss(batch)
    policy, reference = whole(tiny_backbone64, batch), whole(start, batch)
    rewards = 0.5 * (policy - reference)
    expected = -torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).mean()
    assert abs(expected.item() - LN2) > 1e-2
    torch.testing.assert_close(loss.mean, expected, rtol=1e-9, atol=0)
    trained = [p for p in tiny_backbone64.parameters() if p.requires_grad]
    found, wanted = (torch.autograd.grad(each, trained, allow_unused=True) for each in (loss.mean, expected))
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)
    report = {name: float(value) for name, value in loss.report.items()}
    means = {"rewards/chosen": rewards[0], "rewards/rejected": rewards[1], "rewards/margins": rewards[0] - rewards[1]}
    means |= {"logps/chosen": policy[0], "logps/rejected": policy[1], "displaced": (rewards[0] < 0).double()}
    means["rewards/accuracies"] = (rewards[0] > rewards[1]).double()
    assert {name: report[name] for name in means} == pytest.approx({k: v.mean().item() for k, v in means.items()})


@pytest.mark.parametrize("parts", [("vision_tower", "projector", "language_model"), ("language_model",)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_step_is_at_ln_2(tiny_path, examples, parts, dtype):
    backbone = Backbone(str(tiny_path), dtype=dtype)
    Full(parts=parts).apply(backbone)
    objective = SeVa(backbone)
    loss = objective.loss(batch_of(objective, examples))
    assert loss.mean.item() == pytest.approx(LN2, abs=1e-7)
    assert loss.report["rewards/margins"] == 0 and loss.report["rewards/accuracies"] == 0  # a tie is no success
    move(objective, batch_of(objective, examples), lr=0.3)
    assert objective.loss(batch_of(objective, examples)).mean < LN2


def test_it_drops_nothing(tiny_backbone, examples):
    decoder = tiny_backbone.model.get_decoder()
    for layer in decoder.layers:
        layer.self_attn.attention_dropout = 0.5
    objective = SeVa(lora_with_dropout(tiny_backbone)).train()
    batch = batch_of(objective, examples)
    assert objective.loss(batch).mean.item() == pytest.approx(LN2, abs=1e-7)
    move(objective, batch)
    assert torch.equal(objective.loss(batch).mean, objective.loss(batch).mean)


def lora_with_dropout(backbone):
    backbone.model.add_adapter(LoraConfig(r=4, lora_dropout=0.5, target_modules=DECODER))
    return backbone


def test_every_picture_is_encoded_once_a_step(tiny_backbone, examples):
    tower = tiny_backbone.model.get_encoder(modality="image")
    seen = []
    next(tower.children()).register_forward_hook(lambda module, given, output: seen.append(len(output)))
    objective = SeVa(tiny_backbone)
    objective.loss(batch_of(objective, examples))  # the first time it is found out what the decoder heeds
    seen.clear()
    objective.loss(batch_of(objective, examples))
    assert seen == [8, 8]  # the tower trains, so the reference's is another
    Full(parts=["projector", "language_model"]).apply(tiny_backbone)
    objective = SeVa(tiny_backbone)
    seen.clear()
    objective.loss(batch_of(objective, examples)).mean.backward()
    assert seen == [8]


def test_the_head_runs_where_answers_are(tiny_backbone, examples):
    rows = []
    head = tiny_backbone.model.get_output_embeddings()
    objective = SeVa(tiny_backbone, reference=Free())
    batch = batch_of(objective, examples)
    objective.loss(batch)
    head.register_forward_hook(lambda module, given, output: rows.append(len(output)))
    objective.loss(batch)
    assert rows == [int(batch.answer_lengths.sum()) - 8]  # a pair's first tokens are predicted by one state


@pytest.mark.parametrize("name", ["hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero",
                                  "apo_down", "sigmoid_norm", "discopop"])  # fmt: skip
def test_losses_by_name(tiny_backbone64, examples, name):
    start = copy.deepcopy(tiny_backbone64)
    objective = SeVa(tiny_backbone64, loss=name, beta=0.2)
    batch = batch_of(objective, examples)
    move(objective, batch, steps=1)
    lengths = dict(zip(("chosen_lengths", "rejected_lengths"), batch.answer_lengths, strict=True))
    more = lengths if name in ("ipo", "sigmoid_norm") else {}
    given = (*whole(tiny_backbone64, batch), *whole(start, batch))
    expected = getattr(preference, name)(*given, beta=0.2, **more).mean()
    torch.testing.assert_close(objective.loss(batch).mean, expected, rtol=1e-8, atol=1e-12)


def own_loss(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta):
    return beta * (policy_rejected - policy_chosen)


def test_a_loss_of_ones_own_and_the_likelihood(tiny_backbone64, examples):
    objective = SeVa(tiny_backbone64, loss=own_loss, likelihood=0.5)
    batch = batch_of(objective, examples)
    chosen, rejected = whole(tiny_backbone64, batch)
    expected = (0.1 * (rejected - chosen) - 0.5 * chosen / batch.answer_lengths[0]).mean()
    torch.testing.assert_close(objective.loss(batch).mean, expected)


def test_label_smoothing_is_given_to_losses_that_have_it(tiny_backbone64, examples):
    objective = SeVa(tiny_backbone64, loss="robust", label_smoothing=0.3)
    batch = batch_of(objective, examples)
    zeros = torch.zeros(1)
    expected = preference.robust(*(zeros,) * 4, beta=0.1, label_smoothing=0.3).item()
    assert objective.loss(batch).mean.item() == pytest.approx(expected)
    with pytest.raises(InputError, match="the loss sigmoid has no label_smoothing"):
        SeVa(tiny_backbone64, label_smoothing=0.1)
    with pytest.raises(InputError, match="beta > 0"):
        SeVa(tiny_backbone64, beta=0.0)


def experiment(**settings):
    return {"objective": {"class_path": "SeVa", "init_args": settings}, "data": "Scenes", "backbone": {"fresh": []}}


def test_configs():
    resolved = resolve(experiment(loss="ipo", reference={"class_path": "Cached", "init_args": {"folder": "refs"}}))
    assert resolved["objective"]["init_args"]["loss"] == "ipo"
    assert resolve(experiment(loss="alignlab.functional.preference.hinge", reference="Free"))
    wanted = r"discopop or a function by its path \(my_module.name\), got 'sigmoids' .text.; did you mean 'sigmoid'\?$"
    with pytest.raises(ConfigError, match=wanted):
        resolve(experiment(loss="sigmoids"))
    with pytest.raises(ConfigError, match="nowhere"):
        resolve(experiment(loss="nowhere.at_all"))
    with pytest.raises(ConfigError, match="no reference 'FrozenCopie'.*FrozenCopy"):
        resolve(experiment(reference="FrozenCopie"))


def changed(example, chosen=None, rejected=None):
    turns = example.conversation if chosen is None else (*example.conversation[:-1], Turn("assistant", (chosen,)))
    return replace(example, conversation=turns, rejected=example.rejected if rejected is None else (rejected,))


def test_sides_that_are_the_same_cancel(tiny_backbone64, examples):
    objective = SeVa(tiny_backbone64)
    same = [changed(e, rejected=e.conversation[-1].content[0]) for e in examples[:4]]
    loss = objective.loss(batch_of(objective, same))
    loss.mean.backward()
    assert loss.mean.item() == pytest.approx(LN2, abs=1e-12)
    assert max(p.grad.abs().max() for p in tiny_backbone64.parameters() if p.grad is not None) < 1e-12


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "sigmoid_norm"])
def test_an_empty_side_is_scored_by_its_end_alone(tiny_backbone64, examples, name):
    objective = SeVa(tiny_backbone64, loss=name, likelihood=1.0)
    batch = batch_of(objective, [changed(examples[0], rejected=""), changed(examples[1], chosen="")])
    assert batch.answer_lengths[1, 0] == batch.answer_lengths[0, 1] == 1  # the template closes an empty answer, too
    assert objective.loss(batch).mean.isfinite()
    # Without that, there is nothing to score: its log-probability is 0.
    bare = replace(batch.rejected, attention_mask=batch.rejected.attention_mask.clone())
    bare.attention_mask[0, batch.prompt_lengths[0] :] = 0
    lengths = batch.answer_lengths.clone()
    lengths[1, 0] = 0
    loss = objective.loss(replace(batch, rejected=bare, answer_lengths=lengths))
    assert loss.mean.isfinite() and loss.weight == 2 and loss.report["empty"] == 0.5


def test_pairs_that_are_cut_to_nothing_are_skipped_and_counted(tiny_path, examples):
    long = Backbone(str(tiny_path), dtype="float64")
    objective = SeVa(long, likelihood=1.0)
    whole_batch = batch_of(objective, examples, 4)
    prompts, limit = whole_batch.prompt_lengths, int(whole_batch.prompt_lengths.max())
    assert prompts.min() < limit  # so that some keep a part
    short = Backbone(str(tiny_path), dtype="float64", max_length=limit)
    cut = SeVa(short, likelihood=1.0)
    batch = batch_of(cut, examples, 4)
    loss = cut.loss(batch)
    left = prompts < limit
    assert loss.weight == left.sum() and loss.report_weight == 4
    assert loss.report["skipped"] == (~left).float().mean()
    assert loss.report["truncated"] == (prompts + whole_batch.answer_lengths > limit).any(0).float().mean()
    kept = [example for example, stays in zip(examples[:4], left, strict=True) if stays]
    torch.testing.assert_close(loss.mean, cut.loss(batch_of(cut, kept)).mean)
    # Nothing at all: no loss, no gradient, no NaN.
    gone = [example for example, stays in zip(examples[:4], left, strict=True) if not stays]
    nothing = cut.loss(batch_of(cut, gone))
    nothing.mean.backward()
    assert nothing.mean.item() == 0 and nothing.weight == 0 and nothing.report["skipped"] == 1
    assert all(p.grad is None or not p.grad.any() for p in short.parameters())
    # Likelihood alone says so at once, since nothing else would be trained on.
    with pytest.raises(InputError, match="no token left to train on"):
        batch_of(MLE(short), gone)


def test_several_pictures_none_and_earlier_turns(tiny_backbone64, examples):
    first, second = examples[0], examples[1]
    asked = first.conversation[0].content
    several = replace(first, conversation=(
        Turn("user", (*asked, *second.images)), Turn("assistant", ("red",)), *first.conversation,
    ))  # fmt: skip
    none = replace(second, conversation=(Turn("user", ("describe .",)), *second.conversation[1:]))
    objective = SeVa(tiny_backbone64)
    batch = batch_of(objective, [several, none, examples[2]])
    assert batch.conversation.num_images.tolist() == [3, 0, 1]
    start = copy.deepcopy(tiny_backbone64)
    move(objective, batch)
    loss, expected = objective.loss(batch).mean, 0.0
    # Only last answers are compared: what was answered earlier is a part of the prompt.
    labels = batch.conversation.labels[0]
    earlier = (labels != -100) & (torch.arange(len(labels)) < batch.prompt_lengths[0])
    assert earlier.any()
    for tokens in (batch.conversation, batch.rejected):
        tokens.labels[0, earlier] = -100
    expected = preference.sigmoid(*whole(tiny_backbone64, batch), *whole(start, batch), beta=0.1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)


def test_beside_likelihood_in_a_mixture(tiny_backbone64, examples):
    # The reference takes the policy's place while likelihood's graph is there, whose gradient must not mind.
    mixture = Mixture(tiny_backbone64, parts={"likelihood": MLE, "pairs": SeVa}, weights={"pairs": 3.0})
    batch = batch_of(mixture, examples)
    move(mixture, batch)
    likelihood, pairs = MLE(tiny_backbone64), mixture.parts["pairs"]
    expected = likelihood.loss(batch).mean + 3.0 * pairs.loss(batch).mean
    parameters = [p for p in tiny_backbone64.parameters() if p.requires_grad]
    found = torch.autograd.grad(mixture.loss(batch).mean, parameters, allow_unused=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    fit(mixture, steps=2)


def test_what_cannot_be_a_pair_is_refused(tiny_backbone, examples):
    encode = partial(tiny_backbone.encoder.batch, sequences=("conversation", "rejected"))
    asked, answered = examples[0], examples[1]
    with pytest.raises(InputError, match="ends without an answer"):
        encode([answered, replace(asked, conversation=asked.conversation[:-1])])
    with pytest.raises(InputError, match="has a picture in one of its two answers"):
        encode([replace(asked, rejected=(asked.images[0], "red"))])
    with pytest.raises(InputError, match="what requires rejected requires it"):
        tiny_backbone.encoder.batch(examples[:1], ("rejected",))


def rows_for_trl(examples):
    """The same pairs in the format that TRL reads."""
    return [
        {
            "images": list(example.images),
            "prompt": [{"role": "user", "content": example.conversation[0].content[-1]}],
            "chosen": [{"role": "assistant", "content": example.conversation[-1].content[0]}],
            "rejected": [{"role": "assistant", "content": example.rejected[0]}],
        }
        for example in examples
    ]


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_it_trains_as_trl_does(tiny_path, tmp_path, examples, loss):
    from trl import DPOConfig, DPOTrainer

    pairs = [changed(example) for example in examples[:8]]
    start, other = (AutoModelForImageTextToText.from_pretrained(str(tiny_path)) for _ in range(2))
    arguments = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=2, report_to="none",
        per_device_train_batch_size=8, learning_rate=1e-2, lr_scheduler_type="constant", save_strategy="no",
        logging_steps=1, max_length=None, loss_type=[loss], beta=0.1, max_grad_norm=0.0, weight_decay=0.0,
        disable_tqdm=True, dataloader_pin_memory=False, optim="sgd",
    )  # fmt: skip
    dataset = Dataset.from_list(rows_for_trl(pairs)).cast_column("images", List(Image()))
    trainer = DPOTrainer(model=start, ref_model=other, args=arguments, train_dataset=dataset,
                         processing_class=AutoProcessor.from_pretrained(str(tiny_path)))  # fmt: skip
    trainer.train()
    theirs = [entry for entry in trainer.state.log_history if "loss" in entry]
    objective = SeVa(Backbone(str(tiny_path)), loss=loss)
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-2)
    batch = batch_of(objective, pairs)
    names = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen",
             "logps/rejected")  # fmt: skip
    for entry in theirs:
        found = objective.loss(batch)
        assert found.mean.item() == pytest.approx(entry["loss"], rel=1e-5, abs=1e-5)
        for name in names:
            assert float(found.report[name]) == pytest.approx(entry[name], rel=1e-4, abs=1e-4), name
        objective.zero_grad()
        found.mean.backward()
        optimizer.step()
    assert len(theirs) == 2 and theirs[0]["loss"] != theirs[1]["loss"]
    trained = dict(objective.backbone.model.named_parameters())
    began, moved = dict(other.named_parameters()), 0
    for name, parameter in trainer.model.named_parameters():
        change = parameter - began[name]
        torch.testing.assert_close(trained[name] - began[name], change, rtol=1e-3, atol=1e-6)
        moved += bool(change.abs().max() > 1e-5)
    assert moved > 10
