"""Where PLoRA's masks come from: ids, a keyword, a context; in passes, with caches, in generation."""

import copy

import pytest
import torch
from families import CONFIGS, IMAGE, make, pair, sequences
from test_plora_method import adapted, config, trained

from alignlab import Backbone, InputError
from alignlab.adapters import PLoraModel
from alignlab.data import Scenes

FAMILIES = [name for name in CONFIGS if name != "Mistral, sliding"]


@pytest.fixture
def backbone():
    backbone = make("Llama")
    backbone.model.eval()
    return backbone


def counting(backbone):
    """How many rows the branch of one layer gets, a number for each time it is asked."""
    seen, layer = [], backbone.model.get_decoder().layers[0].mlp.up_proj
    layer.lora_A["a"].register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    return seen


def inputs_of(tokens):
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **tokens.vision}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_families_have_their_placeholders_found(family, side):
    backbone = make(family)
    backbone.model.eval()
    tokens = sequences(backbone, side=side)
    real = tokens.attention_mask.bool()
    base = backbone.hidden(tokens)
    adapted(backbone)
    seen = counting(backbone)
    found = backbone.hidden(tokens)
    assert seen == [tokens.image_mask.sum()]
    assert torch.equal(found[2][real[2]], base[2][real[2]])  # of text alone
    assert not torch.allclose(found[0][real[0]], base[0][real[0]])
    with torch.no_grad():
        assert torch.equal(backbone.model(**inputs_of(tokens)).logits, backbone(tokens).logits)
    assert seen == [tokens.image_mask.sum()] * 3 and backbone.model._plora_tokens.now is None


def test_two_answers_to_a_prompt_are_those_of_their_sequences(backbone):
    adapted(backbone)
    chosen, rejected, lengths = pair(backbone, side="right")
    joined = backbone.answers(chosen, rejected, lengths)
    assert len(joined.sequences) == 1
    alone = [backbone(tokens).logits.log_softmax(-1) for tokens in (chosen, rejected)]
    expected = torch.zeros(2, 3)
    for side, (tokens, logps) in enumerate(zip((chosen, rejected), alone, strict=True)):
        for row, at in (tokens.labels >= 0).nonzero().tolist():
            expected[side, row] += logps[row, at - 1, tokens.input_ids[row, at]].detach()
    torch.testing.assert_close(backbone.answer_logps(joined), expected, rtol=1e-4, atol=1e-4)


def test_features_encoded_before_give_the_same(backbone):
    adapted(backbone)
    tokens = sequences(backbone)
    assert torch.equal(backbone.hidden(tokens, features=backbone.features(tokens)), backbone.hidden(tokens))


def test_masks_by_keyword_by_context_and_by_ids_agree(backbone):
    tuner, tokens = adapted(backbone), sequences(backbone)
    model, mask = backbone.model, tokens.image_mask
    named = inputs_of(tokens)
    expected = model(**named).logits
    assert torch.equal(model(**named, visual_token_mask=mask).logits, expected)
    assert torch.equal(tuner(**named, visual_token_mask=mask).logits, expected)
    by_place = {key: value for key, value in named.items() if key != "input_ids"}
    assert torch.equal(model(tokens.input_ids, **by_place).logits, expected)
    hidden = model.base_model(**named, visual_token_mask=~mask).last_hidden_state
    assert not torch.allclose(hidden, backbone.hidden(tokens))
    with tuner.visual_tokens(~mask):
        assert torch.equal(backbone.hidden(tokens), hidden)
        with tuner.visual_tokens(mask):
            assert torch.equal(model(**named).logits, expected)
            both = model(**named, visual_token_mask=~mask).logits
        assert torch.equal(both, model(**named).logits)
    assert torch.equal(model(**named).logits, expected)
    embeddings = model.get_input_embeddings()(tokens.input_ids)
    rest = {"attention_mask": tokens.attention_mask, "inputs_embeds": embeddings}
    given = model(**rest, visual_token_mask=mask).logits
    with tuner.visual_tokens(mask):
        assert torch.equal(model(**rest).logits, given)


def test_without_a_mask_there_is_no_guessing(backbone):
    tuner, tokens = adapted(backbone), sequences(backbone)
    model = backbone.model
    embeddings = model.get_input_embeddings()(tokens.input_ids)
    for call in (
        lambda: model(inputs_embeds=embeddings), lambda: model.get_decoder()(inputs_embeds=embeddings),
        lambda: model.get_decoder().layers[0].mlp(embeddings),
    ):  # fmt: skip
        with pytest.raises(InputError, match="needs to know which tokens are visual, but.*visual_token_mask"):
            call()
    with torch.no_grad(), pytest.raises(InputError, match=r"mask \(B, T\) bool of the 3 x 16 tokens, got \(3, 15\)"):
        model(**inputs_of(tokens), visual_token_mask=tokens.image_mask[:, 1:])
    with pytest.raises(InputError, match=r"mask \(B, T\) bool, got \(3, 16\) torch.int64"):
        with tuner.visual_tokens(tokens.image_mask.long()):
            pass
    with tuner.visual_tokens(tokens.image_mask[:2]), pytest.raises(InputError, match="each of 3 sequences, got 2"):
        model(**inputs_of(tokens))
    model(**inputs_of(tokens))  # what failed left nothing behind
    with pytest.raises(InputError, match="needs to know"):
        model(inputs_embeds=embeddings)
    tuner.disable_adapter_layers()
    model(inputs_embeds=embeddings)


def test_a_layer_that_sees_other_tokens_says_so(backbone):
    adapted(backbone)
    layer, tokens = backbone.model.get_decoder().layers[1].mlp, sequences(backbone)
    forward = layer.forward
    layer.forward = lambda x: forward(x[:, 1:])
    with pytest.raises(InputError, match=r"layers.1.mlp.gate_proj sees 45 tokens where the model was given 3 x 16"):
        backbone.hidden(tokens)


def interrupted(backbone, call, error=KeyboardInterrupt):
    """Make a call, which an error ends in the second layer."""

    def interrupt(*_):
        raise error

    hook = backbone.model.get_decoder().layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        call()
    hook.remove()


def by_ids(model, tuner, tokens, mask):
    model(**inputs_of(tokens))


def by_keyword(model, tuner, tokens, mask):
    model(**inputs_of(tokens), visual_token_mask=mask)


def by_context(model, tuner, tokens, mask):
    with tuner.visual_tokens(mask):
        model(**inputs_of(tokens))


def by_embeddings(model, tuner, tokens, mask):
    embeddings = model.get_input_embeddings()(tokens.input_ids)
    model(inputs_embeds=embeddings, visual_token_mask=mask)


@pytest.mark.parametrize("start", [lambda each: each.model, lambda each: each.model.base_model])
@pytest.mark.parametrize("then", [lambda each: each.model, lambda each: each.model.base_model])
@pytest.mark.parametrize("way", [by_ids, by_keyword, by_context, by_embeddings])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_pass_is_forgotten(backbone, start, then, way, error):
    tuner, tokens = adapted(backbone), sequences(backbone)
    named, tokens_of_text = inputs_of(tokens), inputs_of(sequences(backbone, text_only=True))
    expected = [then(backbone)(**each)[0] for each in (named, tokens_of_text)]

    def again():
        interrupted(backbone, lambda: way(start(backbone), tuner, tokens, ~tokens.image_mask), error)
        assert (backbone.model._plora_tokens.now is None) == (error is RuntimeError)  # of the other nobody told

    for inputs, logits in zip((named, tokens_of_text), expected, strict=True):  # the first has the very same tensors
        again()
        assert torch.equal(then(backbone)(**inputs)[0], logits)
        assert backbone.model._plora_tokens.now is None
    again()
    with pytest.raises(InputError, match="needs to know"):
        then(backbone)(inputs_embeds=backbone.model.get_input_embeddings()(tokens.input_ids))


def test_a_copy_knows_nothing_of_an_interrupted_pass(backbone):
    adapted(backbone)
    tokens = sequences(backbone)
    interrupted(backbone, lambda: backbone.model(**inputs_of(tokens)))
    twin = copy.deepcopy(backbone)
    assert twin.model._plora_tokens.now is None and torch.equal(twin.hidden(tokens), backbone.hidden(tokens))


WAYS = {
    "greedy": {}, "beams": {"num_beams": 3}, "several": {"num_beams": 2, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_generation_is_that_of_whole_passes(backbone, way):
    tuner = adapted(backbone)
    tokens = sequences(backbone, side="left")
    seen = counting(backbone)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": 999} | WAYS[way]
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    torch.manual_seed(0)
    found = backbone.model.generate(**inputs_of(tokens), **settings)
    times = len(found.logits[0]) // 3
    assert seen == [times * tokens.image_mask.sum()]  # nothing in the steps that follow
    assert not (found.sequences[:, tokens.input_ids.shape[1] :] == IMAGE).any()
    with tuner.visual_tokens(tokens.image_mask):
        torch.manual_seed(0)
        again = backbone.model.generate(**inputs_of(tokens), **settings)
    assert torch.equal(again.sequences, found.sequences)
    if settings.get("num_beams", 1) == 1:  # beams change places between steps
        check_logits(backbone, tokens, found, times)


def check_logits(backbone, tokens, found, times):
    """The logits of the steps are those of one pass over what came out."""
    ids = found.sequences[:, :-1]
    attention = tokens.attention_mask.repeat_interleave(times, 0)
    attention = torch.cat([attention, attention.new_ones(len(ids), ids.shape[1] - attention.shape[1])], 1)
    pictures = tokens.vision["pixel_values"].split([1, 2])
    pictures = torch.cat([each for each in pictures for _ in range(times)])
    with torch.no_grad():
        logits = backbone.model(input_ids=ids, attention_mask=attention, pixel_values=pictures).logits
    steps = torch.stack(found.logits, 1)
    torch.testing.assert_close(logits[:, -steps.shape[1] :], steps, rtol=1e-3, atol=1e-4)


def test_a_chunk_behind_a_cache_has_its_part_of_the_mask(backbone):
    tuner = adapted(backbone)
    ids = torch.arange(5, 21).repeat(2, 1)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3:12] = mask[1, 8:10] = True
    with torch.no_grad(), tuner.visual_tokens(mask):
        whole = backbone.model(input_ids=ids).logits
        cache, parts = None, []
        for part in ids.split([6, 5, 1, 4], 1):
            output = backbone.model(input_ids=part, past_key_values=cache, use_cache=True)
            cache, parts = output.past_key_values, [*parts, output.logits]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not torch.allclose(backbone.model(input_ids=ids).logits, whole)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_from_embeddings_takes_the_context(backbone, beams):
    tuner, tokens = adapted(backbone), sequences(backbone, side="left")
    ways = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": 999}
    expected = backbone.model.generate(**inputs_of(tokens), **ways)[:, tokens.input_ids.shape[1] :]
    seen = {}
    decoder = backbone.model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, named: seen.update(named), with_kwargs=True)
    backbone.model(**inputs_of(tokens))
    hook.remove()
    with tuner.visual_tokens(tokens.image_mask):
        found = backbone.model.generate(
            inputs_embeds=seen["inputs_embeds"].detach(), attention_mask=tokens.attention_mask, **ways
        )
    assert torch.equal(found, expected)


def test_placeholders_are_not_generated_until_unloaded(backbone):
    tuner = adapted(backbone)
    head, config = backbone.model.lm_head.weight, backbone.model.generation_config
    with torch.no_grad():
        head[IMAGE] = 1e3 * head[5]
        head[6] = -2e3 * head[5]
    tokens = sequences(backbone, side="left")
    ways = {"max_new_tokens": 6, "do_sample": True, "pad_token_id": 0, "eos_token_id": 999}

    def generated(each):
        return each.model.generate(**inputs_of(tokens), **ways)[:, 16:]

    for each in (backbone, copy.deepcopy(backbone)):
        assert not (generated(each) == IMAGE).any() and (generated(each) == 6).any()
    config.suppress_tokens = [6]
    assert not torch.isin(generated(backbone), torch.tensor([6, IMAGE])).any()
    assert config.suppress_tokens == [6]
    tuner.unload()
    assert (generated(backbone) == IMAGE).any()


def test_what_is_saved_suppresses_nothing(backbone, tmp_path):
    adapted(backbone)
    before = backbone.model.generation_config.to_dict()
    inputs = inputs_of(sequences(backbone, side="left"))
    backbone.model.generate(**inputs, max_new_tokens=1, pad_token_id=0)
    interrupted(backbone, lambda: backbone.model.generate(**inputs, max_new_tokens=1, pad_token_id=0))
    assert backbone.model.generation_config.to_dict() == before
    backbone.model.generation_config.save_pretrained(tmp_path)
    assert "suppress_tokens" not in (tmp_path / "generation_config.json").read_text()


@pytest.mark.parametrize("path", ["scenes-vlm", "scenes-parts"])
def test_packaged_checkpoints_answer_as_their_base_on_text_and_at_first(path):
    backbone = Backbone(path)
    backbone.eval()
    split = Scenes(num_train=8, num_val=8).examples("val")
    prompts = backbone.encoder.prompts([split[index].conversation[:1] for index in range(4)])
    before, hidden = backbone.generate_ids(prompts, max_new_tokens=8), backbone.hidden(prompts)
    PLoraModel(backbone.model, {"visual": config()}, "visual")
    backbone.eval()
    assert prompts.image_mask.any() and torch.equal(backbone.generate_ids(prompts, max_new_tokens=8), before)
    trained(backbone.model)
    assert not torch.allclose(backbone.hidden(prompts), hidden)
