"""LaVIT: the loss by loops that write out both kinds of sequences, what trains, and several processes."""

import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from test_lavittokenizer import CODES, SMALL, FirstAll, fitted, halve, two_pictures
from torch import distributed

from alignlab import InputError
from alignlab.adapters import Full, LoRA
from alignlab.backbones import Backbone
from alignlab.backbones.tiny import give_tokenizer
from alignlab.batch import Example, Turn
from alignlab.certificate.children import preload, run_children
from alignlab.certificate.training import Given as Batches
from alignlab.data import Scenes
from alignlab.data.identity import seed_of
from alignlab.errors import NoTokenizer
from alignlab.modules import AllPatches
from alignlab.objectives import LaVIT, LaVITTokenizer


@pytest.fixture
def backbone(tiny_backbone64, examples):
    """With a tokenizer that keeps about half of the patches."""
    torch.manual_seed(1)  # whatever ran before: among all draws there are some whose codes are too near to call
    give_tokenizer(tiny_backbone64)
    tokenizer = tiny_backbone64.visual_tokenizer
    disturb(tokenizer)
    halve(tokenizer, tiny_backbone64, examples)
    return tiny_backbone64


@torch.no_grad()
def disturb(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.1))


def made(backbone, **settings):
    objective = LaVIT(backbone, **settings)
    if objective.backbone.visual_tokenizer.input_merger is not None:
        disturb(backbone.visual_tokenizer.input_merger)  # as it will be once it has trained
    return objective.train()


def captioned(examples):
    """Two pictures, one and none, with captions of unequal lengths, in any order with others."""
    told = ("a red circle", "two big blue squares and a star", "a star")
    pictures = [Example(each.id, each.conversation, target=(caption,))
                for each, caption in zip(two_pictures(examples), told, strict=True)]  # fmt: skip
    return [*pictures, *examples[4:6]]


def batch_of(objective, examples):
    return objective.backbone.encoder.batch(examples, objective.requires)


def nll(backbone, embeddings, labels):
    """-log p of each label that is none of None, given the embeddings before it."""
    states = backbone.model.get_decoder()(inputs_embeds=torch.stack(embeddings)[None]).last_hidden_state[0]
    logps = backbone.head(states).log_softmax(-1)
    return [-float(logps[t - 1, label].detach()) for t, label in enumerate(labels) if label is not None]


def by_loops(objective, examples, *, step=0, training=True):
    """-log p of the supervised tokens of texts, and of those of pictures, sample by sample."""
    backbone, embed = objective.backbone, objective.backbone.model.get_input_embeddings()
    tokenizer, visual = backbone.visual_tokenizer, backbone.encoder.visual
    texts, pictures = [], []
    for example in examples:
        batch = batch_of(objective, [example])
        chat, rows, codes = batch.conversation, [], []
        for features in backbone.patch_features(chat) if example.images else ():
            keep = tokenizer.selection.log_probs(features[None])[0].argmax(-1) == 0
            mask = keep.double()[None]
            vectors = tokenizer.to_codes(tokenizer.merger(features[None], mask))
            codes.append([int((tokenizer.quantizer.codebook @ vector).argmax()) for vector in vectors])
            if tokenizer.discrete:
                found = [embed.weight[visual.first + code] for code in codes[-1]]
                places = range(len(found))
            else:
                found = backbone.model.model.multi_modal_projector(tokenizer.input_merger(features[None], mask))
                places = keep.nonzero().flatten().tolist()
            rows.append({place: (row, code) for place, row, code in zip(places, found, codes[-1], strict=True)})
        sequence, labels, seen, number = [], [], 0, -1
        for id, label, shown in zip(chat.input_ids[0], chat.labels[0], chat.image_mask[0], strict=True):
            number, seen = (number, seen + 1) if shown else (number, 0)
            number += bool(shown and seen == 1)
            if not shown:
                sequence.append(embed.weight[id])
                labels.append(None if label == -100 else int(label))
            elif seen - 1 in rows[number]:
                row, code = rows[number][seen - 1]
                sequence.append(row)
                labels.append(visual.first + code if objective.read_images_supervised else None)
        texts += nll(backbone, sequence, labels)
        if example.images:
            drawn = torch.rand((), generator=torch.Generator().manual_seed(seed_of(step, example.id)))
            caption = [] if training and drawn < objective.drop_text else batch.target.input_ids[0].tolist()
            said = caption if objective.captions_supervised else [None] * len(caption)
            answer = [*(visual.first + code for code in codes[0]), visual.end]
            ids = [*caption, visual.start, *answer]
            labels = [*said, None, *answer]
            labels[0] = None  # nothing stands before it
            pictures += nll(backbone, [embed.weight[id] for id in ids], labels)
    return texts, pictures


FORMS = {
    "plain": {},
    "weighted": {"text_weight": 2.0, "image_weight": 0.5},
    "texts alone": {"image_weight": 0.0},
    "pictures alone": {"text_weight": 0.0},
    "some texts dropped": {"drop_text": 0.5},
    "discrete": {"discrete_input": True},
    "pictures read supervised": {"read_images_supervised": True, "drop_text": 0.0},
    "all supervised": {"discrete_input": True, "read_images_supervised": True, "captions_supervised": True},
    "captions supervised": {"captions_supervised": True, "drop_text": 0.5},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_loss_is_that_of_sequences_written_out(backbone, examples, form, side):
    objective, given = made(backbone, **FORMS[form]), captioned(examples)
    backbone.encoder.padding_side = side
    texts, pictures = by_loops(objective, given)
    loss = objective.loss(batch_of(objective, given))
    text, image = objective.weights
    weight = text * len(texts) + image * len(pictures)
    assert float(loss.weight) == pytest.approx(weight)
    assert float(loss.mean) == pytest.approx((text * sum(texts) + image * sum(pictures)) / weight, rel=1e-5)
    assert float(loss.report["text_loss"]) == pytest.approx(sum(texts) / len(texts), rel=1e-5)
    assert float(loss.report["image_loss"]) == pytest.approx(sum(pictures) / len(pictures), rel=1e-5)
    assert 9 < float(loss.report["visual_tokens"]) < 27


def test_texts_are_dropped_by_the_example_and_the_step_in_training_alone(backbone, examples):
    objective, found = made(backbone, drop_text=0.5, captions_supervised=True), []
    given = captioned(examples)
    for step in range(3):
        expected = by_loops(objective, given, step=step)[1]
        for order in (given, given[::-1]):
            report = objective.loss(batch_of(objective, order)).report
            assert float(report["image_loss"]) == pytest.approx(sum(expected) / len(expected), rel=1e-5)
        found.append(len(expected))
        objective.after_step()
    assert len(set(found)) > 1  # other captions are dropped
    all_there = by_loops(objective, given, training=False)[1]
    assert len(all_there) > max(found)
    report = objective.eval().loss(batch_of(objective, given)).report
    assert float(report["image_loss"]) == pytest.approx(sum(all_there) / len(all_there), rel=1e-5)


def test_without_texts_a_picture_is_written_whatever_its_caption(backbone, examples):
    objective = made(backbone, text_weight=0.0, drop_text=1.0)
    retold = [Example(each.id, each.conversation, target=("something else",)) for each in examples[:3]]
    losses = [objective.loss(batch_of(objective, given)).mean for given in (examples[:3], retold)]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)
    objective.drop_text = 0.0
    losses = [objective.loss(batch_of(objective, given)).mean for given in (examples[:3], retold)]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("settings", [{}, {"discrete_input": True, "read_images_supervised": True}])
def test_batches_of_texts_alone(backbone, examples, settings):
    objective = made(backbone, **settings)
    given = captioned(examples)
    full = objective.loss(batch_of(objective, given)).report
    loss = objective.loss(batch_of(objective, given[2:3]))
    texts, pictures = by_loops(objective, given[2:3])
    assert not pictures and float(loss.weight) == len(texts)
    assert float(loss.mean) == pytest.approx(sum(texts) / len(texts), rel=1e-5)
    assert loss.report.keys() == full.keys() and all(torch.as_tensor(each).isfinite() for each in loss.report.values())
    loss.mean.backward()


@pytest.mark.parametrize("discrete", [False, True])
def test_what_trains_and_what_stays(backbone, examples, discrete):
    Full(parts=("projector",)).apply(backbone)
    objective = made(backbone, discrete_input=discrete)
    objective.loss(batch_of(objective, examples[:4])).mean.backward()
    trains = {name for name, each in objective.named_parameters() if each.requires_grad}
    parts = ["embed_tokens", "lm_head", *([] if discrete else ["multi_modal_projector", "input_merger"])]
    assert trains == {name for name, _ in objective.named_parameters() if any(part in name for part in parts)}
    for name, parameter in objective.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name in trains), name
    tokenizer = backbone.visual_tokenizer
    assert not any(module.training for module in tokenizer.modules()) and backbone.model.training
    assert tokenizer.quantizer.counts.sum() == 0  # codes are read, not counted


def test_the_adapter_says_what_of_the_language_model_trains_besides(backbone):
    Full(parts=("language_model",)).apply(backbone)
    objective = made(backbone)
    trains = [name for name, each in objective.named_parameters() if each.requires_grad]
    assert any("layers.0.mlp" in name for name in trains) and any("input_merger" in name for name in trains)
    assert not any(
        "projector" in name or "vision_tower" in name or "visual_tokenizer.merger" in name for name in trains
    )


def test_a_fit_moves_what_trains_and_writes_the_same_codes(tiny_backbone, examples, tmp_path):
    give_tokenizer(tiny_backbone)
    Full(parts=("projector", "language_model")).apply(tiny_backbone)
    objective = made(tiny_backbone)
    tokenizer = tiny_backbone.visual_tokenizer
    features = tiny_backbone.patch_features(batch_of(objective, examples[:4]).conversation)
    before = {name: each.clone() for name, each in objective.state_dict().items()}
    codes, counts = tokenizer.codes(features)
    fitted(objective, tmp_path, limit_val_batches=1, val_check_interval=1)
    assert torch.equal(tokenizer.codes(features)[0], codes) and torch.equal(tokenizer.codes(features)[1], counts)
    moved = {name for name, each in objective.state_dict().items() if not torch.equal(each, before[name])}
    assert not any("vision_tower" in name for name in moved)
    assert {name for name in moved if "visual_tokenizer" in name} == {
        f"backbone.visual_tokenizer.input_merger.{name}" for name, _ in tokenizer.input_merger.named_parameters()
    }
    assert {"step", "backbone.model.lm_head.weight"} < moved and objective.step == 2


def test_a_target_with_a_picture_is_refused(backbone, examples):
    objective = made(backbone)
    shown = [Example("shown", examples[0].conversation, target=examples[0].query)]
    with pytest.raises(InputError, match="a target of the data has pictures itself"):
        objective.loss(batch_of(objective, shown))


def test_a_tokenizer_with_codes_is_needed(tiny_backbone):
    with pytest.raises(NoTokenizer, match="has no visual tokenizer; train one by LaVITTokenizer"):
        LaVIT(tiny_backbone)
    LaVITTokenizer(tiny_backbone, **SMALL)
    with pytest.raises(NoTokenizer, match="has a visual tokenizer without a quantizer"):
        LaVIT(tiny_backbone)
    LaVITTokenizer(tiny_backbone, quantizer=CODES, **SMALL)
    assert LaVIT(tiny_backbone).backbone.encoder.visual.num_codes == 6


@pytest.mark.parametrize(
    "settings", [{"text_weight": -1.0}, {"text_weight": 0.0, "image_weight": 0.0}, {"drop_text": 1.5}]
)
def test_settings_out_of_range_are_refused(backbone, settings):
    with pytest.raises(InputError, match="weights of at least 0, not both 0, and drop_text in"):
        LaVIT(backbone, **settings)


def test_adapters_in_the_language_model_are_refused(backbone):
    LoRA(rank=2).apply(backbone)
    with pytest.raises(InputError, match="has adapters, which fit no larger vocabulary"):
        LaVIT(backbone)


def test_a_conversation_is_answered_and_a_picture_drawn(backbone, examples):
    objective = made(backbone).eval()
    prompts = backbone.encoder.prompts([(Turn("user", (examples[0].query[0], "what is there ?")),)])
    assert len(backbone.generate(prompts, max_new_tokens=4)) == 1
    drawing = objective.backbone.draw(backbone.encoder.prompts([(Turn("user", ("a red circle",)),)]), seed=0)
    assert drawing.pixels.shape == (1, 3, 48, 48) and 1 <= int(drawing.counts) <= 36


def share(rank: int, path: Path, folder: Path) -> dict:
    """One of two processes, which do not look for weights that have no gradient."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    found = {}
    for selection in (FirstAll, AllPatches):
        torch.manual_seed(0)
        backbone = Backbone(str(path))
        give_tokenizer(backbone)
        backbone.visual_tokenizer.selection = selection(32)
        Full(parts=("projector", "language_model")).apply(backbone)
        together = {"devices": 2, "strategy": "ddp", "plugins": [LightningEnvironment()]}
        objective = fitted(LaVIT(backbone), folder / f"{selection.__name__} {rank}", steps=3, **together)
        trained = {name: each for name, each in objective.named_parameters() if each.requires_grad}
        found |= {f"{selection.__name__} {name}": each.detach() for name, each in trained.items()}
    split = Scenes(num_train=24).examples("train")
    given = captioned(split)[2:3] if rank == 0 else [split[0], split[1]]  # a text alone
    torch.manual_seed(0)
    backbone = Backbone(str(path))
    give_tokenizer(backbone)
    objective = LaVIT(backbone)
    data = Batches((), [batch_of(objective, given)] * 2)
    together["strategy"] = "auto"  # which looks for what has no gradient, as a projector without pictures
    fitted(objective, folder / f"texts {rank}", data=data, **together)
    return found | {f"texts {name}": each.detach() for name, each in objective.named_parameters()}


def test_processes_that_keep_everything_or_see_no_picture_stay_in_step(tiny_path, tmp_path):
    preload()
    one, other = run_children(share, [(rank, tiny_path, tmp_path) for rank in range(2)])
    assert one.keys() == other.keys() and any("input_merger.source_norm" in name for name in one)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
