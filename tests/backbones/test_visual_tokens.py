import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizing import tensor, tensors
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from visual import DIM, PATCHES, encoded, learned, lengthened, prompts_of, tokenizer_for, with_tokens

from alignlab import Backbone, InputError
from alignlab.backbones import dynamic
from alignlab.backbones.tiny import make_exact
from alignlab.batch import IGNORE, Tokens
from alignlab.certificate.children import preload, run_children
from alignlab.data import Scenes
from alignlab.modules import AllPatches


@pytest.fixture
def exact(tiny_backbone64):
    make_exact(tiny_backbone64.model)
    return tiny_backbone64


def by_hand(backbone, tokens):
    """Each row alone: its kept rows projected, or its codes embedded, amid the embeddings of its words."""
    features = backbone.patch_features(tokens)
    tokenizer, embed = backbone.visual_tokenizer, backbone.model.get_input_embeddings()
    pictures = iter(features)
    states = torch.zeros(*tokens.input_ids.shape, embed.weight.shape[1], dtype=features.dtype)
    for row in range(len(tokens)):
        parts, places = [], []
        position = 0
        while position < tokens.input_ids.shape[1]:
            if tokens.image_mask[row, position]:
                picture = next(pictures)[None]
                if tokenizer.discrete:
                    codes, _ = tokenizer.codes(picture)
                    parts += [embed(codes + backbone.encoder.visual.first)]
                    places += range(position, position + len(codes))
                else:
                    inputs = tokenizer.inputs(picture)
                    parts += [backbone.model.model.multi_modal_projector(inputs.rows)]
                    places += [position + int(patch) for patch in inputs.keep[0].nonzero()]
                position += PATCHES
            else:
                if tokens.attention_mask[row, position]:
                    parts += [embed(tokens.input_ids[row, position])[None]]
                    places += [position]
                position += 1
        embedded = torch.cat(parts)[None]
        found = backbone.model.get_decoder()(inputs_embeds=embedded).last_hidden_state[0]
        states[row, places] = found
    return states


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_states_are_those_of_each_row_alone_with_its_kept_patches(exact, examples, side, discrete):
    backbone = with_tokens(exact, learned, discrete=discrete)
    tokens = encoded(backbone, examples, side)
    reading = dynamic.read(backbone, tokens)
    assert reading.keep.sum() < reading.keep.numel() and len(set(reading.keep.sum(1).tolist())) > 1
    kept = dynamic.kept(tokens, reading)
    hidden, expected = backbone.hidden(tokens), by_hand(backbone, tokens)
    torch.testing.assert_close(hidden[kept], expected[kept], rtol=1e-9, atol=1e-9)
    assert hidden[tokens.attention_mask == 0].abs().sum() == 0
    torch.testing.assert_close(backbone.hidden(tokens, features=backbone.features(tokens)), hidden)


@pytest.mark.parametrize("side", ["left", "right"])
def test_where_all_patches_are_kept_everything_stands_where_it_stood(exact, examples, side):
    backbone = with_tokens(exact, AllPatches)
    tokens = encoded(backbone, examples, side)
    reading = dynamic.read(backbone, tokens)
    short, places = dynamic.shortened(tokens, reading, backbone.encoder.pad_id)
    used = tokens.attention_mask.any(0)
    for name in ("input_ids", "attention_mask", "labels", "image_mask"):
        assert torch.equal(getattr(short, name), getattr(tokens, name)[:, used]), name
    real = tokens.attention_mask.bool()
    first = int(used.long().argmax())
    assert torch.equal(places[real], torch.arange(len(used)).expand_as(real)[real] - first)


def test_a_dropped_patch_before_a_token_holds_the_state_that_predicts_it(exact, examples):
    backbone = with_tokens(exact)
    tokens = backbone.encoder.contents([("what", examples[0].query[0])])
    reading = dynamic.read(backbone, tokens)
    reading.keep[:] = torch.arange(PATCHES) < reading.keep.sum()  # the last ones are dropped
    last = int(tokens.image_mask[0].nonzero()[-1])
    kept = int((tokens.image_mask[0] & dynamic.kept(tokens, reading)[0]).nonzero()[-1])
    hidden = backbone.hidden(tokens, features=reading)
    assert kept < last - 1 and hidden[0, kept].abs().sum() > 0
    assert torch.equal(hidden[0, last], hidden[0, kept])
    assert hidden[0, kept + 1 : last].abs().sum() == 0


def test_encoded_pictures_stand_between_start_and_end(tiny_backbone, examples):
    plain = encoded(tiny_backbone, examples)
    backbone = with_tokens(tiny_backbone)
    visual, tokens = backbone.encoder.visual, encoded(backbone, examples)
    starts, ends = tokens.input_ids == visual.start, tokens.input_ids == visual.end
    assert starts.sum(1).tolist() == ends.sum(1).tolist() == [1, 3, 0]
    for row, start in starts.nonzero().tolist():
        assert tokens.image_mask[row, start + 1 : start + 1 + PATCHES].all() and ends[row, start + 1 + PATCHES]
    for row, (old, mask) in enumerate(zip(plain.input_ids, plain.attention_mask, strict=True)):
        words = ~(starts | ends)[row] & tokens.attention_mask[row].bool()
        assert torch.equal(tokens.input_ids[row][words], old[mask.bool()])
    assert torch.equal(tokens.image_mask.sum(1), plain.image_mask.sum(1))


def test_logits_labels_and_embeddings_come_from_the_same_states(tiny_backbone, examples):
    backbone = with_tokens(tiny_backbone, learned)
    tokens = encoded(backbone, examples)
    hidden, kept = backbone.hidden(tokens), tokens.labels != IGNORE
    torch.testing.assert_close(backbone(tokens, logits_at=kept).logits, backbone.head(hidden[kept]))
    before = kept[:, 1:]
    torch.testing.assert_close(backbone.label_states(tokens), hidden[:, :-1][before])
    last = [int(row.nonzero()[-1]) for row in tokens.attention_mask]
    torch.testing.assert_close(backbone.embed(tokens), torch.stack([h[at] for h, at in zip(hidden, last, strict=True)]))


def test_two_answers_are_scored_as_each_alone(tiny_backbone, examples):
    backbone = with_tokens(tiny_backbone, learned)
    both = [replace(e, rejected=("nothing is there",)) for e in examples[:3]]
    batch = backbone.encoder.batch(both, ("conversation", "rejected"))
    answers = backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
    features = backbone.features(batch.conversation)
    found = backbone.answer_logps(answers, features=features)
    for side, tokens in enumerate((batch.conversation, batch.rejected)):
        logps = backbone(tokens).logits[:, :-1].log_softmax(-1)
        labels = tokens.labels[:, 1:]
        each = logps.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        number = tokens.attention_mask.cumsum(1)[:, 1:] - 1
        answered = (labels != IGNORE) & (number >= batch.prompt_lengths[:, None])
        torch.testing.assert_close(found[side], (each * answered).sum(1), rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_merger_that_the_language_model_reads(tiny_backbone, examples):
    backbone = with_tokens(tiny_backbone, learned).train()
    tokens = encoded(backbone, examples)
    backbone(tokens).logits.logsumexp(-1).sum().backward()
    tokenizer = backbone.visual_tokenizer
    assert all(weight.grad.abs().sum() > 0 for weight in backbone.parts["projector"].parameters())
    assert all(weight.grad is not None for weight in tokenizer.input_merger.parameters())
    assert all(weight.grad is None for weight in tokenizer.merger.parameters())
    assert all(weight.grad is None for weight in tokenizer.selection.parameters())


@pytest.mark.parametrize("discrete", [False, True])
def test_answers_are_those_of_a_loop_without_cache_and_never_visual(exact, examples, discrete):
    backbone = with_tokens(exact, learned, discrete=discrete)
    visual = backbone.encoder.visual
    with torch.no_grad():  # visual tokens would be said always
        backbone.head.weight[visual.start :] *= 30
        backbone.head.weight[backbone.encoder.tokenizer.eos_token_id] = 0
    prompts = prompts_of(backbone, examples)
    ids = backbone.generate_ids(prompts, max_new_tokens=4)
    forbidden = visual.among(torch.arange(len(backbone.encoder.tokenizer)))
    forbidden[[visual.start, visual.end]] = True
    free = 0
    for row in range(len(prompts)):
        tokens = prompts.select(torch.tensor([row]))
        for step in range(4):
            logits = backbone(tokens).logits[0, -1]
            free += bool(forbidden[logits.argmax()])
            chosen = logits.masked_fill(forbidden, -torch.inf).argmax()
            assert chosen == ids[row, step]
            tokens = lengthened(tokens, chosen)
    assert free > 0  # so that it did matter
    assert not forbidden[ids].any() and all("<visual" not in text for text in backbone.encoder.decode(ids))


def test_patch_features_are_what_the_projector_is_given(tiny_backbone, examples):
    tokens = encoded(tiny_backbone, examples)
    features = tiny_backbone.patch_features(tokens)
    assert features.shape == (4, PATCHES, DIM) and features.requires_grad
    tower = tiny_backbone.model.get_encoder(modality="image")
    seen = tower(tokens.vision["pixel_values"], output_hidden_states=True).hidden_states[-1][:, 1:]
    torch.testing.assert_close(features, seen)
    tower.requires_grad_(False)
    assert not tiny_backbone.patch_features(tokens).requires_grad
    with pytest.raises(InputError, match="these sequences have none"):
        tiny_backbone.patch_features(tiny_backbone.encoder.contents([("words",)]))


def test_pixels_are_the_pictures_before_normalisation(tiny_backbone, examples):
    tokens = encoded(tiny_backbone, examples)
    shown = [examples[index].query[0] for index in (0, 0, 1, 2)]
    expected = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in shown]) / 255
    torch.testing.assert_close(tiny_backbone.pixels(tokens), expected, rtol=0, atol=1e-5)


def test_the_plain_path_is_untouched_by_a_tokenizer_that_is_not_read_through(tiny_backbone, examples):
    tokens = encoded(tiny_backbone, examples)
    before = tiny_backbone.hidden(tokens)
    tiny_backbone.visual_tokenizer = tokenizer_for(split=False)
    assert torch.equal(tiny_backbone.hidden(tokens), before)
    tiny_backbone.visual_tokenizer.split()
    assert not torch.equal(tiny_backbone.hidden(tokens), before)


def test_there_is_nothing_to_hide_where_patches_are_dropped(tiny_backbone, examples):
    backbone = with_tokens(tiny_backbone)
    with pytest.raises(InputError, match="without_images"):
        backbone.without_images(encoded(backbone, examples))


def test_codes_without_tokens_are_refused(tiny_backbone, examples):
    tiny_backbone.visual_tokenizer = tokenizer_for(discrete=True)
    with pytest.raises(InputError, match="add_visual_tokens"):
        tiny_backbone.hidden(encoded(tiny_backbone, examples))


def test_a_tokenizer_for_other_features_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="36 patches of width 32.*36 of width 16"):
        tiny_backbone.visual_tokenizer = tokenizer_for(dim=16)


@pytest.mark.parametrize("discrete", [False, True])
def test_a_tape_stands_in_for_the_tower_of_the_same_pictures(tiny_backbone, examples, discrete):
    backbone = with_tokens(tiny_backbone, learned, discrete=discrete)
    backbone.parts["vision_tower"].requires_grad_(False)
    tokens, tape = encoded(backbone, examples), []
    features = backbone.features(tokens, tape=tape)
    hidden = backbone.hidden(tokens, features=features)
    assert torch.equal(hidden, backbone.hidden(tokens)) and len(tape) == 1
    blank = replace(tokens, vision={"pixel_values": torch.zeros_like(tokens.vision["pixel_values"])})
    assert torch.equal(backbone.hidden(blank, features=backbone.features(blank, tape=tape)), hidden)
    assert not torch.equal(backbone.hidden(blank), hidden)


def test_sequences_are_packed_as_in_the_official_code(golden):
    """Start, kept rows, end, then the prompt; all padding stands on the left."""
    found = 0
    for case in golden("adapters_tokenizer/lavit_left_pad_packing")["cases"]:
        given, wanted = tensors(case["inputs"]), tensors(case["expected"])
        pictures = [tensor(each) for each in case["inputs"]["visual_embeds_per_image"]]
        prompts, shown = given["prompt_embeds_left_padded"], given["prompt_attention_mask"]
        num, width, dim = prompts.shape
        patches = max(map(len, pictures)) + 2  # of which some are dropped
        table = [given["image_start_embed"], given["image_end_embed"], *prompts.reshape(-1, dim)]  # ids from 1 on
        block = torch.tensor([1, *[0] * patches, 2]).expand(num, -1)
        said = 3 + torch.arange(num * width).view(num, width)
        input_ids = torch.cat([block, said], 1)
        keep = torch.zeros(num, patches, dtype=torch.bool)
        for row, picture in enumerate(pictures):
            keep[row, torch.randperm(patches)[: len(picture)]] = True
        tokens = Tokens(
            input_ids=input_ids,
            attention_mask=torch.cat([torch.ones_like(block), shown], 1),
            labels=torch.full_like(input_ids, IGNORE),
            image_mask=input_ids == 0,
            vision={},
            num_images=torch.ones(num, dtype=torch.long),
        )
        short, _ = dynamic.shortened(tokens, dynamic.Reading(None, keep, features=pictures), 0, side="left")
        embeds = torch.stack([torch.zeros(dim), *table])[short.input_ids]
        embeds = embeds.masked_scatter(short.image_mask[..., None], torch.cat(pictures))
        there = wanted["attention_mask"].bool()
        for row in range(num):  # the official code may leave padding amid a row
            ours = embeds[row][short.attention_mask[row].bool()]
            torch.testing.assert_close(ours, wanted["inputs_embeds"][row][there[row]], rtol=0, atol=0)
            assert short.attention_mask[row, -len(ours) :].all()
            found += 1
    assert found == 2


HALVES = ([0], [1, 2])
"""The conversations of each process."""


def parallel(rank, path, folder):
    """Gradients of two processes, each with a part of the batch, averaged by DistributedDataParallel."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    loss = Likelihood(path)
    gradients(DistributedDataParallel(loss), loss, HALVES[rank])
    distributed.barrier()  # who ends first takes the connection with it
    return {name: weight.grad for name, weight in loss.named_parameters() if weight.grad is not None}


class Likelihood(nn.Module):
    """The summed loss of a backbone whose merger for the language model, projector and language model train."""

    def __init__(self, path):
        super().__init__()
        self.backbone = with_tokens(Backbone(str(path)))
        self.backbone.parts["vision_tower"].requires_grad_(False)
        self.backbone.visual_tokenizer.requires_grad_(False)
        self.backbone.visual_tokenizer.input_merger.requires_grad_(True)

    def forward(self, tokens):
        kept = tokens.labels[:, 1:] != IGNORE
        logits = self.backbone.head(self.backbone.label_states(tokens))
        return nn.functional.cross_entropy(logits, tokens.labels[:, 1:][kept], reduction="sum")


def gradients(module, loss, rows):
    split = Scenes(num_train=64).examples("train")
    tokens = encoded(loss.backbone, [split[index] for index in range(3)])
    module(tokens.select(torch.tensor(rows))).backward()


def test_data_parallel_training_is_that_of_one_process(tiny_path, tmp_path):
    preload()
    one, other = run_children(parallel, [(rank, tiny_path, tmp_path) for rank in range(2)])
    alone = Likelihood(tiny_path)
    gradients(alone, alone, [0, 1, 2])
    wanted = {name: weight.grad for name, weight in alone.named_parameters() if weight.grad is not None}
    assert one.keys() == wanted.keys() and any("input_merger" in name for name in one)
    for name, grad in wanted.items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(2 * one[name], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max() + 1))
