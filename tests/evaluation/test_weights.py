"""TokenWeights against weights and scores that are worked out one token at a time from two dense passes."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from listed import Listed
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from visual import with_tokens

from alignlab.backbones import Backbone
from alignlab.batch import IGNORE, Example, Turn
from alignlab.data import Scenes
from alignlab.errors import InputError
from alignlab.evaluation import TokenWeights
from alignlab.evaluation.weights import answer_tokens, picture_gains, token_texts
from alignlab.functional import logit_gain


@pytest.fixture(scope="module")
def aligned() -> Backbone:
    return Backbone("scenes-vlm").eval()


@pytest.fixture(scope="module")
def noisy() -> list[Example]:
    """Captions with filler and wrong words, of which training alone has any."""
    return list(Scenes(num_train=12, tasks=("caption",), caption_noise=0.4, filler=0.4).examples("train"))


def picture(color="red"):
    return Image.new("RGB", (48, 48), color)


def chat(*texts, shown=1):
    """Questions and answers in turn, ``shown`` pictures in the first."""
    first, *rest = texts
    pictures = [picture(color) for color in ("red", "blue", "green")[:shown]]
    roles = ["assistant", "user"] * len(rest)
    return (Turn("user", (*pictures, first)), *(Turn(role, (text,)) for role, text in zip(roles, rest, strict=False)))


def dense_gains(backbone: Backbone, example: Example) -> list[float]:
    """The gains of one conversation's supervised tokens, from all logits of a pass over all positions."""
    tokens = backbone.encoder.conversations([(example.id, example.conversation)])
    length = tokens.input_ids.shape[1]
    given = {"input_ids": tokens.input_ids, "position_ids": torch.arange(length)[None], **tokens.vision}
    with torch.no_grad():
        seeing, blind = (
            backbone.model(attention_mask=mask, **given).logits
            for mask in (tokens.attention_mask, tokens.attention_mask * ~tokens.image_mask)
        )
    return logit_gain(seeing, blind, tokens.labels)[tokens.labels[:, 1:] != IGNORE].tolist()


def pooled(gains: list[float], low: float, high: float, reach: int) -> list[float]:
    clamped = [min(max(gain, low), high) for gain in gains]
    return [fmean(clamped[max(place - reach, 0) : place + reach + 1]) for place in range(len(clamped))]


@pytest.fixture(scope="module")
def found(aligned, noisy):
    return TokenWeights(low=0.5, high=4.0, batch_size=5)(aligned, Listed(noisy))


@pytest.fixture(scope="module")
def expected(aligned, noisy):
    """(gain, weight, role) of every token, by conversation; in the lab each word is a token, then one closes."""
    rows = []
    for example in noisy:
        gains = dense_gains(aligned, example)
        roles = [*example.roles, ""]
        rows.append(list(zip(gains, pooled(gains, 0.5, 4.0, 1), roles, strict=True)))
    return rows


class TestByHand:
    def test_weights_are_those_of_two_dense_passes(self, found, expected, noisy):
        for example, item, row in zip(noisy, found.items, expected, strict=True):
            assert [weight for _, weight in item["weights"]] == pytest.approx([w for _, w, _ in row], abs=1e-3)
            assert "".join(text for text, _ in item["weights"]) == item["output"] + " </s>"
            assert item["output"] == item["reference"] == example.conversation[-1].content[0]
            assert item["prompt"] == "describe the image ." and item["bounds"] == [0.5, 4.0]

    def test_scores_of_all_tokens(self, found, expected):
        tokens = [token for row in expected for token in row]
        gains, weights = [gain for gain, _, _ in tokens], sorted(weight for _, weight, _ in tokens)
        assert found.scores["gain"] == pytest.approx(fmean(gains), abs=1e-4)
        assert found.scores["mean_weight"] == pytest.approx(fmean(weights), abs=1e-4)
        assert found.scores["at_low"] == fmean(gain <= 0.5 for gain in gains) > 0
        assert found.scores["at_high"] == fmean(gain >= 4.0 for gain in gains) > 0
        for p in (10, 50, 90):
            nearest = weights[round(p / 100 * (len(weights) - 1))]
            assert found.scores[f"p{p}"] == pytest.approx(nearest, abs=1e-4)

    def test_scores_of_the_roles(self, found, expected):
        tokens = [token for row in expected for token in row]
        for role in ("visual", "filler", "contradictory"):
            for name, place in (("gain", 0), ("weight", 1)):
                of = [token[place] for token in tokens if token[2] == role]
                assert found.scores[f"{name}_{role}"] == pytest.approx(fmean(of), abs=1e-4)
        others = [gain for gain, _, role in tokens if role != "visual"]
        assert found.scores["gain_other"] == pytest.approx(fmean(others), abs=1e-4)

    def test_auroc_counts_pairs(self, found, expected):
        of = {role: [w for row in expected for _, w, r in row if r == role] for role in ("visual", "filler")}
        pairs = [(a, b) for a in of["visual"] for b in of["filler"]]
        won = fmean(0.5 if abs(a - b) < 1e-6 else float(a > b) for a, b in pairs)
        assert found.scores["auroc"] == pytest.approx(won, abs=1e-3)
        assert won > 0.6  # this start looks at its pictures

    def test_the_score_of_an_item_is_the_lead_of_its_visual_tokens(self, found, expected):
        for item, row in zip(found.items, expected, strict=True):
            visual, filler = ([w for _, w, r in row if r == role] for role in ("visual", "filler"))
            assert item["score"] == pytest.approx(fmean(visual) - fmean(filler) if filler else 0.0, abs=1e-4)


@pytest.mark.parametrize("bound", [0.1, 0.7, 1.7])  # whose means over a window differ by rounding
def test_equal_bounds_weigh_all_alike(aligned, noisy, bound):
    scores = TokenWeights(low=bound, high=bound)(aligned, Listed(noisy)).scores
    assert scores["auroc"] == 0.5
    for name in ("mean_weight", "p10", "p50", "p90", "weight_visual", "weight_filler", "weight_contradictory"):
        assert scores[name] == pytest.approx(bound, abs=1e-9)


def test_large_weights_keep_their_order(noisy):
    louder = Backbone("scenes-vlm")
    found = []
    for bound in (1e3, 1e5):
        found.append(TokenWeights(low=0.0, high=bound, window=1)(louder, Listed(noisy)).scores)
        with torch.no_grad():
            louder.model.get_output_embeddings().weight.mul_(100)
    assert found[1]["p90"] == pytest.approx(100 * found[0]["p90"], rel=1e-3) and found[1]["p90"] > 100
    assert found[1]["auroc"] == pytest.approx(found[0]["auroc"], abs=1e-6)


def test_a_wider_window_pools_more(aligned, noisy):
    gains = dense_gains(aligned, noisy[0])
    for window in (1, 5, 99):
        (item,) = TokenWeights(window=window)(aligned, Listed(noisy[:1])).items
        expected = pooled(gains, 1.0, 5.0, window // 2)
        assert [weight for _, weight in item["weights"]] == pytest.approx(expected, abs=1e-3)


def test_answers_of_one_conversation_are_weighed_together(aligned):
    turns = chat("what is it ?", "a red cross", "describe the image .", "a blue circle .")
    (item,) = TokenWeights()(aligned, Listed([Example("x", conversation=turns)])).items
    assert [text.strip() for text, _ in item["weights"]] == [*"a red cross </s> a blue circle . </s>".split()]
    assert [text for text, _ in item["weights"] if text.startswith("\n")] == ["\na"]
    assert (item["prompt"], item["output"]) == ("describe the image .", "a blue circle .")
    expected = pooled(dense_gains(aligned, Example("x", conversation=turns)), 1.0, 5.0, 1)
    assert [weight for _, weight in item["weights"]] == pytest.approx(expected, abs=1e-3)
    assert item["score"] == pytest.approx(fmean(expected), abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_several_pictures_and_none_in_one_batch(aligned, side):
    examples = [
        Example("two", conversation=chat("describe the image .", "a red cross left of a blue circle", shown=2)),
        Example("none", conversation=chat("what color is it ?", "red", shown=0), query=(picture(),)),
        Example("one", conversation=chat("describe the image .", "a red cross")),
    ]
    aligned.encoder.padding_side = side
    try:
        together = TokenWeights()(aligned, Listed(examples))
    finally:
        aligned.encoder.padding_side = "right"
    for example, item in zip(examples, together.items, strict=True):
        alone = TokenWeights()(aligned, Listed([example])).items[0]
        assert [text for text, _ in item["weights"]] == [text for text, _ in alone["weights"]]
        expected = pooled(dense_gains(aligned, example), 1.0, 5.0, 1)
        assert [weight for _, weight in item["weights"]] == pytest.approx(expected, abs=1e-3)
    tokens = aligned.encoder.conversations([(example.id, example.conversation) for example in examples])
    assert (picture_gains(aligned, tokens)[1] == 0).all()  # not even by rounding
    assert [item["picture"] is None for item in together.items] == [False, True, False]  # no query's picture
    assert not any(name.startswith(("auroc", "gain_", "weight_")) for name in together.scores)


def test_without_pictures_nothing_is_gained(aligned):
    turns = [chat("what color is it ?", answer, shown=0) for answer in ("red", "a large red cross")]
    examples = [Example(str(index), conversation=each) for index, each in enumerate(turns)]
    scores = TokenWeights(low=0.0, high=2.0)(aligned, Listed(examples)).scores
    assert scores == {
        "mean_weight": 0, "p10": 0, "p50": 0, "p90": 0, "at_low": 1, "at_high": 0, "gain": 0,
    }  # fmt: skip
    audited = TokenWeights(blind=True)(aligned, Listed(examples)).scores
    assert audited["blind/shuffled_images/gain"] == 0 and all(map(math.isfinite, audited.values()))


def test_a_role_that_no_token_has_has_no_score(aligned):
    def said(*roles):
        return Example("x", conversation=chat("describe the image .", "a red cross"), roles=roles)

    visual = TokenWeights()(aligned, Listed([said("visual", "visual", "visual")]))
    assert {"gain_visual", "weight_visual", "gain_other"} <= set(visual.scores)  # other: the closing token
    assert not {"auroc", "gain_filler", "weight_filler", "gain_contradictory"} & set(visual.scores)
    assert visual.items[0]["score"] == 0.0
    filler = TokenWeights()(aligned, Listed([said("filler", "filler", "filler")]))
    assert filler.scores["gain_other"] == pytest.approx(filler.scores["gain"])
    assert not {"auroc", "gain_visual", "weight_visual"} & set(filler.scores)


def test_conversations_without_roles_do_not_count_among_those_with(aligned, noisy):
    plain = [replace(example, id=f"plain-{example.id}", roles=()) for example in noisy[:4]]
    alone, both = (TokenWeights()(aligned, Listed(each)) for each in (noisy, [*plain, *noisy]))
    for name in ("auroc", "gain_visual", "weight_filler", "gain_other"):
        assert both.scores[name] == pytest.approx(alone.scores[name], abs=1e-4)
    assert [item["score"] for item in both.items[:4]] == [0.0] * 4
    assert both.items[4]["score"] == pytest.approx(alone.items[0]["score"], abs=1e-4)


def test_a_backbone_that_has_diverged_has_finite_scores(tiny_backbone, noisy):
    with torch.no_grad():
        tiny_backbone.model.lm_head.weight.fill_(torch.nan)
    scores = TokenWeights()(tiny_backbone, Listed(noisy)).scores
    assert all(math.isfinite(score) for score in scores.values())
    assert scores["gain"] == 0 and scores["auroc"] == 0.5


def test_a_limit_that_cuts_the_last_answer_leaves_what_is_before_it(tiny_backbone):
    turns = chat("what is it ?", "a red cross", "describe the image .", "a blue circle .")
    example = Example("x", conversation=turns, roles=("filler", "visual", "visual", "filler"))
    tiny_backbone.encoder.max_length = tiny_backbone.encoder.prompts([turns[:-1]]).input_ids.shape[1]
    found = TokenWeights()(tiny_backbone, Listed([example]))
    assert [text.strip() for text, _ in found.items[0]["weights"]] == ["a", "red", "cross", "</s>"]
    assert "gain_visual" not in found.scores and found.items[0]["score"] == 0.0


def test_gains_are_zero_where_nothing_is_trained_on(aligned, noisy):
    tokens = aligned.encoder.conversations([(example.id, example.conversation) for example in noisy])
    gains = picture_gains(aligned, tokens)
    assert gains.shape == tokens.labels[:, 1:].shape
    assert (gains[tokens.labels[:, 1:] == IGNORE] == 0).all() and (gains[tokens.labels[:, 1:] != IGNORE] != 0).all()


def test_another_s_picture_adds_less(aligned, noisy):
    scores = TokenWeights(blind=True)(aligned, Listed(noisy)).scores
    assert scores["gain_visual"] > scores["blind/shuffled_images/gain_visual"] + 0.5


@pytest.mark.parametrize("settings", [{"low": -1.0}, {"low": 6.0}, {"low": 0.0, "high": 0.0}, {"window": 2}])
def test_settings_that_make_no_weights_are_refused(settings):
    with pytest.raises(InputError, match="TokenWeights needs 0 <= low <= high, high > 0 and an odd window >= 1, got"):
        TokenWeights(**settings)


def test_a_backbone_that_reads_pictures_in_part_is_refused(tiny_backbone):
    TokenWeights().check_backbone(tiny_backbone)
    with pytest.raises(InputError, match="TokenWeights: .* reads pictures through its visual tokenizer"):
        TokenWeights().check_backbone(with_tokens(tiny_backbone))


class TestTexts:
    WORDS = "grösser is ö 🙂 isn't"

    @pytest.fixture(params=["bytes", "sentencepiece"])
    def tokenizer(self, request):
        """The two large families, with so small a vocabulary that most words are in pieces."""
        splitter, decoder = {
            "bytes": (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
            "sentencepiece": (pre_tokenizers.Metaspace(), decoders.Metaspace()),
        }[request.param]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoder
        alphabet = pre_tokenizers.ByteLevel.alphabet() if request.param == "bytes" else []
        tokenizer.train_from_iterator(
            [self.WORDS, "a red red .", "isis"],
            trainers.BpeTrainer(vocab_size=len(alphabet) + 24, initial_alphabet=alphabet, special_tokens=["</s>"]),
        )
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

    def test_they_make_up_the_answer(self, tokenizer):
        ids = tokenizer(self.WORDS).input_ids
        texts = token_texts(tokenizer, ids)
        assert len(texts) == len(ids) > len(self.WORDS.split())
        assert "".join(texts) == self.WORDS and "\ufffd" not in "".join(texts)

    def test_a_letter_that_is_cut_is_said_to_be(self, tokenizer):
        ids = tokenizer("ö🙂").input_ids
        texts = token_texts(tokenizer, ids[:-1])
        assert len(texts) == len(ids) - 1 and "".join(texts).startswith("ö") and "🙂" not in "".join(texts)

    def test_answers_stand_in_lines_of_their_own(self, tokenizer):
        one, two = (tokenizer(text).input_ids for text in ("a red", "is red"))
        texts = answer_tokens(tokenizer, [IGNORE, *one, IGNORE, IGNORE, *two])
        assert "".join(texts) == "a red\nis red" and len(texts) == len(one) + len(two)
        assert answer_tokens(tokenizer, [IGNORE, IGNORE]) == []
