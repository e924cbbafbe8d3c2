from dataclasses import replace

import pytest
import torch
from visual import CODES, PATCHES, learned, lengthened, prompts_of, tokenizer_for, with_tokens

from alignlab import InputError
from alignlab.backbones.tiny import make_exact
from alignlab.batch import IGNORE, Turn


@pytest.fixture
def exact(tiny_backbone64):
    make_exact(tiny_backbone64.model)
    return tiny_backbone64


def asked(backbone):
    """Prompts of different lengths."""
    turns = [(Turn("user", (text,)),) for text in ("draw", "a red circle above a small blue square", "hello")]
    return backbone.encoder.prompts(turns)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pictures_are_answers_to_prompts(tiny_backbone, side):
    backbone = with_tokens(tiny_backbone)
    backbone.encoder.padding_side = side
    prompts, visual = asked(backbone), backbone.encoder.visual
    codes, counts = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([2, 1, 3])
    tokens = backbone.picture_sequences(prompts, codes, counts, drop=torch.tensor([False, False, True]))
    first = visual.first
    pictures = [[first + 3, first + 1], [first + 4], [first + 1, first + 5, first + 9]]
    for row, picture in enumerate(pictures):
        said = prompts.input_ids[row][prompts.attention_mask[row].bool()].tolist() if row < 2 else []
        real = tokens.attention_mask[row].bool()
        assert tokens.input_ids[row][real].tolist() == [*said, visual.start, *picture, visual.end]
        unsaid = [IGNORE] * (len(said) + 1)
        assert tokens.labels[row][real].tolist() == [*unsaid, *picture, visual.end]
        assert (tokens.labels[row][~real] == IGNORE).all()
        assert (tokens.input_ids[row][~real] == backbone.encoder.pad_id).all()
        padding = real.long().argmin() if side == "right" else real.long().argmax()
        assert real.all() or (real[:padding].all() and not real[padding:].any()) == (side == "right")
    assert not tokens.image_mask.any() and tokens.attention_mask.sum(1).max() == tokens.input_ids.shape[1]
    assert backbone(tokens).logits.isfinite().all()


def test_a_prompt_with_a_picture_keeps_it_and_is_not_dropped(tiny_backbone, examples):
    backbone = with_tokens(tiny_backbone, learned)
    prompts = prompts_of(backbone, examples)
    codes, counts = torch.tensor([0, 1, 2]), torch.tensor([1, 1, 1])
    keep_all = torch.zeros(3, dtype=torch.bool)
    tokens = backbone.picture_sequences(prompts, codes, counts, drop=keep_all)
    assert torch.equal(tokens.image_mask.sum(1), prompts.image_mask.sum(1))
    found, expected = backbone.hidden(tokens), backbone.hidden(prompts)
    start = (tokens.input_ids == backbone.encoder.visual.start).long()
    last = start.shape[1] - 1 - start.flip(1).argmax(1)  # what stands before the answer is the prompt
    torch.testing.assert_close(found[torch.arange(3), last - 1], expected[:, -1], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="cannot drop a prompt that has pictures"):
        backbone.picture_sequences(prompts, codes, counts, drop=~keep_all)
    with pytest.raises(InputError, match="3 prompts, 2 counts of 2 codes together, and 3 codes"):
        backbone.picture_sequences(prompts, codes, counts[:2], drop=keep_all)


def by_hand(backbone, prompts, guidance, shortest, longest):
    """The likeliest codes of each prompt alone, all computed anew for each."""
    visual, drawn = backbone.encoder.visual, []
    ids = torch.arange(backbone.head.weight.shape[0])
    allowed = visual.among(ids) | (ids == visual.end)
    start = torch.tensor(visual.start)
    for row in range(len(prompts)):
        tokens = lengthened(prompts.select(torch.tensor([row])), start)
        free = lengthened(prompts.select(torch.tensor([row])), start)
        free = replace(
            free.select(torch.tensor([0])),
            input_ids=free.input_ids[:, -1:],
            attention_mask=free.attention_mask[:, -1:],
            labels=free.labels[:, -1:],
            image_mask=free.image_mask[:, -1:],
            vision={},
            num_images=torch.zeros(1, dtype=torch.long),
        )
        codes = []
        while len(codes) < longest:
            given, alone = (backbone(each).logits[0, -1].log_softmax(-1) for each in (tokens, free))
            scores = (alone + guidance * (given - alone)).masked_fill(~allowed, -torch.inf)
            if len(codes) < shortest:
                scores[visual.end] = -torch.inf
            best = scores.argmax()
            if best == visual.end:
                break
            codes.append(int(best) - visual.first)
            tokens, free = lengthened(tokens, best), lengthened(free, best)
        drawn.append(codes)
    return drawn


@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
def test_the_likeliest_codes_are_those_of_a_loop_without_cache(exact, examples, guidance, pictures):
    backbone = with_tokens(exact, learned)
    with torch.no_grad():
        backbone.head.weight[backbone.encoder.visual.end] *= 2
        backbone.model.get_input_embeddings().weight *= 5
    prompts = prompts_of(backbone, examples) if pictures else asked(backbone)
    drawing = backbone.draw(prompts, guidance=guidance, temperature=0, min_new_tokens=2, max_new_tokens=8)
    expected = by_hand(backbone, prompts, guidance, 2, 8)
    assert [codes.tolist() for codes in drawing.codes.split(drawing.counts.tolist())] == expected
    features = backbone.visual_tokenizer.decode_codes(drawing.codes, drawing.counts)
    assert torch.equal(drawing.pixels, backbone.visual_tokenizer.pixels(features))


def test_guidance_follows_the_prompt(exact):
    """With 0 every prompt has the picture of start alone; 1 and 4 are other pictures."""
    backbone = with_tokens(exact)
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight *= 5
    drawn = {w: backbone.draw(asked(backbone), guidance=w, temperature=0, max_new_tokens=8) for w in (0.0, 1.0, 4.0)}
    rows = drawn[0.0].codes.split(drawn[0.0].counts.tolist())
    assert all(torch.equal(row, rows[0]) for row in rows)
    assert drawn[0.0].codes.tolist() != drawn[1.0].codes.tolist() != drawn[4.0].codes.tolist()


def test_samples_are_those_of_their_seed_and_leave_the_global_generator(tiny_backbone):
    backbone = with_tokens(tiny_backbone)
    state = torch.get_rng_state()
    first, again, other = (backbone.draw(asked(backbone), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.codes, again.codes) and torch.equal(first.counts, again.counts)
    assert torch.equal(first.pixels, again.pixels) and not torch.equal(first.codes, other.codes)
    assert len(first.counts) == 3 and first.counts.min() >= 1 and first.counts.max() <= PATCHES
    assert first.codes.min() >= 0 and first.codes.max() < CODES
    assert first.pixels.shape == (3, 3, 48, 48) and 0 <= first.pixels.min() <= first.pixels.max() <= 1
    torch.manual_seed(1)
    assert torch.equal(backbone.draw(asked(backbone)).codes, first.codes)


def test_samples_come_as_often_as_they_are_likely(tiny_backbone):
    """The first code of 1500 drawings of one prompt, against its probabilities; three standard deviations."""
    backbone = with_tokens(tiny_backbone)
    prompts = asked(backbone).select(torch.zeros(1500, dtype=torch.long))
    drawing = backbone.draw(prompts, guidance=2.0, max_new_tokens=1, seed=0)
    visual, one = backbone.encoder.visual, prompts.select(torch.tensor([0]))
    given = backbone(lengthened(one, torch.tensor(visual.start))).logits[0, -1].log_softmax(-1)
    start = torch.tensor([[visual.start]])
    alone = backbone.model(input_ids=start, attention_mask=torch.ones_like(start)).logits[0, -1].log_softmax(-1)
    scores = (alone + 2 * (given - alone))[visual.first : visual.first + CODES]
    likely = scores.softmax(-1)
    found = torch.bincount(drawing.codes, minlength=CODES) / 1500
    assert (found - likely).abs().max() < 3 * (0.25 / 1500) ** 0.5
    assert backbone.draw(prompts, guidance=2.0, top_k=1, max_new_tokens=1).codes.unique().tolist() == [likely.argmax()]


def test_what_cannot_be_drawn_is_refused(tiny_backbone):
    with pytest.raises(InputError, match="no visual tokenizer"):
        tiny_backbone.draw(asked(tiny_backbone))
    tiny_backbone.visual_tokenizer = tokenizer_for()
    with pytest.raises(InputError, match="add_visual_tokens"):
        tiny_backbone.draw(asked(tiny_backbone))
    tiny_backbone.add_visual_tokens()
    with pytest.raises(InputError, match="1 <= min_new_tokens <= max_new_tokens <= 36"):
        tiny_backbone.draw(asked(tiny_backbone), max_new_tokens=37)
    with pytest.raises(InputError, match="0 or more"):
        tiny_backbone.draw(asked(tiny_backbone), temperature=-1.0)
    tiny_backbone.visual_tokenizer.pixel_decoder = None
    with pytest.raises(InputError, match="pixel decoder"):
        tiny_backbone.draw(asked(tiny_backbone))


def test_how_the_model_writes_texts_is_no_matter_to_what_it_draws(tiny_backbone):
    backbone = with_tokens(tiny_backbone)
    prompts, settings = asked(backbone), {"temperature": 0.0, "min_new_tokens": 8}
    before, config = backbone.draw(prompts, **settings), backbone.model.generation_config
    config.repetition_penalty, config.no_repeat_ngram_size = 50.0, 1
    after = backbone.draw(prompts, **settings)
    assert torch.equal(after.codes, before.codes) and torch.equal(after.counts, before.counts)
    assert backbone.model.generation_config is config
    assert len(before.codes.unique()) < len(before.codes) / 3  # they repeat, else the test says little
