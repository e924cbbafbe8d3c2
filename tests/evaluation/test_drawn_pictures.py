"""Evaluators of visual tokens, with real small tokenizers: what they cost, what they keep, what is drawn from them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from listed import Listed
from PIL import Image
from torch import nn
from transformers import CLIPConfig, Qwen2VLImageProcessorPil

from alignlab.backbones import PARTS, Backbone, DualEncoder
from alignlab.backbones.tiny import write_tiny_dual
from alignlab.batch import Example, Turn
from alignlab.data import Scenes
from alignlab.data.identity import seed_of
from alignlab.errors import InputError
from alignlab.evaluation import ImageGeneration, Reconstruction
from alignlab.evaluation.panels import BARS, GAP, beside, code_bars, kept_alone, picture_of
from alignlab.modules import AllPatches, LearnedSelection, PatchPixels, VisualTokenizer
from alignlab.modules.quantizers import FSQ, VectorQuantizer

PATCHES, CODES = 36, 16


def attach(backbone: Backbone, *, selection=LearnedSelection, quantizer="vq", pixels=True) -> Backbone:
    """A tokenizer whose weights are large enough that pictures differ."""
    torch.manual_seed(1)
    quantizer = partial(VectorQuantizer, num_codes=CODES) if quantizer == "vq" else quantizer
    tokenizer = VisualTokenizer(
        32, PATCHES, selection=selection, quantizer=quantizer, depth=1, num_heads=2, mlp_ratio=2.0, code_dim=4
    )
    if pixels:
        tokenizer.pixel_decoder = PatchPixels(32, grid=(6, 6), patch_size=8, hidden=8)
    for weight in tokenizer.parameters():
        nn.init.normal_(weight, std=0.3)
    backbone.visual_tokenizer = tokenizer
    if isinstance(tokenizer.selection, LearnedSelection):  # half of the patches, more of some pictures than of others
        tokens = backbone.encoder.batch(Scenes().examples("val")[:8], ("conversation",)).conversation
        with torch.no_grad():
            tokenizer.selection.calibrate(tokenizer.selection.log_probs(backbone.patch_features(tokens)), 0.5)
    return backbone


@pytest.fixture
def drawing(tiny_backbone) -> Backbone:
    attach(tiny_backbone).add_visual_tokens()
    return tiny_backbone


@pytest.fixture(scope="module")
def data() -> Scenes:
    return Scenes(num_test=12, num_objects=(1, 4))


def by_hand(backbone: Backbone, data: Scenes):
    """Features of all pictures, what the tokenizer makes of them, and the decoded features."""
    backbone.eval()
    tokens = backbone.encoder.contents([example.images[:1] for example in data.examples("test")])
    with torch.no_grad():
        features = backbone.patch_features(tokens)
        seen = backbone.visual_tokenizer(features)
        return features, seen, backbone.visual_tokenizer.decode(seen.vectors, seen.counts), backbone.pixels(tokens)


class TestReconstruction:
    def test_numbers_are_those_of_all_pictures_at_once(self, tiny_backbone, data):
        backbone = attach(tiny_backbone)
        found = Reconstruction(num_examples=12, batch_size=5)(backbone, data)
        features, seen, decoded, shown = by_hand(backbone, data)
        counts, scores = seen.counts.double(), found.scores
        assert 1 < counts.mean() < PATCHES and len(set(counts.tolist())) > 1  # else the test says little
        assert scores["tokens"] == pytest.approx(counts.mean().item())
        assert scores["tokens_std"] == pytest.approx(counts.std(correction=0).item())
        assert scores["bits"] == pytest.approx(counts.mean().item() * 4)  # of 16 codes
        assert scores["ratio"] == pytest.approx((24 * 48 * 48 / (4 * counts)).mean().item())
        times = torch.bincount(seen.codes, minlength=CODES).double()
        shares = times[times > 0] / times.sum()
        perplexity = math.exp(-(shares * shares.log()).sum())
        assert scores["code_perplexity"] == pytest.approx(perplexity)
        assert scores["bits_entropy"] == pytest.approx(counts.mean().item() * math.log2(perplexity))
        assert scores["usage"] == (times > 0).double().mean().item()
        cosines = nn.functional.cosine_similarity(decoded, features, dim=-1).mean(1)
        assert scores["cosine"] == pytest.approx(cosines.mean().item(), abs=1e-5)
        assert [item["score"] for item in found.items[:-1]] == pytest.approx(cosines.tolist(), abs=1e-5)
        constant = nn.functional.cosine_similarity(features.mean(0, keepdim=True), features, dim=-1)
        assert scores["cosine_constant"] == pytest.approx(constant.mean().item(), abs=1e-5)
        painted = backbone.visual_tokenizer.pixels(decoded)
        errors = (painted - shown).square().mean((1, 2, 3))
        assert scores["psnr"] == pytest.approx((-10 * errors.log10()).mean().item(), rel=1e-5)
        # Codes of a codebook on the sphere: 2 - 2 cos of each row with its code.
        cosine = nn.functional.cosine_similarity(seen.projected, seen.vectors, dim=-1)
        assert scores["quantization_error"] == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-4)

    def test_items_show_pictures_and_the_codebook(self, tiny_backbone, data):
        found = Reconstruction(num_examples=12, num_pictures=2)(attach(tiny_backbone), data)
        *items, book = found.items
        assert [item["picture"] is None for item in items] == [False] * 2 + [True] * 10
        # The original, what is kept of it, and the reconstruction, each twice as large.
        assert items[0]["picture"].size == (3 * 96 + 2 * GAP, 96)
        assert items[0]["output"].endswith("of 36 patches") and items[0]["id"] == "test-0"
        assert book["id"] == "codebook" and book["picture"].size == BARS and book["score"] == found.scores["usage"]
        assert f"of {CODES} codes, perplexity {found.scores['code_perplexity']:.1f}" in book["output"]

    def test_nothing_is_lost_of_features_as_they_are(self, tiny_backbone, data):
        found = Reconstruction(num_examples=12)(tiny_backbone, data)
        bits = 36 * 32 * 32  # patches, width, float32
        expected = {"tokens": 36, "tokens_std": 0, "cosine": 1, "bits": bits, "ratio": 24 * 48 * 48 / bits}
        constant = found.scores.pop("cosine_constant")
        assert found.scores == expected and 0 < constant < 1
        assert len(found.items) == 12

    def test_a_tokenizer_that_does_not_quantize_has_no_codes(self, tiny_backbone, data):
        backbone = attach(tiny_backbone, quantizer=None, selection=AllPatches, pixels=False)
        found = Reconstruction(num_examples=12)(backbone, data)
        assert set(found.scores) == {"tokens", "tokens_std", "cosine", "cosine_constant", "bits", "ratio"}
        assert found.scores["bits"] == 36 * 4 * 32  # vectors of width 4
        assert found.scores["cosine"] < 1 and found.items[0]["picture"].size == (2 * 96 + GAP, 96)

    def test_codes_of_a_grid_are_judged_too(self, tiny_backbone, data):
        backbone = attach(tiny_backbone, quantizer=partial(FSQ, levels=(3, 3)), selection=AllPatches)
        scores = Reconstruction(num_examples=12)(backbone, data).scores
        assert scores["bits"] == pytest.approx(36 * math.log2(9)) and 0 < scores["usage"] <= 1
        assert "objects_correlation" not in scores  # all pictures have as many tokens

    def test_codes_that_no_shift_changes_are_stable(self, tiny_backbone, data):
        plain = Listed([Example(f"{n}", query=(Image.new("RGB", (48, 48), (n, 90, 90)),)) for n in range(0, 200, 50)])
        backbone = attach(tiny_backbone)
        assert Reconstruction()(backbone, plain).scores["stability"] == 1
        shifted = Reconstruction(num_examples=12)(backbone, data).scores["stability"]
        assert 0 < shifted < 1

    def test_tokens_that_follow_the_objects_correlate(self, tiny_backbone, data):
        class Most(LearnedSelection):
            """Keeps the patches that are not of the ground, more of fuller pictures."""

            def decide(self, features, noise=None):
                found = super().decide(features, noise)
                middle = features.median(1, keepdim=True).values
                mask = ((features - middle).norm(dim=-1) > (features - middle).norm(dim=-1).median()).float()
                mask[:, 0] = 1
                return type(found)(mask, found.log_probs)

        scores = Reconstruction(num_examples=12)(attach(tiny_backbone, selection=Most), data).scores
        assert scores["objects_correlation"] > 0.3
        one = Scenes(num_test=6, num_objects=(2, 2))
        assert "objects_correlation" not in Reconstruction()(attach(tiny_backbone), one).scores

    def test_what_can_be_read_in_the_decoded_pictures_is_judged(self, tiny_backbone, data):
        scores = Reconstruction(num_examples=12)(attach(tiny_backbone), data).scores
        assert {"read_exact", "read_shape", "read_color", "read_size", "read_count", "read_relations"} <= set(scores)

    def test_examples_without_pictures_are_refused(self, tiny_backbone):
        with pytest.raises(InputError, match="rebuilds pictures, but example 'a' has none"):
            Reconstruction()(tiny_backbone, Listed([Example("a", captions=("a dog",))]))

    def test_what_cannot_be_rebuilt_is_refused_before_training(self, tiny_path, tiny_backbone, data):
        judge = Reconstruction()
        with pytest.raises(InputError, match="rebuilds pictures, but example 'a' has none"):
            judge.check(Listed([Example("a", captions=("a dog",))]))
        judge.check(data)
        judge.check(Scenes)  # a class: its settings are not known yet
        with torch.device("meta"):
            outline = Backbone(str(tiny_path), fresh=PARTS)
        judge.check_backbone(outline)

        class Mixing(nn.Sequential):
            """A projector that makes of each patch something of all."""

            def forward(self, features):
                return super().forward(features).cumsum(1)

        base = tiny_backbone.model.base_model
        base.multi_modal_projector = Mixing(base.multi_modal_projector)
        with pytest.raises(InputError, match="its projector does not map patch by patch"):
            judge.check_backbone(tiny_backbone)
        in_patches = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
        tiny_backbone.encoder.image_processor = in_patches
        with pytest.raises(InputError, match=r"the processor of .* makes pixel values \(16, 1176\) of one"):
            judge.check_backbone(tiny_backbone)

    def test_the_mode_comes_back_and_statistics_stay(self, tiny_backbone, data):
        backbone = attach(tiny_backbone).train()
        before = {name: value.clone() for name, value in backbone.visual_tokenizer.state_dict().items()}
        Reconstruction(num_examples=4)(backbone, data)
        assert backbone.visual_tokenizer.training
        assert all(torch.equal(before[name], value) for name, value in backbone.visual_tokenizer.state_dict().items())


class TestImageGeneration:
    def test_pictures_are_drawn_from_captions_and_read(self, drawing, data):
        found = ImageGeneration(num_examples=6, batch_size=4, num_pictures=2)(drawing, data)
        examples = data.examples("test")[:6]
        names = {"exact", "shape", "color", "size", "count", "relations"}
        assert (
            set(found.scores) == names | {"tokens"} | {f"shuffled/{name}" for name in names}
            and 1 <= found.scores["tokens"] <= PATCHES
        )
        assert [item["prompt"] for item in found.items] == [example.captions[0] for example in examples]
        assert found.items[1]["picture"].size == (2 * 96 + GAP, 96) and found.items[2]["picture"] is None
        assert found.scores["exact"] == np.mean([item["score"] for item in found.items])
        assert all(isinstance(item["output"], str) for item in found.items)

    def test_captions_are_said_in_the_form_of_targets(self, drawing, data):
        found = ImageGeneration(num_examples=3, seed=7)(drawing, data)
        examples = data.examples("test")[:3]
        assert all(example.target[0] == example.captions[0] and len(example.target) == 2 for example in examples)
        prompts = drawing.encoder.prompts([(Turn("user", example.target),) for example in examples])
        for item, pixels in zip(found.items, drawing.draw(prompts, seed=seed_of(7, "0")).pixels, strict=True):
            assert (np.asarray(item["picture"])[:, -96:] == np.asarray(beside(picture_of(pixels)))).all()

    def test_the_samples_are_those_of_the_seed(self, drawing, data):
        torch.manual_seed(0)
        first = ImageGeneration(num_examples=4)(drawing, data)
        again, other = (ImageGeneration(num_examples=4, seed=seed)(drawing, data) for seed in (0, 5))
        pixels = [[np.asarray(item["picture"]) for item in found.items] for found in (first, again, other)]
        assert all((one == two).all() for one, two in zip(pixels[0], pixels[1], strict=True))
        assert any((one != two).any() for one, two in zip(pixels[0], pixels[2], strict=True))

    def test_batches_of_one_seed_are_not_those_of_another(self, drawing, data):
        seeds = []

        class Noting(type(drawing)):
            def draw(self, prompts, **settings):
                seeds.append(settings["seed"])
                return super().draw(prompts, **settings)

        drawing.__class__ = Noting
        for seed in (0, 1, 2):
            ImageGeneration(num_examples=6, batch_size=2, seed=seed)(drawing, data)
        assert len(set(seeds)) == len(seeds) == 9

    def test_a_painter_of_the_truth_is_always_right(self, drawing, data):
        class Copies(PatchPixels):
            """Paints the pictures of the examples, whatever the codes."""

            def forward(self, features):
                shown = [np.asarray(example.images[0]) for example in data.examples("test")[: len(features)]]
                return torch.tensor(np.stack(shown)).permute(0, 3, 1, 2) / 255

        drawing.visual_tokenizer.pixel_decoder = Copies(32, grid=(6, 6), patch_size=8)
        found = ImageGeneration(num_examples=5)(drawing, data)
        names = ("exact", "shape", "color", "size", "count", "relations")
        assert {name: found.scores[name] for name in names} == dict.fromkeys(names, 1.0)
        examples = data.examples("test")[:5]
        others = [data.drawn(examples[i], examples[(i + 1) % 5].images[0]) for i in range(5)]
        for name in ("exact", "shape", "color", "size", "count"):
            assert found.scores[f"shuffled/{name}"] == pytest.approx(np.mean([each[name] for each in others]))
        assert found.scores["shuffled/exact"] < 1
        assert [item["output"] for item in found.items] == [item["reference"] for item in found.items]
        scores = Reconstruction(num_examples=5)(drawing, data).scores
        assert scores["read_exact"] == 1 and scores["psnr"] == 100 and scores["ssim"] == pytest.approx(1)

    def test_what_cannot_draw_is_refused_by_what_it_lacks(self, tiny_backbone, data, tmp_path):
        judge = ImageGeneration(num_examples=2)
        with pytest.raises(InputError, match="lacks a visual tokenizer, tokens for codes; leave it out"):
            judge(tiny_backbone, data)
        with pytest.raises(InputError, match="lacks a quantizer, a pixel decoder, tokens for codes"):
            judge(attach(tiny_backbone, quantizer=None, pixels=False), data)
        write_tiny_dual(tmp_path, CLIPConfig)
        with pytest.raises(InputError, match="is a dual encoder"):
            judge.check_backbone(DualEncoder(str(tmp_path)))
        with pytest.raises(InputError, match="guidance, top_k and temperature >= 0"):
            ImageGeneration(guidance=-1)

    def test_data_that_cannot_read_pictures_are_refused(self, drawing):
        for data in (Scenes(num_test=2, rendering="textured"), Listed(list(Scenes(num_test=1).examples("test")))):
            with pytest.raises(InputError, match=f"{type(data).__name__}.drawn knows nothing"):
                ImageGeneration()(drawing, data)
        ImageGeneration().check(Scenes)  # a class: its settings are not known yet


def test_panels_are_enlarged_and_large_ones_made_smaller():
    small, large = Image.new("RGB", (48, 24)), Image.new("RGB", (1024, 512))
    assert beside(small).size == (192, 96) and beside(large).size == (256, 128)
    assert beside(small, large).size == (192 + GAP + 256, 128)


def test_dropped_patches_are_pale_and_kept_ones_as_they_are():
    picture, keep = Image.new("RGB", (8, 8), "red"), torch.tensor([True, False, False, True])
    levels = np.asarray(kept_alone(picture, keep))
    assert (levels[:4, :4] == (255, 0, 0)).all() and (levels[4:, 4:] == (255, 0, 0)).all()
    assert (levels[:4, 4:, 1] > 200).all() and (levels[4:, :4, 1] > 200).all()
    assert kept_alone(picture, torch.ones(6, dtype=torch.bool)) is None


def test_pixels_become_levels():
    pixels = torch.tensor([0.0, 0.5, 1.0])[:, None, None].expand(3, 2, 4)
    assert np.asarray(picture_of(pixels)).tolist() == [[[0, 128, 255]] * 4] * 2


@pytest.mark.parametrize("num_codes", [4, 300, 16384])
def test_bars_fall_from_left_to_right(num_codes):
    counts = torch.zeros(num_codes, dtype=torch.long)
    counts[: num_codes // 2] = torch.arange(num_codes // 2) + 1
    dark = np.asarray(code_bars(counts).convert("L"))[20:] < 120
    heights = dark.sum(0)
    left, right = heights[: BARS[0] // 2 - 2], heights[BARS[0] // 2 + 4 :]
    assert left[0] >= 85 and not right.any()
    filled = left[left > 0]
    assert (np.diff(filled) <= 0).all() and filled[-1] < filled[0]
