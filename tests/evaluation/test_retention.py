"""What tuning costs: on paper, and of backbones of which it is known what was changed."""

import math
from dataclasses import replace

import pytest
import torch
from listed import Listed
from peft import LoraConfig
from visual import CODES, with_tokens

from alignlab.adapters import adapter_parameters
from alignlab.backbones import Backbone
from alignlab.batch import Example, Turn
from alignlab.errors import InputError
from alignlab.evaluation import Retention, TextPerplexity
from alignlab.evaluation.likelihood import compared
from alignlab.functional import divergence


@pytest.fixture
def changed(tiny_path):
    """The tiny backbone with some noise on the weights of one part."""

    def make(part: str, path: str = str(tiny_path)) -> Backbone:
        backbone = Backbone(path)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in backbone.parts[part].parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        return backbone

    return make


def test_hand_computed_divergence():
    # P = (1/2, 1/2), Q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln 2/3. The same other way: 1/4 ln 1/2 + 3/4 ln 3/2.
    p, q = torch.zeros(1, 2), torch.tensor([[5.0, 5.0 + math.log(3)]])
    assert divergence(p, q).tolist() == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)], abs=1e-7)
    assert divergence(q, p).tolist() == pytest.approx([0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)], abs=1e-7)


def test_the_same_logits_diverge_by_exactly_nothing_whatever_they_are():
    logits = torch.randn(4, 1000) * 50
    logits[0, 3] = -torch.inf
    assert divergence(logits, logits.clone()).tolist() == [0.0] * 4
    assert divergence(logits.bfloat16(), logits.bfloat16()).tolist() == [0.0] * 4
    # Adding the same to all words changes the logits, not what they say.
    assert (divergence(logits, logits + 1e-3) >= 0).all()


def test_a_word_that_only_the_first_excludes_adds_nothing_and_one_that_only_the_second_excludes_everything():
    one, other = torch.tensor([0.0, -torch.inf]), torch.tensor([0.0, 0.0])
    assert divergence(one, other).item() == pytest.approx(math.log(2))
    assert divergence(other, one).item() == math.inf


def test_an_untouched_backbone_has_lost_exactly_nothing(tiny_backbone, scenes):
    evaluation = Retention(batch_size=4)(tiny_backbone, Listed(scenes))
    scores = evaluation.scores
    assert scores["text_kl"] == scores["image_kl"] == scores["text_log_ratio"] == 0.0
    assert scores["text_perplexity"] == scores["text_perplexity_start"] > 1
    assert [item["id"] for item in evaluation.items] == [example.id for example in scenes]
    assert {item["score"] for item in evaluation.items} == {0.0}


def test_new_adapters_have_lost_exactly_nothing_and_trained_ones_have(tiny_backbone, scenes):
    torch.manual_seed(0)
    tiny_backbone.model.add_adapter(LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    scores = Retention(batch_size=4)(tiny_backbone, Listed(scenes)).scores
    assert scores["text_kl"] == scores["image_kl"] == 0.0
    with torch.no_grad():
        for parameter in adapter_parameters(tiny_backbone):
            parameter.normal_(std=0.3)
    scores = Retention(batch_size=4)(tiny_backbone, Listed(scenes)).scores
    assert min(scores["text_kl"], scores["image_kl"]) > 0


def test_another_projector_is_seen_with_pictures_alone(changed, scenes):
    scores = Retention(batch_size=4)(changed("projector"), Listed(scenes)).scores
    assert scores["text_kl"] == scores["text_log_ratio"] == 0.0 < scores["image_kl"]


def test_another_language_model_is_compared_with_the_start_by_hand(changed, tiny_backbone, scenes):
    tuned = changed("language_model")
    evaluation = Retention(batch_size=4)(tuned, Listed(scenes))
    plain = TextPerplexity(batch_size=6)
    tuned_text, start_text = (plain(each, Listed(scenes)).scores for each in (tuned, tiny_backbone))
    scores = evaluation.scores
    assert scores["text_perplexity"] == pytest.approx(tuned_text["perplexity"], rel=1e-6)
    assert scores["text_perplexity_start"] == pytest.approx(start_text["perplexity"], rel=1e-6)
    assert scores["text_log_ratio"] == pytest.approx(tuned_text["nats"] - start_text["nats"], abs=1e-6)
    for field, name in (("text", "text_kl"), ("conversation", "image_kl")):
        nats = []
        for example in scenes:  # one after the other, with the whole model's logits at every position
            tokens = tuned.encoder.conversations([(example.id, getattr(example, field))])
            inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **tokens.vision}
            with torch.no_grad():
                p, q = (each.eval().model(**inputs).logits[0, :-1].softmax(-1) for each in (tiny_backbone, tuned))
            each = (p * (p / q).log()).sum(-1)[tokens.labels[0, 1:] != -100]
            nats += each.tolist()
            if field == "text":
                item = next(item for item in evaluation.items if item["id"] == example.id)
                assert item["score"] == pytest.approx(-each.mean().item(), abs=1e-5)
        assert scores[name] == pytest.approx(sum(nats) / len(nats), abs=1e-5) and scores[name] > 0.01


def test_neither_padding_nor_where_it_stands_changes_the_numbers(changed, tiny_path, scenes):
    tuned = changed("language_model")
    sizes = [Retention(batch_size=size)(tuned, Listed(scenes)).scores for size in (1, 5, 64)]
    tuned.encoder.padding_side = "left"
    for other in (*sizes[1:], Retention(batch_size=5)(tuned, Listed(scenes)).scores):
        assert other == pytest.approx(sizes[0], rel=1e-4)


def test_large_vocabularies_are_compared_in_chunks(changed, tiny_backbone, scenes, monkeypatch):
    tuned = changed("language_model")
    tokens = tuned.encoder.conversations([(example.id, example.text) for example in scenes])
    with torch.no_grad():
        whole = compared(tiny_backbone.eval(), tuned.eval(), tokens)[2]
        monkeypatch.setattr("alignlab.evaluation.likelihood.CHUNK", 2)
        assert torch.equal(compared(tiny_backbone, tuned, tokens)[2], whole)


def test_a_model_that_broke_has_the_most_to_lose(changed, scenes):
    tuned = changed("language_model")
    with torch.no_grad():
        tuned.model.get_output_embeddings().weight.fill_(torch.nan)
    scores = Retention()(tuned, Listed(scenes)).scores
    assert scores["text_kl"] == scores["image_kl"] == 100.0


def test_visual_tokens_that_the_start_lacks_are_no_words(changed, tiny_backbone, scenes):
    tuned = with_tokens(changed("language_model"))
    head = tuned.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[-CODES - 2 :] = 50 * head.weight[:1]  # so that they matter where they are not left out
    scores = Retention(batch_size=4)(tuned, Listed(scenes)).scores
    nats, costs = [], []
    for example in scenes:
        tokens = tuned.encoder.conversations([(example.id, example.text)])
        inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        with torch.no_grad():
            both = [each.eval().model(**inputs).logits[0, :-1] for each in (tiny_backbone, tuned)]
        assert both[1].shape[1] == both[0].shape[1] + CODES + 2
        p, q = (logits[:, : both[0].shape[1]].log_softmax(-1) for logits in both)
        wanted, labels = tokens.labels[0, 1:] != -100, tokens.labels[0, 1:].clamp(min=0)
        nats += (p.exp() * (p - q)).sum(-1)[wanted].tolist()
        costs += (-q.gather(1, labels[:, None])[:, 0])[wanted].tolist()
    assert scores["text_kl"] == pytest.approx(sum(nats) / len(nats), abs=1e-5) and scores["text_kl"] > 0.01
    assert scores["text_perplexity"] == pytest.approx(math.exp(sum(costs) / len(costs)), rel=1e-4)
    assert scores["image_kl"] > 0
    plain = TextPerplexity()(tiny_backbone, Listed(scenes)).scores["perplexity"]
    assert scores["text_perplexity_start"] == pytest.approx(plain, rel=1e-5)


def test_texts_alone_have_no_score_of_pictures(tiny_backbone):
    turns = (Turn("user", ("what color is a circle ?",)), Turn("assistant", ("red",)))
    scores = Retention()(tiny_backbone, Listed([Example("x", text=turns)])).scores
    assert set(scores) == {"text_kl", "text_perplexity", "text_perplexity_start", "text_log_ratio"}


def test_a_base_may_be_named(changed, tiny_path, scenes):
    tuned = changed("language_model")
    tuned.start = None
    scores = Retention(base=str(tiny_path))(tuned, Listed(scenes)).scores
    assert scores["text_kl"] > 0
    with pytest.raises(InputError, match="was drawn anew, or taken from elsewhere; set base"):
        Retention()(tuned, Listed(scenes))


def test_where_the_start_is_read_again(tiny_path):
    path = str(tiny_path)
    assert Backbone(path).start == Backbone(path, fresh=["projector"]).start == path
    assert Backbone(path, fresh=["language_model"]).start is None
    assert Backbone(path, take={"language_model": path}).start is None


def test_a_base_that_cannot_be_compared_with_is_named(tiny_backbone, scenes, tmp_path, tiny_path):
    with pytest.raises(InputError, match="Retention: base: .*nowhere"):
        Retention(base=str(tmp_path / "nowhere")).check_backbone(tiny_backbone)
    tiny_backbone.encoder.tokenizer.add_tokens(["another"])
    with pytest.raises(InputError, match="over one vocabulary, but .* has another tokenizer"):
        Retention()(tiny_backbone, Listed([replace(scenes[0])]))
