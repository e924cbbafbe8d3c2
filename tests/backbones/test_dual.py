"""Dual encoders: tiny CLIP and SigLIP directories, and towers of two models put together."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    LlamaForCausalLM,
    Siglip2Config,
    SiglipConfig,
)

from alignlab import Example, InputError
from alignlab.adapters import Full
from alignlab.backbones import PARTS, Backbone, DualEncoder, Encoder, locate, open_backbone, open_encoder
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.functional import normalize

KINDS = {"clip": CLIPConfig, "siglip": SiglipConfig, "siglip2": Siglip2Config}
TEXTS = ("a small red circle .", "a blue cross above a large green square .", "yes")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Directories by kind; each is written with weights of its own."""
    folder = tmp_path_factory.mktemp("dual")
    torch.manual_seed(0)
    for name, kind in KINDS.items():
        write_tiny_dual(folder / name, kind)
    return {name: str(folder / name) for name in KINDS}


@pytest.fixture(params=KINDS)
def path(request, paths):
    return paths[request.param]


@pytest.fixture
def composed(tiny_path):
    return open_backbone(str(tiny_path), text_tower=str(tiny_path))


def pictures(count):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 48, 48, 3), dtype=torch.uint8, generator=generator)
    return [Image.fromarray(each.numpy()) for each in pixels]


def embed(backbone, *contents):
    return backbone.embed(backbone.encoder.contents(contents))


def cut(tokens, size):
    return [tokens.select(rows) for rows in torch.arange(len(tokens)).split(size)]


class TestPretrained:
    """As transformers has them."""

    def test_pictures_are_what_transformers_makes_of_them(self, path):
        backbone, shown = open_backbone(path), pictures(3)
        model, processor = AutoModel.from_pretrained(path), AutoProcessor.from_pretrained(path)
        official = model.get_image_features(
            **processor.image_processor(images=shown, return_tensors="pt")
        ).pooler_output
        torch.testing.assert_close(embed(backbone, *[(each,) for each in shown]), official)

    def test_texts_are_what_transformers_makes_of_them_padded_as_it_was_trained(self, path):
        backbone = open_backbone(path)
        model, processor = AutoModel.from_pretrained(path), AutoProcessor.from_pretrained(path)
        how = {"padding": True} if backbone.logit_bias is None else {"padding": "max_length", "max_length": 40}
        given = processor(text=list(TEXTS), return_tensors="pt", **how)
        official = model.get_text_features(**given).pooler_output
        torch.testing.assert_close(embed(backbone, *[(text,) for text in TEXTS]), official)
        if backbone.logit_bias is not None:  # padded to its batch alone, as CLIP is, it would be something else
            short = model.get_text_features(**processor(text=list(TEXTS), return_tensors="pt", padding=True))
            assert not torch.allclose(short.pooler_output, official, atol=1e-3)

    def test_a_longer_text_loses_its_end_but_not_the_end_token(self, paths):
        encoder = open_encoder(paths["clip"])
        long = encoder.contents([("a red circle . " * 30,)])
        assert long.input_ids.shape[1] == 40 and long.input_ids[0, -1] == encoder.tokenizer.eos_token_id
        assert open_encoder(paths["clip"], max_length=9).contents([("a red circle . " * 30,)]).input_ids.shape[1] == 9

    def test_scale_and_bias_are_the_models_own_frozen_and_of_no_part(self, path):
        backbone, model = open_backbone(path), AutoModel.from_pretrained(path)
        assert torch.equal(backbone.logit_scale, model.logit_scale) and not backbone.logit_scale.requires_grad
        own = [backbone.logit_scale]
        if hasattr(model, "logit_bias"):
            assert torch.equal(backbone.logit_bias, model.logit_bias) and not backbone.logit_bias.requires_grad
            own.append(backbone.logit_bias)
        Full().apply(backbone)
        assert not any(each.requires_grad for each in own)
        parts = [parameter for parameter, _ in backbone.part_of()]
        assert {id(p) for p in parts} | {id(p) for p in own} == {id(p) for p in backbone.parameters()}
        assert len(parts) == len(set(parts)) and not {id(p) for p in parts} & {id(p) for p in own}
        assert {part for _, part in backbone.part_of()} == set(PARTS)

    def test_what_is_saved_is_read_again_and_by_transformers(self, path, tmp_path):
        backbone = open_backbone(path)
        with torch.no_grad():
            backbone.logit_scale.fill_(4.7215)
        backbone.save(tmp_path / "saved")
        again = open_backbone(str(tmp_path / "saved"))
        assert again.encoder.tokenizer.model_input_names == backbone.encoder.tokenizer.model_input_names
        assert again.state_dict().keys() == backbone.state_dict().keys()
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in backbone.state_dict().items())
        contents = [(pictures(1)[0],), (TEXTS[0],)]
        assert torch.equal(embed(again, *contents), embed(backbone, *contents))
        assert AutoModel.from_pretrained(tmp_path / "saved").logit_scale.item() == pytest.approx(4.7215)
        assert not list((tmp_path / "saved").glob("*.bin"))

    def test_parts_are_drawn_anew_or_taken(self, path, tmp_path):
        donor, plain = open_backbone(path, fresh=PARTS), open_backbone(path)
        donor.save(tmp_path / "donor")
        for other in (
            open_backbone(path, take={"projector": str(tmp_path / "donor")}),
            open_backbone(path, fresh=["projector"]),
        ):
            for (before, part), (after, _) in zip(plain.part_of(), other.part_of(), strict=True):
                if before.ndim > 1:
                    assert torch.equal(before, after) == (part != "projector")
        taken = open_backbone(path, take={"projector": str(tmp_path / "donor")})
        wanted = donor.parts["projector"].state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in taken.parts["projector"].state_dict().items())

    def test_a_fresh_siglip_starts_where_its_paper_does(self, paths):
        fresh = open_backbone(paths["siglip"], fresh=PARTS)
        assert fresh.logit_scale.exp().item() == pytest.approx(10) and fresh.logit_bias.item() == -10

    def test_a_tokenizer_without_an_end_token_is_refused(self, paths, tmp_path):
        model, processor = AutoModel.from_pretrained(paths["clip"]), AutoProcessor.from_pretrained(paths["clip"])
        processor.tokenizer = AutoTokenizer.from_pretrained(locate("scenes-parts"))
        for each in (model, processor):
            each.save_pretrained(tmp_path)
        with pytest.raises(InputError, match="tokenizer does not end a text with '</s>'"):
            open_backbone(str(tmp_path))


class TestContents:
    @pytest.fixture(params=["clip", "siglip", "composed"])
    def backbone(self, request, paths, tiny_path):
        if request.param == "composed":
            return open_backbone(str(tiny_path), text_tower=str(tiny_path), dtype="float64")
        return open_backbone(paths[request.param], dtype="float64")

    def mixed(self):
        one, two, three = pictures(3)
        return [(TEXTS[0],), (one,), (two, TEXTS[1]), (TEXTS[2],), (three, one), (two,)]

    def test_a_mixed_batch_is_each_content_by_itself(self, backbone):
        together = embed(backbone, *self.mixed())
        alone = torch.cat([embed(backbone, content) for content in self.mixed()])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-7)

    def test_several_parts_are_the_sum_of_their_normalised_embeddings(self, backbone):
        one, two, _ = pictures(3)
        parts = normalize(embed(backbone, (one,), (two,), (TEXTS[0],)))
        torch.testing.assert_close(embed(backbone, (one, TEXTS[0]))[0], parts[0] + parts[2])
        torch.testing.assert_close(embed(backbone, (one, two, TEXTS[0]))[0], parts.sum(0))

    def test_padding_on_either_side_of_any_width_changes_nothing(self, backbone):
        expected = embed(backbone, *self.mixed())
        encoder = copy.copy(backbone.encoder)
        encoder.padding_side = "left"
        left = encoder.contents(self.mixed())
        assert (left.attention_mask[3, 0] == 0) and left.attention_mask[3, -1] == 1
        torch.testing.assert_close(backbone.embed(left), expected, rtol=1e-5, atol=1e-7)
        widened = {"input_ids": encoder.pad_id, "attention_mask": 0, "labels": -100}
        more = {name: torch.nn.functional.pad(getattr(left, name), (2, 90), value=value)
                for name, value in widened.items()}  # fmt: skip
        torch.testing.assert_close(backbone.embed(replace(left, **more)), expected, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("size", [1, 2, 4])
    def test_a_batch_in_pieces_is_the_batch(self, backbone, size):
        tokens = backbone.encoder.contents(self.mixed())
        pieces = torch.cat([backbone.embed(piece) for piece in cut(tokens, size)])
        torch.testing.assert_close(pieces, backbone.embed(tokens), rtol=1e-5, atol=1e-7)

    def test_pictures_alone_are_cut_without_tokens(self, backbone):
        tokens = backbone.encoder.contents([(picture,) for picture in pictures(3)])
        assert tokens.input_ids.shape == (3, 0)
        pieces = torch.cat([backbone.embed(piece) for piece in cut(tokens, 2)])
        torch.testing.assert_close(pieces, backbone.embed(tokens), rtol=1e-5, atol=1e-7)

    def test_as_many_tokens_as_colours_are_no_rows_of_tokens(self, backbone):
        # Two pictures in the first of two rows of three tokens: pixels (2, 3, ...) are pictures, not rows.
        tokens = backbone.encoder.contents([tuple(pictures(2)), ("yes",)])
        ids = torch.ones(2, 3, dtype=torch.long)
        first, second = cut(replace(tokens, input_ids=ids, attention_mask=ids, labels=ids, image_mask=ids), 1)
        assert len(first.vision["pixel_values"]) == 2 and "pixel_values" not in second.vision

    def test_an_empty_content_is_refused(self, backbone):
        with pytest.raises(InputError, match="a content is empty"):
            backbone.encoder.contents([("yes",), ()])

    def test_its_encoder_travels_to_workers(self, backbone):
        again = pickle.loads(pickle.dumps(backbone.encoder)).contents(self.mixed())
        assert torch.equal(again.input_ids, backbone.encoder.contents(self.mixed()).input_ids)

    def test_what_only_a_generating_model_reads_is_refused(self, backbone):
        talk = Example.answering("a", pictures(1)[0], "describe the image .", "yes")
        with pytest.raises(InputError, match="a dual encoder reads query, target, .*; conversation needs a backbone"):
            backbone.encoder.batch([talk], ("conversation",))
        batch = backbone.encoder.batch([replace(talk, query=(TEXTS[0],), group="g", negatives=((TEXTS[1],),),
                                                captions=TEXTS, embedding=(1.0, 2.0))],
                                       ("query", "group", "negatives", "captions", "embedding"))  # fmt: skip
        assert batch.groups == ("g",) and len(batch.captions) == 3 and batch.embedding.shape == (1, 2)


class TestComposed:
    """A vision tower beside a language model."""

    def test_pictures_are_pooled_by_their_tower_and_projected(self, composed, tiny_path):
        tower = AutoModelForImageTextToText.from_pretrained(tiny_path).get_encoder(modality="image")
        shown = pictures(2)
        pixels = AutoProcessor.from_pretrained(tiny_path).image_processor(images=shown, return_tensors="pt")
        pooled = tower(**pixels).pooler_output
        expected = composed.model.projection(pooled)
        torch.testing.assert_close(embed(composed, *[(each,) for each in shown]), expected)

    def test_texts_are_the_language_models_last_state_adapted(self, composed, tiny_path, examples):
        whole = Backbone(str(tiny_path))
        texts = [e.target for e in examples[:5]]
        states = whole.embed(whole.encoder.contents(texts))
        torch.testing.assert_close(embed(composed, *texts), composed.text_adapter(states), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(composed.adapt(states), composed.text_adapter(states))

    def test_texts_are_rendered_by_the_text_towers_template(self, composed, tiny_path, examples):
        texts = [e.target for e in examples[:3]]
        expected = Encoder.load(str(tiny_path)).contents(texts)
        assert torch.equal(composed.encoder.contents(texts).input_ids, expected.input_ids)

    def test_where_nothing_pools_it_is_the_mean_over_the_patches(self, paths, tiny_path):
        backbone = open_backbone(paths["siglip"], text_tower=str(tiny_path))
        tower = backbone.model.vision_tower
        tower.use_head = False
        pixels = backbone.encoder.contents([(pictures(1)[0],)]).vision
        expected = backbone.model.projection(tower(**pixels).last_hidden_state.mean(1))
        torch.testing.assert_close(embed(backbone, (pictures(1)[0],)), expected)

    def test_clips_own_projection_stays_unless_it_is_to_be_fresh(self, paths, tiny_path):
        own = AutoModel.from_pretrained(paths["clip"]).visual_projection.weight
        kept = open_backbone(paths["clip"], text_tower=str(tiny_path))
        assert torch.equal(kept.model.projection.weight, own)
        fresh = open_backbone(paths["clip"], text_tower=str(tiny_path), fresh=["projector"])
        assert fresh.model.projection.weight.shape == own.shape and not torch.equal(fresh.model.projection.weight, own)

    def test_heads_come_from_torchs_generator(self, tiny_path):
        def made(seed):
            torch.manual_seed(seed)
            return open_backbone(str(tiny_path), text_tower=str(tiny_path)).parts["projector"].state_dict()

        one, same, other = made(1), made(1), made(2)
        assert all(torch.equal(value, same[name]) for name, value in one.items())
        assert not torch.equal(one["0.weight"], other["0.weight"])

    def test_what_is_saved_is_read_again_without_loss(self, composed, tmp_path):
        composed.keep(logit_scale=torch.nn.Parameter(torch.tensor(3.5)), logit_bias=torch.nn.Parameter(torch.zeros(())))
        composed.save(tmp_path / "saved")
        again = open_backbone(str(tmp_path / "saved"))
        assert isinstance(again, DualEncoder) and again.logit_scale.item() == 3.5 and again.logit_bias.item() == 0
        assert not again.logit_scale.requires_grad
        assert again.state_dict().keys() == composed.state_dict().keys()
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in composed.state_dict().items())
        contents = [(pictures(1)[0], TEXTS[0]), (TEXTS[1],)]
        assert torch.equal(embed(again, *contents), embed(composed, *contents))
        again.save(tmp_path / "twice", dtype="float64")
        twice = open_backbone(str(tmp_path / "twice"), dtype="float64")
        torch.testing.assert_close(embed(twice, *contents).float(), embed(composed, *contents), rtol=1e-4, atol=1e-5)

    def test_a_saved_one_gives_and_takes_parts(self, composed, tiny_path, tmp_path):
        composed.save(tmp_path / "saved")
        fresh = open_backbone(str(tmp_path / "saved"), fresh=["language_model"])
        for (before, part), (after, _) in zip(composed.part_of(), fresh.part_of(), strict=True):
            if before.ndim > 1:
                assert torch.equal(before, after) == (part != "language_model")
        Backbone(str(tiny_path), fresh=PARTS).save(tmp_path / "donor")
        towers = {name: str(tmp_path / "donor") for name in ("vision_tower", "language_model")}
        taken, donor = open_backbone(str(tmp_path / "saved"), take=towers), Backbone(str(tmp_path / "donor"))
        for name in towers:
            pairs = zip(taken.parts[name][0].parameters(), donor.parts[name][0].parameters(), strict=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
        with pytest.raises(InputError, match="that has no projector to give"):
            open_backbone(str(tmp_path / "saved"), take={"projector": str(tiny_path)})

    def test_a_language_model_by_itself_reads_texts_in_its_own_template(self, tiny_path, tmp_path):
        decoder = AutoModelForImageTextToText.from_pretrained(tiny_path).get_decoder()
        language_model = LlamaForCausalLM(decoder.config)
        language_model.model.load_state_dict(decoder.state_dict())
        language_model.save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tiny_path)
        tokenizer.chat_template = "{% for m in messages %}<s> {{ m['role'] }} : {{ m['content'] }}{% endfor %}"
        tokenizer.save_pretrained(tmp_path)
        backbone = open_backbone(str(tiny_path), text_tower=str(tmp_path))
        ids = tokenizer("<s> user : a red circle . yes", return_tensors="pt").input_ids
        state = decoder(input_ids=ids).last_hidden_state[:, -1]
        torch.testing.assert_close(embed(backbone, ("a red circle .", "yes")), backbone.adapt(state))

    @pytest.mark.parametrize(
        ("path", "text_tower", "message"),
        [
            ("tiny", "clip", "backbone.text_tower: .* is a clip; what reads the texts has to be a language model"),
            ("tiny", "nowhere", "backbone.text_tower: there is no directory 'nowhere'"),
            ("saved", "tiny", "has a text tower of its own; leave text_tower out"),
            ("tiny", "saved", "is a dual encoder; what reads the texts has to be a language model"),
        ],
    )
    def test_what_cannot_be_put_together_is_refused(
        self, path, text_tower, message, composed, paths, tiny_path, tmp_path
    ):
        composed.save(tmp_path / "saved")
        known = {"tiny": str(tiny_path), "clip": paths["clip"], "saved": str(tmp_path / "saved")}
        with pytest.raises(InputError, match=message):
            open_backbone(known.get(path, path), text_tower=known.get(text_tower, text_tower))

    def test_a_vision_language_model_alone_is_no_dual_encoder(self, tiny_path):
        assert type(open_backbone(str(tiny_path))) is Backbone
        with pytest.raises(InputError, match="is a llava, no dual encoder; with backbone.text_tower"):
            DualEncoder(str(tiny_path))
