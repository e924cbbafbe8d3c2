"""CAL: against the official code, its dense functions, and likelihood."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import CONFIGS, Bare, make, masked_logits, sequences
from lightning.pytorch import Trainer
from test_base import Recorder, fit
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2VLImageProcessorPil,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from visual import with_tokens

from alignlab import InputError
from alignlab.batch import IGNORE, Batch, Tokens, Turn
from alignlab.data import Scenes
from alignlab.experiment.config import resolve
from alignlab.functional import gaussian_blur, logit_gain, supervised, visual_weights, weighted_nll
from alignlab.objectives import CAL, MLE, BlurredImage, MaskedPatches, MeanColor, Mixture, Optimization


def batch_of(objective, examples, count=6):
    return objective.backbone.encoder.batch(examples[:count], objective.requires)


def gain_of(objective, batch, hidden, features):
    return objective.gain(batch, hidden, objective.blind_states(batch, features))


def dense(backbone, chat):
    """Logits with and without pictures at all positions, by two whole passes of the plain model."""
    blind = chat.attention_mask.masked_fill(chat.image_mask, 0)
    return [
        backbone.model(input_ids=chat.input_ids, attention_mask=mask, **chat.vision).logits
        for mask in (chat.attention_mask, blind)
    ]


def test_it_is_the_official_code(golden):
    (case,) = golden("preference/cal_tiny_llama_end_to_end")["cases"]
    given, expected = case["inputs"], case["expected"]
    image, marks = 2, torch.tensor(expected["expanded_labels"])  # an id that no row uses; -300 marks the pictures
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2),
        text_config=LlamaConfig(**given["llama_config"], pad_token_id=0),
        image_token_index=image,
    )
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    model.get_decoder().load_state_dict({key: torch.tensor(value) for key, value in given["llama_state_dict"].items()})
    model.lm_head.weight.data = torch.tensor(given["lm_head_weight"])

    class Given(Bare):
        """A backbone to which the pictures' features are given."""

        def features(self, tokens):
            shown = zip(given["image_features"], given["image_feature_slots"], strict=True)
            return BaseModelOutputWithPooling(
                pooler_output=[torch.tensor(one) for one, slot in shown if slot == "used"]
            )

    mask = torch.tensor(expected["expanded_attention_mask"])
    input_ids = torch.where(marks == -300, image, 0)
    for row, ids in enumerate(given["input_ids"]):
        texts = torch.tensor(
            [id for id, there in zip(ids, given["attention_mask"][row], strict=True) if there and id != -200]
        )
        input_ids[row, (mask[row] == 1) & (marks[row] != -300)] = texts
    labels = marks.masked_fill(marks < 0, IGNORE)
    backbone = Given(model)
    chat = Tokens(input_ids, mask, labels, marks == -300, {}, torch.tensor([1, 2, 0]))
    real = mask.bool()
    with torch.no_grad():
        features = backbone.features(chat)
        passes = {
            "with": backbone(chat, features=features),
            "without": backbone(backbone.without_images(chat, features=features, whole=True)),
        }
    for which, output in passes.items():
        official = torch.tensor(expected[f"logits_{which}_image"])
        torch.testing.assert_close(output.logits[real], official[real], rtol=2e-5, atol=2e-5)
    objective = CAL(backbone, low=case["params"]["clamp_min"], high=case["params"]["clamp_max"],
                    window=case["params"]["pool_window"], pooling="flat")  # fmt: skip
    batch = Batch(ids=("a", "b", "c"), conversation=chat)
    kept = supervised(labels)
    weights = objective.weights(batch, gain_of(objective, batch, passes["with"].hidden, features))
    torch.testing.assert_close(weights, torch.tensor(expected["weights"]) * kept, rtol=2e-5, atol=2e-5)
    loss = objective.loss(batch)
    assert loss.mean.item() == pytest.approx(expected["loss"], rel=2e-5)
    loss.mean.backward()
    for parameter, name in ((model.lm_head.weight, "lm_head"), (model.get_input_embeddings().weight, "embed_tokens")):
        torch.testing.assert_close(parameter.grad, torch.tensor(expected[f"grad_{name}"]), rtol=1e-4, atol=1e-5)
    # The short pass differs at nothing but the pooling.
    short = CAL(backbone, window=1)
    gain = gain_of(short, batch, passes["with"].hidden, features)
    official = logit_gain(*(torch.tensor(expected[f"logits_{which}_image"]) for which in ("with", "without")), labels)
    torch.testing.assert_close(gain[kept], official[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [
    {}, {"normalize": "sample"}, {"low": 0.0, "high": 2.0, "window": 5}, {"pooling": "flat"},
])  # fmt: skip
def test_the_short_pass_equals_the_dense_functions(tiny_backbone64, examples, settings):
    torch.nn.init.normal_(tiny_backbone64.model.lm_head.weight, std=3.0)  # so that gains reach the bounds
    objective = CAL(tiny_backbone64, **settings)
    batch = batch_of(objective, examples)
    chat = batch.conversation
    seeing, blind = dense(tiny_backbone64, chat)
    bounds = {key: value for key, value in settings.items() if key != "normalize"}
    weights = visual_weights(logit_gain(seeing, blind, chat.labels), supervised(chat.labels), **bounds)
    kept = weights[supervised(chat.labels)]
    assert kept.min() < kept.max()
    normalize = settings.get("normalize", "batch")
    expected = weighted_nll(seeing, chat.labels, weights, normalize=normalize, eps=0.0)
    loss = objective.loss(batch)
    torch.testing.assert_close(loss.mean, expected)
    assert loss.weight == (len(batch) if normalize == "sample" else pytest.approx(weights.sum().item()))
    assert loss.report["mean_weight"] == pytest.approx(kept.mean().item())
    assert loss.report["likelihood_loss"] == pytest.approx(MLE(tiny_backbone64).loss(batch).mean.item())
    gradients = [torch.autograd.grad(mean, tiny_backbone64.model.lm_head.weight)[0] for mean in (loss.mean, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_short_pass_equals_the_dense_functions_in_other_families(family, side):
    backbone = make(family).eval()
    chat = sequences(backbone, side=side)
    logits, blind = backbone(chat).logits, masked_logits(backbone, chat, chat.image_mask)
    bounds = {"low": 0.0, "high": 0.5}
    weights = visual_weights(logit_gain(logits, blind, chat.labels), supervised(chat.labels), **bounds)
    kept = weights[supervised(chat.labels)]
    assert kept.min() < kept.max()
    loss = CAL(backbone, **bounds).loss(Batch(ids=("a", "b", "c"), conversation=chat)).mean
    torch.testing.assert_close(loss, weighted_nll(logits, chat.labels, weights), rtol=1e-4, atol=1e-5)


def test_equal_bounds_are_likelihood(tiny_backbone64, examples):
    objective, likelihood = CAL(tiny_backbone64, low=2.0, high=2.0), MLE(tiny_backbone64)
    batch = batch_of(objective, examples)
    losses = objective.loss(batch).mean, likelihood.loss(batch).mean
    torch.testing.assert_close(*losses)
    weights = [torch.autograd.grad(loss, tiny_backbone64.model.lm_head.weight)[0] for loss in losses]
    torch.testing.assert_close(*weights)


def test_texts_alone_are_likelihood(tiny_backbone64, examples):
    texts = [replace(example, conversation=(Turn("user", ("a question",)), Turn("assistant", ("red circle",))))
             for example in examples[:4]]  # fmt: skip
    objective = CAL(tiny_backbone64)
    batch = batch_of(objective, texts)
    loss = objective.loss(batch)
    torch.testing.assert_close(loss.mean, MLE(tiny_backbone64).loss(batch).mean)
    assert loss.report["at_low"] == 1 and loss.report["mean_weight"] == 1
    # Beside pictures they weigh the same.
    batch = batch_of(objective, [*examples[:3], *texts[:1]], 4)
    gain = gain_of(objective, batch, tiny_backbone64.hidden(batch.conversation), None)
    assert not gain[3].any() and gain[:3].any()
    # Both passes are the same there, and not only because such rows are left out.
    chat = batch.conversation
    seeing = tiny_backbone64.label_states(chat)
    last = supervised(chat.labels).nonzero()[:, 0] == 3
    difference = seeing - objective.blind_states(batch, None)
    assert difference[last].abs().max() < 1e-12 < difference[~last].abs().max()


@pytest.mark.parametrize("settings", [{}, {"pooling": "flat"}, {"normalize": "sample"}, {"low": 0.0}])
def test_nothing_to_train_on_is_zero_with_a_graph(tiny_backbone, examples, settings):
    objective = CAL(tiny_backbone, **settings)
    batch = batch_of(objective, examples)
    chat = replace(batch.conversation, labels=torch.full_like(batch.conversation.labels, IGNORE))
    loss = objective.loss(replace(batch, conversation=chat))
    loss.mean.backward()
    assert loss.mean == 0 and loss.weight == 0 and all(value.isfinite() for value in loss.report.values())
    assert not any(p.grad.any() for p in tiny_backbone.parameters() if p.grad is not None)


def test_pictures_are_encoded_once_and_the_head_sees_labels_alone(tiny_backbone, examples):
    objective = CAL(tiny_backbone)
    batch = batch_of(objective, examples)
    objective.loss(batch)  # once before, as what the model's head gives is compared with what the model gives
    seen = {"tower": [], "head": [], "decoder": []}

    def watch(name, module, of):
        module.register_forward_hook(
            lambda _, inputs, named, output: seen[name].append(of(inputs, named)), with_kwargs=True
        )

    watch("tower", tiny_backbone.model.model.vision_tower, lambda inputs, named: None)
    watch("head", tiny_backbone.model.lm_head, lambda inputs, named: len(inputs[0]))
    watch("decoder", tiny_backbone.model.get_decoder(), lambda inputs, named: named["inputs_embeds"].shape[1])
    objective.loss(batch)
    chat = batch.conversation
    texts = (chat.attention_mask.bool() & ~chat.image_mask).sum(1).max()
    assert len(seen["tower"]) == 1 and seen["head"] == [supervised(chat.labels).sum()]
    assert seen["decoder"] == [texts, chat.input_ids.shape[1]]


def test_the_vision_tower_learns_from_the_seeing_pass_alone(tiny_backbone64, examples):
    objective = CAL(tiny_backbone64)
    batch = batch_of(objective, examples)
    chat = batch.conversation
    seeing, blind = dense(tiny_backbone64, chat)
    weights = visual_weights(logit_gain(seeing, blind, chat.labels), supervised(chat.labels))
    projector = tiny_backbone64.model.model.multi_modal_projector.linear_1.weight
    losses = objective.loss(batch).mean, weighted_nll(seeing, chat.labels, weights, eps=0.0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, projector)[0] for loss in losses))


def test_all_patches_masked_is_no_image_and_few_are_less(tiny_backbone64, examples):
    batch = batch_of(CAL(tiny_backbone64), examples)
    hidden = tiny_backbone64.hidden(batch.conversation)
    features = tiny_backbone64.features(batch.conversation)

    def gain(**settings):
        return gain_of(CAL(tiny_backbone64, **settings), batch, hidden, features)

    torch.testing.assert_close(gain(contrast=MaskedPatches(1.0)), gain())
    some = gain(contrast=MaskedPatches(0.5))
    assert torch.equal(some, gain(contrast=MaskedPatches(0.5))) and not torch.allclose(some, gain())
    # Which ones depends on the example's id alone, not on its neighbours.
    last = CAL(tiny_backbone64, contrast=MaskedPatches(0.5))
    alone = batch_of(last, examples[5:6], 1)
    own = gain_of(last, alone, tiny_backbone64.hidden(alone.conversation), None)
    torch.testing.assert_close(own, some[5:6, : own.shape[1]])
    few = MaskedPatches(0.01)(tiny_backbone64, batch.conversation, features, batch.ids, whole=True)
    hidden = (few.attention_mask != batch.conversation.attention_mask).sum(1)
    assert hidden.tolist() == [1] * len(batch)
    blind = last.contrast(tiny_backbone64, batch.conversation, features, batch.ids, whole=True)
    shown = (blind.attention_mask.bool() & blind.image_mask).sum(1)
    assert shown.tolist() == [count - round(0.5 * count) for count in batch.conversation.image_mask.sum(1).tolist()]


def test_a_repainted_picture_is_another_pass_of_the_tower(tiny_backbone64, examples):
    batch = batch_of(CAL(tiny_backbone64), examples)
    chat = batch.conversation
    hidden, pixels = tiny_backbone64.hidden(chat), chat.vision["pixel_values"]

    def gain(contrast):
        return gain_of(CAL(tiny_backbone64, contrast=contrast), batch, hidden, tiny_backbone64.features(chat))

    assert gain(BlurredImage(1e-3)).abs().max() < 1e-9 < 1e-3 < gain(BlurredImage(10.0)).abs().max()
    mean = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    twin = replace(chat, vision={**chat.vision, "pixel_values": mean})
    logits, other = (tiny_backbone64(each).logits for each in (chat, twin))
    kept = supervised(chat.labels)
    torch.testing.assert_close(gain(MeanColor()), logit_gain(logits, other, chat.labels) * kept)


def test_a_blur_by_hand():
    pixels = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    pixels[..., 4, 4] = 1
    blurred = gaussian_blur(pixels, 1.0)[0, 0]
    bell = torch.exp(-(torch.arange(-3, 4, dtype=torch.float64) ** 2) / 2)
    torch.testing.assert_close(blurred[1:8, 1:8], torch.outer(bell, bell) / bell.sum() ** 2)
    torch.testing.assert_close(blurred.sum(), pixels.sum())
    same = torch.rand(2, 1, 3, 1, 1).expand(2, 5, 3, 8, 6)  # of one colour each
    torch.testing.assert_close(gaussian_blur(same, 4.0), same)


def test_pictures_in_patches_cannot_be_repainted():
    processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    backbone = SimpleNamespace(encoder=SimpleNamespace(image_processor=processor), path="my-qwen")
    with pytest.raises(InputError, match="processor of my-qwen cuts them into patches or crops first"):
        BlurredImage().check(backbone)


@pytest.mark.parametrize(
    "settings", [{"low": -1.0}, {"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 0.0}, {"window": 4}]
)
def test_settings_out_of_range_are_refused(tiny_backbone, settings):
    with pytest.raises(InputError, match="CAL needs 0 <= low <= high, high > 0 and an odd window"):
        CAL(tiny_backbone, **settings)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: MaskedPatches(0.0), "0 < share <= 1"), (lambda: MaskedPatches(1.5), "0 < share <= 1"),
    (lambda: BlurredImage(0.0), "sigma > 0"),
])  # fmt: skip
def test_contrasts_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("contrast", [None, MaskedPatches()])
def test_pictures_that_are_read_in_part_cannot_be_hidden(tiny_backbone, examples, contrast):
    CAL(tiny_backbone, contrast=contrast)
    with_tokens(tiny_backbone)
    with pytest.raises(InputError, match="reads pictures through its visual tokenizer, .* so there are none to hide"):
        CAL(tiny_backbone, contrast=contrast)
    objective = CAL(tiny_backbone, contrast=MeanColor())  # these can be painted over
    assert objective.loss(batch_of(objective, examples)).mean.isfinite()


def test_a_contrast_is_named_in_a_config():
    def contrast(value):
        return resolve({"objective": {"class_path": "CAL", "init_args": {"contrast": value}}, "data": "Scenes"})[
            "objective"
        ]["init_args"]["contrast"]

    assert contrast(None) is None
    assert contrast("MeanColor") == {"class_path": "MeanColor", "init_args": {}}
    assert contrast({"class_path": "MaskedPatches", "init_args": {"share": 0.5}})["init_args"] == {"share": 0.5}
    with pytest.raises(InputError, match="did you mean 'BlurredImage'"):
        contrast("BluredImage")


def test_validation_reports_both_likelihoods(tiny_backbone, examples):
    objective = CAL(copy.deepcopy(tiny_backbone), low=0.0)
    objective.optimization = Optimization(lr=1e-3, schedule="constant")
    recorder = fit_and_validate(objective)
    val = {key: value for _, line in recorder.lines for key, value in line.items() if key.startswith("val/")}
    assert {"val/loss", "val/likelihood_loss", "val/mean_weight", "val/at_low", "val/gain"} <= set(val)
    assert val["val/loss"] != pytest.approx(val["val/likelihood_loss"])


def fit_and_validate(objective):
    recorder = Recorder()
    trainer = Trainer(
        max_steps=1, logger=recorder, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=1,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(objective, datamodule=Scenes(num_train=8, batch_size=8))
    return recorder


def test_it_is_a_part_of_a_mixture(tiny_backbone, examples):
    mixture = Mixture(tiny_backbone, parts={"weighted": CAL, "plain": MLE})
    report = mixture.loss(batch_of(mixture, examples)).report
    assert report["weighted/likelihood_loss"] == pytest.approx(report["plain/loss"].item(), rel=1e-5)
    assert report["weighted/loss"] != pytest.approx(report["plain/loss"].item(), rel=1e-5)


def test_it_learns(tiny_backbone):
    recorder = fit(CAL(copy.deepcopy(tiny_backbone)), steps=30, lr=3e-3, log_every_n_steps=1)
    losses = [line["train/loss"] for _, line in recorder.lines]
    assert losses[-1] < 0.7 * losses[0]
