from dataclasses import replace

import numpy as np
import pytest
import torch
from visual import DIM, PATCHES, encoded, learned, lengthened, prompts_of, tokenizer_for, with_tokens

from alignlab import InputError
from alignlab.backbones import dynamic
from alignlab.backbones.tiny import make_exact
from alignlab.batch import IGNORE
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
