import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from alignlab import Example, InputError
from alignlab.backbones import Encoder
from alignlab.batch import IGNORE, Turn


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
