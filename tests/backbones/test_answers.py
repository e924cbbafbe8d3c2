"""Two answers in one sequence: the numbers of two sequences, in several families; pictures are encoded once."""

from dataclasses import replace

import pytest
import torch
from families import CONFIGS, IMAGE, PATCHES, VOCABULARY, Bare, make, pair, sequences
from torch import nn

from alignlab.backbones import Backbone
from alignlab.backbones.answers import apart
from alignlab.batch import Tokens, Turn
from alignlab.data import Scenes
from alignlab.functional import sequence_logps

# Parts of the prompts of these look at what comes after them, or answers would be too far from their prompt.
APART = ("Gemma3", "PaliGemma", "Mistral, sliding")


def whole_logps(backbone, tokens):
    """By the plain model, from the logits of all positions."""
    logits = backbone.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **tokens.vision).logits
    return sequence_logps(logits, tokens.labels)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_logps_and_their_gradients_are_those_of_whole_passes(family, direct, side, attention):
    backbone = make(family, attention=attention).eval()
    chosen, rejected, prompts = pair(backbone, side=side, direct=direct)
    answers = backbone.answers(chosen, rejected, prompts)
    assert len(answers.sequences) == (2 if family in APART else 1)
    assert answers.lengths.tolist() == [[3, 1, 1], [1, 3, 0]]
    logps = backbone.answer_logps(answers, features=backbone.features(chosen))
    expected = torch.stack([whole_logps(backbone, tokens) for tokens in (chosen, rejected)])
    torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)
    assert logps[1, 2] == 0 and (logps.flatten()[:-1] < -0.1).all()
    # A weighted sum, so that no two answers could be taken for each other.
    weights = torch.arange(1.0, 7.0).view(2, 3)
    parameters = list(backbone.model.parameters())
    found, wanted = (
        torch.autograd.grad((weights * each).sum(), parameters, allow_unused=True) for each in (logps, expected)
    )
    scale = max(gradient.abs().max() for gradient in wanted if gradient is not None)
    for one, other in zip(found, wanted, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * float(scale))


@torch.no_grad()
def test_prompt_and_pictures_are_there_once():
    backbone = make("Llama").eval()
    chosen, rejected, prompts = pair(backbone)
    (joint,) = backbone.answers(chosen, rejected, prompts).sequences
    assert joint.input_ids.shape == (3, max(8 + 4, 10 + 4, 3 + 1))
    assert joint.input_ids[0].tolist() == [5, 6, *[IMAGE] * PATCHES, 7, 8, 9, 10, 11, 12, 0, 0]
    assert joint.vision["position_ids"][0, :12].tolist() == [*range(11), 8]
    assert int(joint.image_mask.sum()) == int(chosen.image_mask.sum()) == 3 * PATCHES
    assert len(joint.vision["pixel_values"]) == 3


@torch.no_grad()
def test_the_rejected_answer_does_not_see_the_chosen_one_nor_padding():
    backbone = make("Llama").eval()
    usual = ([9, 10, 11], [12, 13])
    logps = []
    for answers in (usual, ([30, 31, 32], [12, 13]), (list(range(20, 30)), [12, 13])):
        given = backbone.answers(*pair(backbone, answers=(answers, ([21], [22]), ([33], [34]))))
        logps.append(backbone.answer_logps(given))
    for other in logps[1:]:
        torch.testing.assert_close(other[1], logps[0][1])
        torch.testing.assert_close(other[:, 1:], logps[0][:, 1:])
        assert not torch.isclose(other[0, 0], logps[0][0, 0])


@torch.no_grad()
def test_other_prompts_and_pictures_in_answers_are_kept_apart():
    backbone = make("Llama").eval()
    chosen, rejected, prompts = pair(backbone)
    changed = rejected.input_ids.clone()
    changed[0, 0] = 6
    assert len(backbone.answers(chosen, replace(rejected, input_ids=changed), prompts).sequences) == 2
    assert len(backbone.answers(chosen, rejected, prompts - prompts).sequences) == 2  # nothing is prompted
    earlier = prompts - torch.tensor([0, PATCHES, 0])  # the second picture belongs to the answers
    answers = backbone.answers(chosen, rejected, earlier)
    assert len(answers.sequences) == 2 and answers.lengths[0].tolist() == [3, 1 + PATCHES, 1]


def without_masks(decoder):
    """Let a decoder's layers be given no mask, whatever it is given itself."""
    for layer in decoder.layers:
        layer.register_forward_pre_hook(
            lambda module, arguments, named: (arguments, {**named, "attention_mask": None}), with_kwargs=True
        )


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_does_not_heed_the_mask_is_found_out(dtype):
    examples = [Scenes(num_train=4).examples("train")[index] for index in range(4)]
    for heeds in (True, False):
        backbone = Backbone("scenes-vlm", dtype=dtype)
        if not heeds:
            without_masks(backbone.model.get_decoder())
        batch = backbone.encoder.batch(examples, ("conversation", "rejected"))
        answers = backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
        assert len(answers.sequences) == (1 if heeds else 2)
    flash = make("Llama").eval()
    flash.model.get_decoder().config._attn_implementation = "flash_attention_2"
    assert len(flash.answers(*pair(flash)).sequences) == 2


@torch.no_grad()
def test_finding_out_draws_no_random_number_and_is_done_once():
    backbone = make("Llama").train()
    calls = []
    backbone.model.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    for layer in backbone.model.get_decoder().layers:
        layer.self_attn.attention_dropout = 0.5
    state = torch.get_rng_state()
    for _ in range(3):
        backbone.answers(*pair(backbone))
    assert torch.equal(torch.get_rng_state(), state) and len(calls) == 2


@torch.no_grad()
def test_pictures_that_are_looked_at_both_ways_are_found_out_by_the_masks():
    for family, shown, texts in (("Gemma3", 2, 1), ("PaliGemma", 2, 2), ("Qwen3-VL", 1, 1)):
        backbone = make(family).eval()
        assert len(backbone.answers(*pair(backbone)).sequences) == shown
        text = sequences(backbone, text_only=True)
        other = replace(text, input_ids=text.input_ids.where(text.labels == -100, VOCABULARY - 1))
        assert len(backbone.answers(text, other, torch.tensor([3])).sequences) == texts, family


@torch.no_grad()
def test_what_is_cut_has_nothing_to_score():
    backbone = make("Llama").eval()
    chosen, rejected, prompts = pair(backbone)

    def cut(tokens, length):
        there = torch.arange(tokens.input_ids.shape[1]) < length
        ids, mask = tokens.input_ids * there, tokens.attention_mask * there
        return replace(tokens, input_ids=ids, attention_mask=mask)

    sides = cut(chosen, 10), cut(rejected, 10)  # of the second row, the prompt alone is left
    answers = backbone.answers(*sides, prompts)
    assert answers.lengths.tolist() == [[2, 0, 1], [1, 0, 0]]
    logps = backbone.answer_logps(answers)
    torch.testing.assert_close(logps, backbone.answer_logps(apart(*sides, prompts)), rtol=1e-4, atol=1e-4)
    assert (logps[answers.lengths == 0] == 0).all()
    nothing = backbone.answers(*(sides[0].select(torch.tensor([1])),) * 2, prompts[1:2])
    assert torch.equal(backbone.answer_logps(nothing), torch.zeros(2, 1))


@torch.no_grad()
def test_the_encoder_processes_a_prompt_once_and_says_where_answers_begin(tiny_backbone):
    encoder = tiny_backbone.encoder
    data = Scenes(num_train=8, tasks=("caption", "question"))
    examples = [data.examples("train")[index] for index in range(8)]
    batch = encoder.batch(examples, ("conversation", "rejected"))
    both = {"conversation": [(e.id, e.conversation) for e in examples]}
    both["rejected"] = [(e.id, (*e.conversation[:-1], Turn("assistant", e.rejected))) for e in examples]
    for name, conversations in both.items():
        whole, found = encoder.conversations(conversations), getattr(batch, name)
        for part in ("input_ids", "attention_mask", "labels", "image_mask", "num_images"):
            assert torch.equal(getattr(found, part), getattr(whole, part)), (name, part)
        assert torch.equal(found.vision["pixel_values"], whole.vision["pixel_values"])
        assert (found.labels != -100).sum(1).tolist() == batch.answer_lengths[
            "conversation rejected".split().index(name)
        ].tolist()
    starts = (batch.conversation.labels != -100).long().argmax(1)
    assert torch.equal(batch.prompt_lengths, starts)
    assert batch.rejected.vision["pixel_values"] is batch.conversation.vision["pixel_values"]


@torch.no_grad()
def test_the_tower_runs_once_for_two_projectors(tiny_backbone):
    tower = tiny_backbone.model.get_encoder(modality="image")
    calls = []
    next(tower.children()).register_forward_hook(lambda *_: calls.append(1))
    tokens = tiny_backbone.encoder.batch([Scenes(num_train=1).examples("train")[0]], ("conversation",)).conversation
    tower.requires_grad_(False)
    tape = []
    first = tiny_backbone.features(tokens, tape=tape)
    for parameter in tiny_backbone.parts["projector"].parameters():
        parameter.data.mul_(2.0)
    second, alone = tiny_backbone.features(tokens, tape=tape), tiny_backbone.features(tokens)
    assert len(calls) == 2  # the first, and the one without a tape
    torch.testing.assert_close(second.pooler_output, alone.pooler_output, rtol=0, atol=0)
    assert not torch.allclose(first.pooler_output[0], second.pooler_output[0])
    assert "forward" not in vars(tower)
    tower.requires_grad_(True)  # one that trains is no tower of the reference
    unused: list = []
    tiny_backbone.features(tokens, tape=unused)
    assert unused == []


def test_it_is_the_official_concatenated_forward(golden):
    (case,) = golden("preference/seva_concatenated_forward")["cases"]
    given, expected = case["inputs"], case["expected"]
    embeddings, head = torch.tensor(given["embed_tokens"]), torch.tensor(given["lm_head"])
    pictures = torch.tensor(given["image_features"])  # (B, N, D)

    class Toy(Bare):
        """The recorded language model: a state is the hyperbolic tangent of an embedding."""

        def __init__(self):
            nn.Module.__init__(self)

        def hidden(self, tokens, *, features=None):
            states = embeddings[tokens.input_ids.clamp(min=0)]
            states[tokens.image_mask] = pictures.flatten(0, 1)
            return states.tanh()

        def _wide_logits(self, states):
            return states @ head.T

    def expanded(ids, labels, mask):
        """The tokens with the patches in place of their placeholder."""
        rows = []
        for row, its_labels, there in zip(ids, labels, mask, strict=True):
            kept = [(token, label) for token, label, real in zip(row, its_labels, there, strict=True) if real]
            place = next(i for i, (token, _) in enumerate(kept) if token == -200)
            rows.append(kept[:place] + [(-200, -100)] * pictures.shape[1] + kept[place + 1 :])
        width = max(map(len, rows))
        padded = torch.tensor([row + [(0, -100)] * (width - len(row)) for row in rows])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return Tokens(padded[..., 0], real, padded[..., 1], padded[..., 0] == -200, {}, torch.ones(len(rows)))

    sides = [
        expanded(*(given[f"{side}_{part}"] for part in ("input_ids", "labels", "attention_mask")))
        for side in ("chosen", "reject")
    ]
    prompts = (sides[0].labels != -100).long().argmax(1)
    logps = Toy().answer_logps(apart(*sides, prompts))
    for side, each in zip(("chosen", "rejected"), logps, strict=True):
        torch.testing.assert_close(each, torch.tensor(expected[f"{side}_logps"]))


@torch.no_grad()
def test_sequences_of_texts_alone():
    backbone = make("Llama").eval()
    text = sequences(backbone, text_only=True)
    other = replace(text, input_ids=text.input_ids.where(text.labels == -100, VOCABULARY - 1))
    answers = backbone.answers(text, other, torch.tensor([3]))
    logps = backbone.answer_logps(answers)
    assert len(answers.sequences) == 1 and backbone.features(text) is None
    torch.testing.assert_close(logps[0], whole_logps(backbone, text))


@torch.no_grad()
def test_half_precision_loses_no_more_than_its_states():
    examples = [Scenes(num_train=8, tasks=("caption",)).examples("train")[index] for index in range(8)]
    logps = {}
    for dtype in ("float32", "bfloat16"):
        backbone = Backbone("scenes-vlm", dtype=dtype).eval()
        batch = backbone.encoder.batch(examples, ("conversation", "rejected"))
        answers = backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
        logps[dtype] = backbone.answer_logps(answers)
        assert logps[dtype].dtype == torch.float32
        states = backbone.hidden(answers.sequences[0])[answers.logits_at[0]]
        exact = torch.nn.functional.linear(states.double(), backbone.model.lm_head.weight.double()).log_softmax(-1)
        expected = answers.sums(exact[answers.states, answers.targets])
        torch.testing.assert_close(logps[dtype].double(), expected, rtol=1e-5, atol=1e-4)
    assert (logps["float32"] - logps["bfloat16"]).abs().max() > 1e-3  # what the states themselves have lost
