"""Emu: the next word by likelihood, the next patch features by regression."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText

import alignlab
from alignlab import InputError, certify
from alignlab.adapters import Full, LoRA
from alignlab.backbones import Backbone
from alignlab.backbones.patches import projector_of
from alignlab.backbones.regressing import caption_tokens, follows, visual_tokens
from alignlab.backbones.tiny import give_tokenizer
from alignlab.batch import IGNORE, Example, Tokens, Turn
from alignlab.data import Scenes
from alignlab.experiment.config import resolve
from alignlab.experiment.export import export
from alignlab.experiment.run import evaluate_run, run
from alignlab.functional import supervised
from alignlab.objectives import MLE, Emu, LaVIT, LaVITTokenizer

PATCHES, DIM = 36, 32


def batch_of(objective, examples):
    return objective.backbone.encoder.batch(examples, objective.requires)


def mixed(examples):
    """One picture; two in two turns, and none."""
    one, two = examples[0], examples[1]
    turns = (
        Turn("user", (examples[2].images[0], "which one")),
        Turn("assistant", ("the first",)),
        Turn("user", (examples[3].images[0], "and this")),
        Turn("assistant", ("a big blue square",)),
    )
    three = Example("none", conversation=(Turn("user", ("hello",)), Turn("assistant", ("a circle",))), target=("hi",))
    return [one, replace(two, conversation=turns), three]


def tokens_of(backbone, image, num_tokens):
    """A picture's features at its tokens, by hand, (n, C)."""
    features = backbone.patch_features(backbone.encoder.contents([(image,)]))[0]
    side = round((PATCHES / num_tokens) ** 0.5)
    grid, across = features.view(6, 6, DIM), 6 // side
    squares = [(down * side, right * side) for down in range(across) for right in range(across)]
    return torch.stack([grid[top : top + side, left : left + side].mean((0, 1)) for top, left in squares])


def by_hand(objective, examples, num_tokens, *, captions=False):
    """Every sequence alone: minus log p of words, and mean squared errors of visual tokens."""
    backbone, encoder = objective.backbone, objective.backbone.encoder
    projector, embed = projector_of(backbone), backbone.model.get_input_embeddings()
    words, errors = [], []

    def follow(ids, labels, pictures):
        """Ids with one of -1 for each picture."""
        rows, wanted, pictures = [], [], iter(pictures)
        for token, label in zip(ids, labels, strict=True):
            if token == -1:
                features = next(pictures)
                rows += list(projector(features[None])[0])
                wanted += list(features)
            else:
                rows.append(embed.weight[token])
                wanted.append(label)
        states = backbone.model.base_model(inputs_embeds=torch.stack(rows)[None]).last_hidden_state[0]
        for state, said in zip(states, wanted[1:], strict=False):
            if isinstance(said, torch.Tensor):
                errors.append((objective.tokenizer.predict.weight @ state - said).square().sum() / DIM)
            elif said != IGNORE:
                words.append(-backbone.head(state).log_softmax(-1)[said])

    for example in examples:
        chat = encoder.conversations([(example.id, example.conversation)])
        pictures = [tokens_of(backbone, image, num_tokens) for image in example.images]
        ids, labels = [], []
        for place, (token, label) in enumerate(zip(chat.input_ids[0].tolist(), chat.labels[0].tolist(), strict=True)):
            if token != encoder.image_token_id:
                ids.append(token)
                labels.append(label)
            elif chat.input_ids[0, place - 1] != encoder.image_token_id:
                ids.append(-1)
                labels.append(IGNORE)
        follow(ids, labels, pictures)
        if pictures:
            said = encoder.contents([example.target]).input_ids[0].tolist()
            labels = [IGNORE, *said[1:-1], IGNORE] if captions else [IGNORE] * len(said)
            follow([*said, -1], [*labels, IGNORE], pictures[:1])
    return torch.stack(words), torch.stack(errors)


@pytest.mark.parametrize(("num_tokens", "captions", "side"), [(36, False, "right"), (9, True, "left")])
def test_it_is_the_mean_over_words_and_visual_tokens_by_hand(tiny_backbone64, examples, num_tokens, captions, side):
    weights = {"text_weight": 0.5, "image_weight": 2.0, "pixel_weight": 3.0}
    objective = Emu(tiny_backbone64, num_tokens=num_tokens, captions_supervised=captions, **weights)
    objective.backbone.encoder.padding_side = side
    some = mixed(examples)
    loss = objective.loss(batch_of(objective, some))
    words, errors = by_hand(objective, some, num_tokens, captions=captions)
    assert len(errors) == (3 + 2) * num_tokens
    images = [image for example in some for image in example.images]
    shown = objective.backbone.encoder.contents([(image,) for image in images])
    features = torch.stack([tokens_of(objective.backbone, image, num_tokens) for image in images])
    painted = objective.tokenizer.pixel_decoder(features) - objective.backbone.pixels(shown)
    pixels = painted.square().mean((1, 2, 3)).sum() * num_tokens
    total = 0.5 * len(words) + 2 * len(errors)
    # Rotations and norms of Llama are in float32 whatever the weights' type.
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6, check_dtype=False)
    close(loss.mean, (0.5 * words.sum() + 2 * errors.sum() + 3 * pixels) / total)
    assert float(loss.weight) == total
    close(loss.report["text_loss"], words.mean())
    close(loss.report["image_loss"], errors.mean())
    close(loss.report["pixel_loss"], painted.square().mean())
    wanted = torch.cat([features.flatten(0, 1), features[:2].flatten(0, 1)])
    close(loss.report["target_variance"], wanted.var(0, correction=0).mean())


def test_words_and_predictors_are_those_of_emu(golden):
    """Emu's own targets, but for [IMG] and [/IMG], which are words like others here, and the prediction of [/IMG]."""
    recorded = golden("localization_rl_metrics/emu_unified_autoregression")
    special, expected = recorded["inputs"]["ids"], recorded["expected"]
    ids = torch.tensor(recorded["inputs"]["token_ids"])
    shown, real = ids == special["image"], ids != special["pad"]
    tokens = Tokens(ids, real.long(), torch.full_like(ids, IGNORE), shown, {}, torch.tensor([1, 1]))
    num_tokens = int(shown[0].sum())
    predicted = visual_tokens(tokens, torch.ones(2, num_tokens, dtype=torch.bool)) & follows(tokens)
    predictors = F.pad(predicted[:, 1:], (0, 1))
    official = torch.tensor(expected["regress_mask"])
    end = ids == special["img_end"]
    assert torch.equal(predictors, official & ~F.pad(end[:, 1:], (0, 1)))
    assert torch.equal(predicted, F.pad(official[:, :-1], (1, 0)) & ~end)
    # What stands before the picture of the first sample is a caption, whose last token is the mark.
    official = torch.tensor(expected["lm_targets_before_shift"])[:1]
    place = int(shown[0].float().argmax())
    before = place + num_tokens
    written = Tokens(*(each[:1, :before] for each in (ids, real.long(), ids, shown)), {}, torch.tensor([1]))
    labels = ids[:1, :before].masked_fill(~caption_tokens(written), IGNORE)
    assert torch.equal(labels[:, 1:], official[:, 1:before]) and (labels != IGNORE).sum() == 2
    # All features but that of [/IMG] are regressed to, in order.
    features = torch.tensor(recorded["inputs"]["image_embeds"])
    labels = torch.tensor(expected["regress_labels"]).view(2, num_tokens + 1, -1)
    assert torch.equal(labels[:, :-1], features.view(2, num_tokens, -1))


def test_a_visual_token_that_nothing_stands_before_is_not_predicted(tiny_backbone64, examples):
    objective = Emu(tiny_backbone64, num_tokens=9, text_weight=0.0, pixel_weight=0.0)
    batch = batch_of(objective, examples[:2])
    chat, backbone = batch.conversation, objective.backbone
    start = chat.image_mask.float().argmax(1)
    assert start[0] == start[1] > 0
    names = ("input_ids", "attention_mask", "labels", "image_mask")
    cut = replace(chat, **{name: getattr(chat, name)[:, start[0] :] for name in names})
    states = backbone.hidden(cut)  # of nine placeholders, then of those that are left out
    written = objective.backbone.feature_sequences(batch.target, drop=torch.zeros(2, dtype=torch.bool))
    features = [tokens_of(backbone, example.images[0], 9) for example in examples[:2]]
    later = backbone.hidden(replace(written, vision=chat.vision, num_images=chat.num_images))
    errors = []
    for row in range(2):
        predicted = objective.tokenizer.predict(states[row, :8])
        errors.append((predicted - features[row][1:]).square().mean(-1))
        first = written.image_mask[row].float().argmax()
        predicted = objective.tokenizer.predict(later[row, first - 1 : first + 8])
        errors.append((predicted - features[row]).square().mean(-1))
    loss = objective.loss(replace(batch, conversation=cut))
    assert loss.weight == 2 * (8 + 9)
    torch.testing.assert_close(loss.mean, torch.cat(errors).mean())


@pytest.mark.parametrize("num_tokens", [36, 9])
def test_with_words_alone_it_is_mle(tiny_backbone64, examples, num_tokens):
    objective = Emu(tiny_backbone64, image_weight=0.0, pixel_weight=0.0, num_tokens=num_tokens)
    batch = batch_of(objective, examples[:4])
    twin = copy.deepcopy(objective.backbone)  # which reads its pictures the same way
    mine, plain = objective.loss(batch), MLE(twin).loss(batch)
    torch.testing.assert_close(mine.mean, plain.mean)
    assert mine.weight == plain.weight and float(mine.report["image_loss"]) > 0
    mine.mean.backward()
    plain.mean.backward()
    for (name, one), two in zip(objective.backbone.model.named_parameters(), twin.model.parameters(), strict=True):
        if one.requires_grad and two.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, msg=name, rtol=1e-5, atol=1e-8)
    assert not objective.tokenizer.predict.weight.grad.any()


def test_features_that_are_predicted_right_cost_nothing(tiny_backbone64, examples):
    """Eight states of 32 entries, and a map that takes each to the features that follow it."""
    objective = Emu(tiny_backbone64, num_tokens=4, text_weight=0.0, pixel_weight=0.0)
    batch, given = batch_of(objective, examples[:1]), []
    hook = objective.tokenizer.predict.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    assert objective.loss(batch).mean > 0.1
    hook.remove()
    wanted = tokens_of(objective.backbone, examples[0].images[0], 4).repeat(2, 1)
    states = torch.cat(given).detach()
    objective.tokenizer.predict.weight.data = (torch.linalg.pinv(states) @ wanted).T
    loss = objective.loss(batch)
    assert 0 <= loss.mean < 1e-12 and loss.report["cosine"] < 1e-6
    torch.testing.assert_close(loss.report["prediction_variance"], loss.report["target_variance"])


def test_dropped_texts_leave_the_mark_of_the_start_alone(tiny_backbone64, examples):
    objective = Emu(tiny_backbone64, drop_text=1.0, pixel_weight=0.0, num_tokens=9, text_weight=0.0)
    batch = batch_of(objective, examples[:3])
    others = [replace(example, target=("something else",)) for example in examples[:3]]
    other = batch_of(objective, others)
    assert torch.equal(objective.loss(batch).mean, objective.loss(other).mean)
    objective.eval()
    assert not torch.allclose(objective.loss(batch).mean, objective.loss(other).mean)
    mark = objective.backbone.encoder.contents([("hello",)]).input_ids[:, -1:]
    drop = torch.ones(3, dtype=torch.bool)
    left = objective.backbone.feature_sequences(batch.target, drop=drop)
    assert torch.equal(left.input_ids[:, -PATCHES - 1 : -PATCHES], mark.expand(3, 1))
    assert (left.attention_mask.sum(1) == PATCHES + 1).all()


def test_what_is_dropped_is_the_examples_and_the_steps(tiny_backbone64, examples):
    objective = Emu(tiny_backbone64, drop_text=0.5, pixel_weight=0.0, num_tokens=9, text_weight=0.0)
    first = objective.loss(batch_of(objective, examples[:8])).mean
    torch.testing.assert_close(objective.loss(batch_of(objective, examples[:8][::-1])).mean, first)
    halves = [objective.loss(batch_of(objective, part)).mean for part in (examples[:4], examples[4:8])]
    torch.testing.assert_close(sum(halves) / 2, first)
    objective.after_step()
    assert not torch.allclose(objective.loss(batch_of(objective, examples[:8])).mean, first)


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)])
def test_the_vision_tower_stays_as_it_is(tiny_backbone, examples, adapter):
    adapter.apply(tiny_backbone)
    objective = Emu(tiny_backbone).train()
    tower = tiny_backbone.parts["vision_tower"]
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for each in tower for module in each.modules())
    assert tiny_backbone.parts["language_model"].training
    objective.loss(batch_of(objective, examples[:2])).mean.backward()
    assert all(parameter.grad is None for parameter in tower.parameters())
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)


def test_the_pixel_decoder_decides_nothing(tiny_backbone64, examples):
    with_pixels = Emu(copy.deepcopy(tiny_backbone64), pixel_weight=5.0)
    without = Emu(tiny_backbone64, pixel_weight=0.0)
    assert without.tokenizer.pixel_decoder is None
    without.tokenizer.predict.load_state_dict(with_pixels.tokenizer.predict.state_dict())
    gradients = []
    for objective in (with_pixels, without):
        objective.loss(batch_of(objective, examples[:2])).mean.backward()
        named = [*objective.backbone.model.named_parameters(), ("predict", objective.tokenizer.predict.weight)]
        gradients.append({name: each.grad for name, each in named if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_texts_alone_are_trained_on_as_by_mle(tiny_backbone64, examples):
    objective = Emu(tiny_backbone64)
    batch = batch_of(objective, mixed(examples)[2:])
    loss = objective.loss(batch)
    torch.testing.assert_close(loss.mean, MLE(tiny_backbone64).loss(batch).mean)
    assert loss.weight == supervised(batch.conversation.labels).sum()
    assert all(torch.as_tensor(value).isfinite() for value in loss.report.values())
    loss.mean.backward()
    for parameter in objective.tokenizer.parameters():  # each has a gradient, so that no process waits for one
        assert parameter.grad is not None and not parameter.grad.any()


def test_backbones_of_half_precision_train(tiny_path, examples):
    objective = Emu(Backbone(str(tiny_path), dtype="bfloat16"), num_tokens=9)
    whole = Emu(Backbone(str(tiny_path)), num_tokens=9)
    whole.tokenizer.load_state_dict(objective.tokenizer.state_dict())
    for some in (mixed(examples), mixed(examples)[2:]):
        loss, expected = (each.loss(batch_of(each, some)) for each in (objective, whole))
        assert loss.mean.dtype == torch.float32 and loss.weight == expected.weight
        torch.testing.assert_close(loss.mean, expected.mean, rtol=3e-2, atol=0)
        loss.mean.backward()
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None for parameter in trained)


def test_it_continues_a_tokenizer(tiny_backbone, tmp_path, examples):
    first = Emu(tiny_backbone, num_tokens=9)
    tiny_backbone.save(tmp_path / "first")
    again = Backbone(str(tmp_path / "first"))
    second = Emu(again)
    assert second.tokenizer.num_tokens == 9
    first.eval(), second.eval()
    batch = batch_of(first, examples[:2])
    assert torch.equal(first.loss(batch).mean, second.loss(batch).mean)
    with pytest.raises(InputError, match="continues a tokenizer of 9 tokens a picture, not 36"):
        Emu(again, num_tokens=36)
    with pytest.raises(InputError, match="LaVITTokenizer continues a VisualTokenizer, but .* a ContinuousTokenizer"):
        LaVITTokenizer(again)
    with pytest.raises(InputError, match="a visual tokenizer without a quantizer"):
        LaVIT(again)


def test_what_it_cannot_do_is_refused(tiny_backbone, examples):
    for settings in (
        {"text_weight": -1},
        {"text_weight": 0, "image_weight": 0},
        {"drop_text": 2},
        {"pixel_weight": -1},
    ):
        with pytest.raises(InputError, match="weights of at least 0, not all 0, and drop_text in"):
            Emu(tiny_backbone, **settings)
    with pytest.raises(InputError, match="may be 1, 4, 9, 36, not 16"):
        Emu(tiny_backbone, num_tokens=16)
    objective = Emu(tiny_backbone)
    shown = [replace(example, target=example.images) for example in examples[:2]]
    with pytest.raises(InputError, match="a picture is written behind texts"):
        objective.loss(batch_of(objective, shown))
    tiny_backbone.visual_tokenizer = None
    give_tokenizer(tiny_backbone)
    with pytest.raises(InputError, match="by a ContinuousTokenizer, but .* has a VisualTokenizer"):
        Emu(tiny_backbone)


def test_its_certificate_holds():
    examples = Scenes(instructions=False).examples("train")[:6]
    make = partial(Emu, num_tokens=9, drop_text=0.5, captions_supervised=True)
    found = certify(make, examples, children=False)
    assert {each.verdict for each in found.findings} <= {"holds", "n/a"} and len(found.findings) > 6


def test_a_run_by_config_draws_is_loaded_and_exported(tiny_path, tmp_path):
    sizes = {"num_train": 40, "num_val": 8, "num_test": 8, "batch_size": 8, "instructions": False}
    config = {
        "objective": {"class_path": "Emu", "init_args": {"num_tokens": 9}},
        "backbone": {"path": str(tiny_path)},
        "data": {"class_path": "Scenes", "init_args": sizes},
        "trainer": {"max_steps": 3, "log_every_n_steps": 1, "limit_val_batches": 1},
        "evaluators": [
            {"class_path": name, "init_args": {"num_examples": 4}} for name in ("ImageGeneration", "Reconstruction")
        ],
        "wandb": {"mode": "disabled"},
    }
    metrics = run(resolve(config), tmp_path / "run")
    assert metrics["scores"]["drawing/tokens"] == 9 and metrics["scores"]["reconstruction/tokens"] == 9
    assert 0 < metrics["scores"]["reconstruction/cosine"] < 1  # of averages
    assert metrics["scores"]["reconstruction/bits"] == 9 * 32 * 32
    assert evaluate_run(tmp_path / "run") == pytest.approx(metrics["scores"])
    backbone = alignlab.load(tmp_path / "run")
    prompts = backbone.encoder.prompts([(Turn("user", ("a red circle",)),)])
    drawing = backbone.draw(prompts)
    assert drawing.pixels.shape == (1, 3, 48, 48)
    export(tmp_path / "run", tmp_path / "out")
    again = Backbone(str(tmp_path / "out")).eval()
    assert torch.equal(again.draw(prompts).pixels, drawing.pixels)
    assert "but not its pictures" in (tmp_path / "out" / "README.md").read_text()


def test_pictures_read_whole_are_read_by_plain_transformers_too(tiny_backbone, tmp_path, examples):
    Emu(tiny_backbone).backbone.save(tmp_path / "saved")
    export(tmp_path / "saved", tmp_path / "out")
    assert "words and pictures" in (tmp_path / "out" / "README.md").read_text()
    chat = tiny_backbone.encoder.batch(examples[:2], ("conversation",)).conversation
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    logits = plain(input_ids=chat.input_ids, attention_mask=chat.attention_mask, **chat.vision).logits
    assert torch.allclose(logits, tiny_backbone.eval()(chat).logits, atol=1e-5)
