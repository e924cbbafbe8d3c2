import copy
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, LlavaProcessor, PreTrainedTokenizerFast

from alignlab import Example, InputError
from alignlab.backbones import Encoder
from alignlab.backbones.stretches import Stretches
from alignlab.backbones.words import token_words
from alignlab.batch import IGNORE, ROLES, Turn


@pytest.fixture(scope="module")
def encoder():
    return Encoder.load("scenes-parts")


def picture(color="red"):
    return Image.new("RGB", (48, 48), color)


def words(encoder, ids):
    return encoder.tokenizer.decode(ids)


def test_labels_are_the_answers_tokens_and_the_closing_token(encoder):
    tokens = encoder.conversations(
        [("a", Example.answering("a", picture(), "describe the image .", "a red circle .").conversation)]
    )
    kept = tokens.labels[0] != IGNORE
    assert words(encoder, tokens.input_ids[0][kept]) == "a red circle . </s>"
    assert torch.equal(tokens.labels[0][kept], tokens.input_ids[0][kept])
    assert tokens.image_mask.sum() == 36 and tokens.num_images.tolist() == [1]


def test_every_assistant_turn_is_trained_on_and_no_other(encoder):
    turns = (
        Turn("system", ("describe the image .",)),
        Turn("user", (picture(), "is there a circle ?")), Turn("assistant", ("yes",)),
        Turn("user", ("how many circles are there ?",)), Turn("assistant", ("two",)),
    )  # fmt: skip
    tokens = encoder.conversations([("a", turns)])
    assert words(encoder, tokens.input_ids[0][tokens.labels[0] != IGNORE]) == "yes </s> two </s>"


def test_the_prompt_is_exactly_what_generation_sees(encoder):
    example = Example.answering("a", picture(), "describe the image .", "a red circle .")
    whole = encoder.conversations([("a", example.conversation)])
    prompt = encoder.prompts([example.conversation[:1]])
    assert torch.equal(whole.input_ids[0, : prompt.input_ids.shape[1]], prompt.input_ids[0])
    assert whole.labels[0, prompt.input_ids.shape[1]] != IGNORE


def test_several_pictures_text_only_rows_and_their_order(encoder):
    two = (Turn("user", (picture("red"), picture("blue"), "describe the image .")), Turn("assistant", ("yes",)))
    none = (Turn("user", ("what color is a circle ?",)), Turn("assistant", ("red",)))
    tokens = encoder.conversations([("two", two), ("none", none)])
    assert tokens.num_images.tolist() == [2, 0] and tokens.image_mask.sum(1).tolist() == [72, 0]
    pixels = tokens.vision["pixel_values"]
    assert (
        pixels.shape[0] == 2 and pixels[0, 0].mean() > pixels[0, 2].mean() and pixels[1, 2].mean() > pixels[1, 0].mean()
    )


def test_a_batch_without_any_picture_has_no_vision_inputs(encoder):
    tokens = encoder.contents([("a red circle .",), ("a blue cross .",)])
    assert "pixel_values" not in tokens.vision


def test_only_what_is_required_is_encoded(encoder, examples):
    batch = encoder.batch(examples[:3], ("query", "target"))
    assert batch.conversation is None and len(batch.query) == len(batch.target) == len(batch) == 3
    batch = encoder.batch(examples[:3], ("negatives",))
    assert batch.num_negatives.tolist() == [len(e.negatives) for e in examples[:3]]
    assert len(batch.negatives) == batch.num_negatives.sum()
    none = encoder.batch([replace(example, negatives=()) for example in examples[:2]], ("negatives",))
    assert none.negatives is None and none.num_negatives.tolist() == [0, 0]


def test_a_limit_that_cuts_image_tokens_is_refused_with_the_length_needed():
    encoder = Encoder.load("scenes-parts", max_length=20)
    with pytest.raises(
        InputError, match="max_length = 20 would cut the image tokens of example 'a', which reach to 39"
    ):
        encoder.conversations([("a", Example.answering("a", picture(), "describe the image .", "yes").conversation)])


def test_a_limit_that_leaves_nothing_to_train_on_is_refused():
    encoder = Encoder.load("scenes-parts", max_length=42)
    with pytest.raises(InputError, match="'a' has no token left to train on: max_length = 42"):
        encoder.conversations([("a", Example.answering("a", picture(), "describe the image .", "yes").conversation)])


def test_a_limit_cuts_the_end_of_the_answer():
    example = Example.answering("a", picture(), "describe the image .", "a red circle above a blue cross .")
    full = Encoder.load("scenes-parts").conversations([("a", example.conversation)])
    cut = Encoder.load("scenes-parts", max_length=full.input_ids.shape[1] - 3).conversations(
        [("a", example.conversation)]
    )
    assert torch.equal(cut.input_ids, full.input_ids[:, :-3])


def test_the_placeholder_inside_a_text_is_refused(encoder):
    with pytest.raises(InputError, match="'a' has 1 picture.*has 2 '<image>'"):
        encoder.conversations([("a", Example.answering("a", picture(), "what is <image> ?", "yes").conversation)])


def test_a_conversation_without_an_answer_is_refused(encoder):
    with pytest.raises(InputError, match="'a': its conversation has no assistant turn"):
        encoder.conversations([("a", (Turn("user", ("yes",)),))])


def test_an_encoder_travels_to_workers(encoder, examples):
    again = pickle.loads(pickle.dumps(encoder))
    batch, twin = (e.batch(examples[:2], ("conversation",)).conversation for e in (encoder, again))
    assert torch.equal(batch.input_ids, twin.input_ids)


def test_a_batch_moves_and_is_replaced_not_changed(encoder, examples):
    batch = encoder.batch(examples[:2], ("conversation",))
    moved = batch.to("meta")
    assert moved.conversation.input_ids.is_meta and moved.conversation.vision["pixel_values"].is_meta
    assert not batch.conversation.input_ids.is_meta and moved.ids == batch.ids
    with pytest.raises(AttributeError):
        batch.conversation = None
    assert replace(batch, ids=("x", "y")).ids == ("x", "y")


def test_an_example_without_a_required_side_is_named(encoder):
    with pytest.raises(InputError, match="'lonely' has no target"):
        encoder.batch([Example("lonely", query=(picture(),))], ("query", "target"))


TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] | trim }}{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
ANSWER = "a red circle\n  above a blue cross ."
SPACES = {  # how the two large families of tokenizers write a space, and a size that leaves most words in pieces
    "bytes": (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), 280),
    "sentencepiece": (pre_tokenizers.Metaspace(), decoders.Metaspace(), 45),
}


def splitting(encoder, spaces):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder, size = SPACES[spaces]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if spaces == "bytes" else []
    specials = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["a red red .", "an on is ' ", "abcdefghijklmnopqrstuvwxyzö"], trainer)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    pictures = encoder.processor.image_processor
    return Encoder(LlavaProcessor(pictures, fast, chat_template=TEMPLATE, **settings), 4)


@pytest.fixture(params=["words", *SPACES])
def any_encoder(request, encoder):
    return copy.copy(encoder) if request.param == "words" else splitting(encoder, request.param)


def talk(answer=ANSWER, before=()):
    return (Turn("user", (picture(), "describe the image .")), *before, Turn("assistant", (answer,)))


def spelled(encoder, tokens, words, row=0):
    """What the tokens of each word say."""
    ids, words = tokens.input_ids[row], words[row]
    return [encoder.tokenizer.decode(ids[words == word]).strip() for word in range(int(words.max()) + 1)]


class TestWords:
    def test_the_tokens_of_a_word_spell_it(self, any_encoder):
        tokens, words = any_encoder.words([("a", talk("red")), ("b", talk())])
        assert spelled(any_encoder, tokens, words, 0) == ["red"]
        assert spelled(any_encoder, tokens, words, 1) == ANSWER.split()
        assert torch.equal(tokens.input_ids, any_encoder.conversations([("a", talk("red")), ("b", talk())]).input_ids)

    @pytest.mark.parametrize("spaces", SPACES)
    def test_a_word_in_pieces_has_all_of_them(self, encoder, spaces):
        encoder = splitting(encoder, spaces)
        answer = "grösser isn't an ö"
        tokens, words = encoder.words([("a", talk(answer))])
        assert spelled(encoder, tokens, words) == answer.split()
        assert (words[0] == 0).sum() > 3  # in bytes, one letter is two tokens

    def test_tokens_before_the_last_answer_and_the_closing_token_are_of_no_word(self, any_encoder):
        before = (Turn("assistant", ("a red cross",)), Turn("user", (ANSWER,)))
        tokens, words = any_encoder.words([("a", talk(ANSWER, before))])
        start = any_encoder.prompts([talk(ANSWER, before)[:-1]]).input_ids.shape[1]
        assert (words[0, :start] == -1).all() and (tokens.labels[0, :start] != IGNORE).any()
        closing = tokens.input_ids[0, start:] == any_encoder.tokenizer.eos_token_id
        assert words[0, start:][closing].tolist() == [-1]
        assert spelled(any_encoder, tokens, words) == ANSWER.split()

    def test_they_are_cut_and_padded_like_the_tokens(self, any_encoder):
        conversations = [("a", talk("red")), ("b", talk())]
        _, full = any_encoder.words(conversations)
        any_encoder.padding_side = "left"
        tokens, left = any_encoder.words(conversations)
        pads = int((tokens.attention_mask[0] == 0).sum())
        assert pads > 0 and torch.equal(left[0], full[0].roll(pads)) and torch.equal(left[1], full[1])
        any_encoder.padding_side = "right"
        any_encoder.max_length = full.shape[1] - 5
        tokens, cut = any_encoder.words(conversations)
        assert cut.shape == tokens.input_ids.shape and torch.equal(cut, full[:, :-5])

    def test_a_limit_that_leaves_only_an_earlier_answer_leaves_no_word(self, any_encoder):
        before = (Turn("assistant", ("red",)), Turn("user", ("red",)))
        whole = talk("red", before)
        any_encoder.max_length = any_encoder.prompts([whole[:-1]]).input_ids.shape[1]
        tokens, words = any_encoder.words([("a", whole)])
        assert (tokens.labels != IGNORE).any() and (words == -1).all()

    def test_the_texts_of_an_answer_are_counted_through(self, any_encoder):
        turns = (*talk()[:-1], Turn("assistant", ("a red ", " red")))
        tokens, words = any_encoder.words([("a", turns)])
        assert spelled(any_encoder, tokens, words) == ["a", "red", "red"]

    def test_a_tokenizer_without_places_is_refused(self):
        with pytest.raises(InputError, match="ByT5Tokenizer cannot say where its tokens stand"):
            token_words(ByT5Tokenizer(), "a", "red", [117, 104, 103], ["red"])

    def test_a_template_that_rewrites_answers_is_refused(self, encoder):
        encoder = splitting(encoder, "bytes")
        encoder.processor.chat_template = TEMPLATE.replace("trim", "upper")
        with pytest.raises(InputError, match="'a': the chat template changes the answer 'red'"):
            encoder.words([("a", talk("red"))])

    def test_a_processor_that_rewrites_texts_is_refused(self, encoder):
        encoder = splitting(encoder, "bytes")
        encoder.stretches = Stretches(Shouting(encoder.processor), encoder.image_token_id)
        with pytest.raises(InputError, match="'a': the processor and its tokenizer split the answer 'red.*differently"):
            encoder.words([("a", talk("red"))])


class Shouting:
    """A processor that changes what it is given before it tokenizes, as those with placeholders of their own do."""

    def __init__(self, processor):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token, self.image_processor = processor.image_token, processor.image_processor

    def __call__(self, text, **settings):
        return self.processor(text=[each.replace("red", "RED") for each in text], **settings)


class TestRoles:
    def batch(self, encoder, *roles, requires=("roles", "conversation")):
        return encoder.batch([Example("a", conversation=talk(ANSWER), roles=roles)], requires)

    def test_every_token_of_a_word_has_its_role_and_no_other_token_has_one(self, any_encoder):
        roles = ("filler", "visual", "contradictory", "filler", "visual", "visual", "visual", "filler")
        batch = self.batch(any_encoder, *roles)
        _, words = any_encoder.words([("a", talk(ANSWER))])
        for word, role in enumerate(roles):
            assert set(batch.roles[words == word].tolist()) == {ROLES.index(role)}
        assert torch.equal(batch.roles == -1, words == -1)
        assert batch.roles.shape == batch.conversation.input_ids.shape and batch.roles.dtype == torch.long

    def test_without_being_required_they_are_not_made(self, encoder):
        assert self.batch(encoder, requires=("conversation",)).roles is None

    def test_as_many_as_words_are_needed(self, encoder):
        with pytest.raises(InputError, match="'a' has 2 roles, but its last answer has 8 words"):
            self.batch(encoder, "visual", "filler")
        with pytest.raises(InputError, match="'a' has no roles"):
            self.batch(encoder)

    def test_an_unknown_one_is_named(self, encoder):
        with pytest.raises(InputError, match="a role 'nice'; a role is one of visual, filler, contradictory"):
            self.batch(encoder, *["visual"] * 7, "nice")

    def test_they_need_the_conversation(self, encoder):
        with pytest.raises(InputError, match="what requires roles requires it, too"):
            self.batch(encoder, "visual", requires=("roles",))


def test_groups_are_names_and_may_be_empty(encoder, examples):
    few = [replace(examples[0], group="one"), examples[1]]
    batch = encoder.batch(few, ("target", "group"))
    assert batch.groups == ("one", few[1].group) and batch.to("cpu").groups == batch.groups


def test_an_encoder_is_known_by_its_words_and_by_what_it_does_to_pictures():
    first, second = Encoder.load("scenes-vlm"), Encoder.load("scenes-vlm-1")
    both = [(each.tokenizer_fingerprint(), each.image_fingerprint()) for each in (first, second)]
    assert both[0] == both[1] and len(both[0][0]) == 16
    second.image_processor.image_mean = [0.4, 0.5, 0.5]
    assert second.tokenizer_fingerprint() == both[0][0] and second.image_fingerprint() != both[0][1]
    for change in (
        lambda encoder: setattr(encoder.processor, "chat_template", encoder.processor.chat_template + " "),
        lambda encoder: encoder.tokenizer.add_tokens(["unheard-of"]),
        lambda encoder: setattr(encoder, "first_token", "<s>" if not encoder.first_token else ""),
    ):
        other = Encoder.load("scenes-vlm")
        change(other)
        assert other.tokenizer_fingerprint() != both[0][0] and other.image_fingerprint() == both[0][1]
