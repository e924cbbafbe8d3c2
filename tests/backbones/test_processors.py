"""Every family by its own processor: what a model is given is what plain transformers gives it, in any batch."""

import copy
import json
from inspect import signature

import pytest
import torch
from matrix import resized
from PIL import Image
from processors import FAMILIES, can_be_read, write_family
from transformers import AutoModelForImageTextToText, Gemma4Config
from transformers.utils import is_torchvision_available

from alignlab import Example, InputError
from alignlab.adapters import Full, LoRA, PLoRA
from alignlab.backbones import Backbone, open_backbone
from alignlab.backbones.answers import apart
from alignlab.backbones.depth import depths, shallow
from alignlab.backbones.plain import write_plain
from alignlab.backbones.processing import read_processor
from alignlab.backbones.stretches import Stretches
from alignlab.batch import IGNORE, Turn
from alignlab.functional import supervised
from alignlab.modules.parted import PARTS

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def picture(width, height, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


SQUARE, WIDE, TALL = picture(48, 48, 0), picture(64, 32, 1), picture(30, 60, 2)


def user(*content):
    return Turn("user", content)


def assistant(*content):
    return Turn("assistant", content)


TALKS = [
    ("one", (user(SQUARE, "what is there ?"), assistant("a red circle"))),
    ("two", (user(WIDE, TALL, "which one"), assistant("the green"))),
    ("turns", (user(TALL, "which one"), assistant("the green"), user(SQUARE, "and this"), assistant("a blue square"))),
    ("none", (user("hello"), assistant("a small green triangle"))),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    if not can_be_read(request.param):
        pytest.skip(f"the processor of {request.param} needs a package that is not here")
    return request.param


@pytest.fixture(scope="module")
def backbone(family, family_path):
    """In evaluation mode; tests leave it as it is."""
    return open_backbone(str(family_path(family))).eval()


@pytest.fixture(scope="module")
def tokens(backbone):
    return backbone.encoder.conversations(TALKS)


@pytest.fixture(scope="module")
def logits(backbone, tokens):
    with torch.no_grad():
        return backbone(tokens).logits


def real(tokens, values):
    return values[tokens.attention_mask.bool()]


@torch.no_grad()
@pytest.mark.parametrize("row", range(4))
def test_the_logits_are_those_of_plain_transformers(backbone, row):
    turns = TALKS[row][1][:1]
    ours = backbone.encoder.prompts([turns])
    processor = backbone.encoder.processor
    messages = [
        {"role": "user", "content": [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                                     for part in turns[0].content]}
    ]  # fmt: skip
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [part for part in turns[0].content if not isinstance(part, str)]
    if "suffix" in signature(processor.__call__).parameters:  # it writes the beginning and the new line itself
        if not images:
            pytest.skip("the processor reads no text without a picture")
        text = text.replace("<s>", "").removesuffix("\n")
    images = [images] if backbone.encoder.stretches.nests and images else images or None
    given = processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
    given.pop("labels", None)
    plain = AutoModelForImageTextToText.from_pretrained(backbone.path).eval()
    assert torch.equal(given["input_ids"], ours.input_ids)
    torch.testing.assert_close(backbone(ours).logits, plain(**given).logits, **CLOSE)


@torch.no_grad()
def test_the_rows_of_a_batch_do_not_touch_each_other(backbone, tokens, logits):
    for row, talk in enumerate(TALKS):
        alone = backbone(backbone.encoder.conversations([talk])).logits[0]
        torch.testing.assert_close(logits[row][tokens.attention_mask[row].bool()], alone, **CLOSE)


@torch.no_grad()
def test_padding_may_stand_on_either_side(backbone, tokens, logits):
    encoder = copy.copy(backbone.encoder)
    encoder.padding_side = "left"
    left = encoder.conversations(TALKS)
    assert not left.attention_mask[:, 0].all()
    torch.testing.assert_close(real(left, backbone(left).logits), real(tokens, logits), **CLOSE)


def test_labels_are_the_answers(backbone, tokens):
    decode = backbone.encoder.tokenizer.decode
    said = [decode(row[row != IGNORE], skip_special_tokens=True).split() for row in tokens.labels]
    wanted = [[turn.content[0] for turn in turns if turn.role == "assistant"] for _, turns in TALKS]
    assert [" ".join(words) for words in said] == [" ".join(answers) for answers in wanted]
    assert not (tokens.image_mask & (tokens.labels != IGNORE)).any()


@torch.no_grad()
def test_no_label_is_predicted_from_what_follows_it(backbone):
    turns = TALKS[2][1]
    other = (*turns[:1], assistant("the big one ."), user(WIDE, "or this"), assistant("yes"))
    one, two = (backbone.encoder.conversations([("", each)]) for each in (turns, other))
    first = int(supervised(one.labels)[0].nonzero()[0])
    same = first + 1  # both answers begin with the same word
    assert torch.equal(one.input_ids[0, : same + 1], two.input_ids[0, : same + 1])
    ours, others = (backbone(each).logits[0, : same + 1] for each in (one, two))
    torch.testing.assert_close(ours[first:], others[first:], **CLOSE)


@torch.no_grad()
def test_features_can_be_shared(backbone, tokens, logits):
    features = backbone.features(tokens)
    assert features is not None
    torch.testing.assert_close(real(tokens, backbone(tokens, features=features).logits), real(tokens, logits), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("rows", [[2, 0], [3, 1], [1], [3], [0, 1, 2, 3]])
def test_a_batch_can_be_cut(backbone, tokens, logits, rows):
    part = tokens.select(torch.tensor(rows))
    wanted = torch.cat([logits[row][tokens.attention_mask[row].bool()] for row in rows])
    torch.testing.assert_close(real(part, backbone(part).logits), wanted, **CLOSE)
    assert rows == [0, 1, 2, 3] or len(part.vision.get("pixel_values", ())) < len(tokens.vision["pixel_values"])


@torch.no_grad()
def test_leaving_pictures_out_equals_masking_them(backbone, tokens):
    features = backbone.features(tokens)
    short = backbone.without_images(tokens, features=features)
    whole = backbone.without_images(tokens, features=features, whole=True)
    assert short.input_ids.shape[1] < whole.input_ids.shape[1]
    torch.testing.assert_close(backbone.label_states(short), backbone.label_states(whole), **CLOSE)
    assert (backbone.label_states(whole) - backbone.label_states(tokens)).abs().max() > 1e-2


@torch.no_grad()
def test_two_answers_have_the_same_scores_in_one_pass_as_in_two(backbone):
    examples = [Example(id, conversation=turns, rejected=("a big blue",)) for id, turns in TALKS]
    batch = backbone.encoder.batch(examples, ("conversation", "rejected"))
    sides = batch.conversation, batch.rejected, batch.prompt_lengths
    once = backbone.answer_logps(backbone.answers(*sides), features=backbone.features(batch.conversation))
    torch.testing.assert_close(once, backbone.answer_logps(apart(*sides)), **CLOSE)


@torch.no_grad()
def test_embeddings_do_not_depend_on_the_batch_and_each_prompt_is_answered(backbone):
    contents = [(SQUARE, "what is there ?"), ("hello",), (WIDE, TALL), (TALL,)]
    vectors = backbone.embed(backbone.encoder.contents(contents))
    alone = torch.cat([backbone.embed(backbone.encoder.contents([content])) for content in contents])
    torch.testing.assert_close(vectors, alone, **CLOSE)
    prompts = [turns[:1] for _, turns in TALKS]
    answers = backbone.generate_ids(backbone.encoder.prompts(prompts), max_new_tokens=2)
    apart = [backbone.generate_ids(backbone.encoder.prompts([prompt]), max_new_tokens=2) for prompt in prompts]
    assert all(torch.equal(row[: each.shape[1]], each[0]) for row, each in zip(answers, apart, strict=True))


def test_image_tokens_are_never_cut_away(backbone, tokens):
    encoder = copy.copy(backbone.encoder)
    encoder.max_length = int(tokens.image_mask[2].nonzero().max())
    with pytest.raises(InputError, match="would cut the image tokens of example 'turns'"):
        encoder.conversations(TALKS)


@torch.no_grad()
def test_what_is_saved_is_read_again_and_loads_in_plain_transformers(family, backbone, tokens, logits, tmp_path):
    backbone.save(tmp_path)
    again = open_backbone(str(tmp_path)).eval()
    repeated = again.encoder.conversations(TALKS)
    assert repeated.vision.keys() == tokens.vision.keys() and torch.equal(repeated.input_ids, tokens.input_ids)
    assert torch.equal(again(repeated).logits, logits)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    if FAMILIES[family].video is not None:
        assert settings["video_processor"]["video_processor_type"] == FAMILIES[family].video
        assert settings["video_processor"]["num_frames"] == 3
    assert settings["processor_class"] == FAMILIES[family].processor


@torch.no_grad()
def test_fewer_layers_read_the_same_pictures(backbone, tokens, tmp_path):
    least = depths(backbone.path).least_vision
    fewer = open_backbone(**shallow(backbone.path, None, tmp_path, text_layers=1, vision_layers=least), fresh=PARTS)
    again = fewer.encoder.conversations(TALKS)
    assert depths(fewer.path).text == 1 < depths(backbone.path).text
    assert torch.equal(again.input_ids, tokens.input_ids) and again.vision.keys() == tokens.vision.keys()
    assert fewer.hidden(again).isfinite().all()


def test_the_projector_is_what_maps_to_the_decoders_width(family, backbone):
    names = {id(module): name for name, module in backbone.model.base_model.named_modules()}
    found = [names[id(each)] for each in backbone.parts["projector"] if id(each) in names]
    wanted = {"Qwen3-VL": ["visual.merger", "visual.deepstack_merger_list"]} | dict.fromkeys(
        ("Qwen2-VL", "Qwen2.5-VL"), ["visual.merger"]
    )
    wanted |= dict.fromkeys(("Idefics3", "SmolVLM"), ["connector"])
    assert found == wanted.get(family, ["multi_modal_projector"])
    parameters = [id(each) for part in backbone.parts.values() for each in part.parameters()]
    assert {id(each) for each in backbone.model.parameters()} == set(parameters)
    inside = {id(each) for each in backbone.parts["projector"].parameters()}
    assert not inside & {id(each) for each in backbone.parts["vision_tower"].parameters()}


@pytest.mark.parametrize("kind", ["projector", "LoRA", "PLoRA"])
def test_what_trains_is_what_was_named(kind, family, family_path, tmp_path):
    backbone = Backbone(str(family_path(family)))
    adapter = {
        "projector": Full(parts=["projector"]),
        "LoRA": LoRA(rank=2, parts=["projector"]),
        "PLoRA": PLoRA(ranks={"visual": 2}),
    }[kind]
    if (kind, family) == ("LoRA", "Gemma 3"):  # whose projector is a matrix by itself
        with pytest.raises(InputError, match="needs linear maps in the projector"):
            adapter.apply(backbone)
        return
    adapter.apply(backbone)
    before = {name: each.clone() for name, each in backbone.model.named_parameters()}
    text, shown = (backbone.encoder.conversations(TALKS[row : row + 1]) for row in (3, 0))
    with torch.no_grad():
        states = [backbone.eval().hidden(each) for each in (text, shown)]
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    part = "language_model" if kind == "PLoRA" else "projector"
    own = {id(each) for each in backbone.parts[part].parameters()}
    changed = {id(each) for name, each in backbone.model.named_parameters() if not torch.equal(each, before[name])}
    assert changed and changed <= own
    with torch.no_grad():
        after = [backbone.hidden(each) for each in (text, shown)]
    assert torch.equal(after[0], states[0]) and not torch.allclose(after[1], states[1], atol=1e-3)
    write_plain(backbone, tmp_path)
    if kind != "PLoRA":  # whose branches stand apart
        with torch.no_grad():
            torch.testing.assert_close(open_backbone(str(tmp_path)).eval().hidden(shown), after[1], **CLOSE)


def test_resizing_changes_how_many_tokens_a_picture_is(family_path, examples):
    """So that the matrix and these tests have pictures of different lengths."""
    encoder = open_backbone(str(family_path("LLaVA-NeXT"))).encoder
    shown = [resized(examples[0], size) for size in ((48, 48), (64, 32))]
    counts = encoder.contents([example.query for example in shown]).image_mask.sum(1)
    assert counts[0] != counts[1]


class Adding:
    """A processor that returns a key that nobody here knows."""

    def __init__(self, processor):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token, self.image_processor = processor.image_token, processor.image_processor

    def __call__(self, text, images=None, **settings):
        return {**self.processor(text=text, images=images, **settings), "pixel_depth": [[3.0]] * len(images or ())}


def test_what_a_processor_returns_beside_the_known_is_passed_on_and_cut(family_path):
    encoder = open_backbone(str(family_path("LLaVA"))).encoder
    encoder.stretches = Stretches(Adding(encoder.processor), encoder.image_token_id)
    tokens = encoder.conversations(TALKS)
    assert torch.equal(tokens.vision["pixel_depth"], torch.full((5, 1), 3.0))
    assert tokens.select(torch.tensor([1, 3])).vision["pixel_depth"].shape == (2, 1)


@pytest.mark.skipif(can_be_read("SmolVLM"), reason="num2words is here")
def test_a_package_that_a_processor_lacks_is_named(family_path):
    with pytest.raises(InputError, match="lacks what its processor needs: .*num2words"):
        open_backbone(str(family_path("SmolVLM")))


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is here")
def test_what_reads_sounds_too_is_refused_where_its_videos_cannot_be_read(tmp_path):
    write_family("Gemma 3", tmp_path)
    kinds = {"image": "ImageProcessor", "feature": "AudioFeatureExtractor", "video": "VideoProcessor"}
    names = {"image": "image_processor", "feature": "feature_extractor", "video": "video_processor"}
    parts = {names[part]: {f"{names[part]}_type": f"Gemma4{kind}"} for part, kind in kinds.items()}
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Gemma4Processor", **parts}))
    with pytest.raises(InputError, match=r"backbone\.path: .* lacks what its processor needs: .*orchvision"):
        read_processor(str(tmp_path), Gemma4Config())
