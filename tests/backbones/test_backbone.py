import copy

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from alignlab import Backbone, InputError
from alignlab.backbones import PARTS
from alignlab.batch import Turn


def batch_of(backbone, examples, *names):
    return backbone.encoder.batch(examples, names)


def test_parts_are_the_models_own_and_cover_it_once(tiny_backbone):
    covered = [parameter for parameter, _ in tiny_backbone.part_of()]
    assert {name for _, name in tiny_backbone.part_of()} == set(PARTS)
    assert {id(p) for p in covered} == {id(p) for p in tiny_backbone.parameters()} and len(covered) == len(set(covered))
    assert tiny_backbone.parts["projector"][0] is tiny_backbone.model.model.multi_modal_projector


def test_logits_equal_those_of_transformers(tiny_backbone, examples):
    chat = batch_of(tiny_backbone, examples[:4], "conversation").conversation
    official = tiny_backbone.model(input_ids=chat.input_ids, attention_mask=chat.attention_mask, **chat.vision).logits
    torch.testing.assert_close(tiny_backbone(chat).logits, official)
    kept = chat.labels != -100
    torch.testing.assert_close(tiny_backbone(chat, logits_at=kept).logits, official[kept])


def test_shared_features_give_the_same_logits(tiny_backbone, examples):
    chat = batch_of(tiny_backbone, examples[:4], "conversation").conversation
    features = tiny_backbone.features(chat)
    assert features is not None
    torch.testing.assert_close(tiny_backbone(chat, features=features).logits, tiny_backbone(chat).logits)


def test_embeddings_do_not_depend_on_padding_side_or_neighbours(tiny_backbone, examples):
    right = tiny_backbone.encoder.contents([e.target for e in examples[:6]])
    left_encoder = copy.copy(tiny_backbone.encoder)
    left_encoder.padding_side = "left"
    left = left_encoder.contents([e.target for e in examples[:6]])
    alone = torch.cat([tiny_backbone.embed(tiny_backbone.encoder.contents([e.target])) for e in examples[:6]])
    assert (right.attention_mask[:, -1] == 0).any() and (left.attention_mask[:, 0] == 0).any()
    torch.testing.assert_close(tiny_backbone.embed(right), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tiny_backbone.embed(left), alone, rtol=1e-4, atol=1e-5)


def test_generation_continues_each_prompt_as_if_alone(tiny_backbone, examples):
    backbone = tiny_backbone.eval()
    turns = [(Turn("user", (e.query[0], e.questions[0].text)),) for e in examples[:4]]
    together = backbone.generate(backbone.encoder.prompts(turns), max_new_tokens=5)
    assert together == [backbone.generate(backbone.encoder.prompts([turn]), max_new_tokens=5)[0] for turn in turns]


def test_a_saved_backbone_loads_in_plain_transformers(tiny_backbone, examples, tmp_path):
    tiny_backbone.save(tmp_path / "saved")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    AutoProcessor.from_pretrained(tmp_path / "saved")
    chat = batch_of(tiny_backbone, examples[:2], "conversation").conversation
    again = model(input_ids=chat.input_ids, attention_mask=chat.attention_mask, **chat.vision).logits
    torch.testing.assert_close(again, tiny_backbone(chat).logits)
    assert not list((tmp_path / "saved").glob("*.bin"))


def test_fresh_parts_are_drawn_anew_and_the_others_kept(tiny_path):
    torch.manual_seed(1)
    old, new = Backbone(str(tiny_path)), Backbone(str(tiny_path), fresh=["projector"])
    for (before, part), (after, _) in zip(old.part_of(), new.part_of(), strict=True):
        if before.ndim > 1:
            assert torch.equal(before, after) == (part != "projector")


def test_parts_can_be_taken_from_another_backbone(tiny_path, tmp_path):
    donor = Backbone(str(tiny_path), fresh=PARTS)
    donor.save(tmp_path / "donor")
    plain = Backbone(str(tiny_path))
    mixed = Backbone(str(tiny_path), take={"language_model": str(tmp_path / "donor")})
    sources = {"vision_tower": plain, "projector": plain, "language_model": donor}
    for part, source in sources.items():
        expected = source.parts[part].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in mixed.parts[part].state_dict().items())


def test_a_part_that_does_not_fit_is_refused(tiny_path):
    with pytest.raises(InputError, match="the vision_tower does not fit"):
        Backbone(str(tiny_path), take={"vision_tower": "scenes-parts"})


@pytest.mark.parametrize(
    ("path", "message"),
    [("scenes-part", "did you mean 'scenes-parts'"), ("nowhere/at/all", "no directory"), (".", "without config.json")],
)
def test_missing_directories_are_named(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        Backbone(path)


def test_broken_weights_are_an_input_error(tiny_backbone, tmp_path):
    tiny_backbone.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="cannot be read|not a vision-language model"):
        Backbone(str(tmp_path))
