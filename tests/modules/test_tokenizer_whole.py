"""The whole visual tokenizer: the official pipeline's recorded ids, what is kept apart, and folders."""

import copy
import json
from functools import partial

import pytest
import torch
from tokenizing import MERGER_BLOCK, beneath, blocks, features, predictor, small, tensor, tensors

from alignlab.errors import InputError
from alignlab.functional import cosine_reconstruction_loss, keep_ratio_loss
from alignlab.modules import AllPatches, LearnedSelection, PatchPixels, RandomSelection, VisualTokenizer
from alignlab.modules.quantizers import FSQ, LFQ, CountEMA, GradientCodebook, VectorQuantizer

PAINTER = partial(PatchPixels, grid=(3, 3), patch_size=2, hidden=8)


def test_it_makes_the_ids_of_the_official_code(golden):
    (case,) = golden("adapters_tokenizer/lavit_tokenize_image")["cases"]
    given, sizes, weights = tensors(case["inputs"]), case["config"], tensors(case["weights"])
    made = VisualTokenizer(
        sizes["width"], 9, selection=partial(LearnedSelection, decision="sample", tau=sizes["tau"]),
        quantizer=partial(VectorQuantizer, num_codes=sizes["n_code"]), depth=sizes["layers"],
        num_heads=sizes["heads"], mlp_ratio=sizes["mlp_ratio"], code_dim=sizes["code_dim"], exact_masking=False,
    ).eval()  # fmt: skip
    known = {"threshold": made.selection.threshold, **predictor(beneath(weights, "token_predictor"))}
    made.selection.load_state_dict(known)
    made.merger.load_state_dict(blocks(beneath(weights, "causal_encoder"), MERGER_BLOCK))
    made.to_codes.load_state_dict(beneath(weights, "encode_task_layer"))
    made.quantizer.codebook.copy_(weights["quantize.embedding.weight"])
    found = made(given["encoder_features_with_cls"][:, 1:], given["gumbel_noise"])

    expected = case["expected"]
    torch.testing.assert_close(found.log_probs, tensor(expected["log_probs"]), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.keep.bool(), tensor(expected["keep_mask"]))
    assert torch.equal(found.counts, tensor(expected["token_nums"]))
    ids = torch.cat([tensor(each) for each in expected["llm_ids"]])
    assert torch.equal(found.codes + sizes["id_offset"], ids) and len(ids.unique()) > 1
    torch.testing.assert_close(found.vectors, tensor(expected["z_q"]), rtol=1e-4, atol=1e-5)
    projected = torch.nn.functional.linear(found.merged, weights["vit_proj.weight"], weights["vit_proj.bias"])
    continuous = torch.cat([tensor(each) for each in expected["continuous_embeddings_per_image"]])
    torch.testing.assert_close(projected, continuous, rtol=1e-4, atol=1e-5)


def test_evaluation_gives_the_same_each_time_in_any_order():
    made, x, order = small().eval(), features(), torch.tensor([2, 0, 1])
    first, again, moved = made(x), made(x), made(x[order])
    assert torch.equal(first.codes, again.codes) and torch.equal(first.vectors, again.vectors)
    rows = first.merged.split(first.counts.tolist())
    assert len(set(first.counts.tolist())) > 1
    torch.testing.assert_close(moved.merged, torch.cat([rows[index] for index in order]), rtol=0, atol=1e-12)
    assert torch.equal(moved.counts, first.counts[order]) and torch.equal(moved.keep, first.keep[order])


def test_codes_and_inputs_are_those_of_evaluation_in_training_too():
    made, x = small(), features()
    expected = copy.deepcopy(made).eval()(x)
    codes, counts = made.codes(x)
    inputs = made.inputs(x)
    assert torch.equal(codes, expected.codes) and torch.equal(counts, expected.counts)
    torch.testing.assert_close(inputs.rows, expected.merged, rtol=0, atol=1e-12)
    assert torch.equal(inputs.keep, expected.keep.bool()) and torch.equal(inputs.counts, expected.counts)
    assert made.training and made.quantizer.training and not made.quantizer.counts.any()
    inputs.rows.sum().backward()
    assert made.merger.norm.weight.grad is not None and made.selection.norm.weight.grad is None


def test_what_a_language_model_reads_does_not_train_the_selection():
    made, x = small(selection=partial(LearnedSelection, decision="sample")), features().requires_grad_()
    made.inputs(x).rows.square().sum().backward()
    assert all(each.grad is None for each in made.selection.parameters())
    assert x.grad.any() and made.merger.norm.weight.grad.any()


def test_the_decoder_reads_the_same_of_codes_as_of_vectors():
    made, x = small().eval(), features()
    tokens = made(x)
    expected = made.decode(tokens.vectors, tokens.counts)
    assert expected.shape == (3, 9, 16)
    torch.testing.assert_close(made.decode_codes(tokens.codes, tokens.counts), expected)


def test_without_a_quantizer_rows_of_length_1_go_on():
    made, x = small(quantizer=None), features()
    tokens = made(x)
    assert tokens.codes is None and made.num_codes == 0 and made.bits == 0
    assert not tokens.losses.any() and tokens.losses.shape == tokens.vectors.shape[:1]
    torch.testing.assert_close(tokens.vectors.norm(dim=1), torch.ones(len(tokens.vectors)).double())
    torch.testing.assert_close(tokens.vectors * tokens.projected.norm(dim=1, keepdim=True), tokens.projected)
    for work in (lambda: made.codes(x), lambda: made.decode_codes(torch.zeros(3).long(), torch.ones(3).long())):
        with pytest.raises(InputError, match="needs a quantizer"):
            work()
    made.quantize_by(partial(VectorQuantizer, num_codes=32))
    assert made.num_codes == 32 and made.bits == 5 and made.quantizer.codebook.dtype == torch.float64
    assert made(x).codes.max() < 32


def test_gradients_reach_everything_but_the_frozen_features():
    made, x = small(quantizer=partial(GradientCodebook, num_codes=32)), features()
    made.pixel_decoder = PAINTER(16).double()
    tokens = made(x)
    decoded = made.decode(tokens.vectors, tokens.counts)
    (made.pixels(decoded).sum() + tokens.losses.mean()).backward()
    without = {name for name, each in made.named_parameters() if each.grad is None or not each.grad.any()}
    # A key's bias adds the same to all logits, so a softmax has no gradient for it; rounding may leave some.
    assert all(name.endswith("key.bias") for name in without), without
    assert all(each.grad.isfinite().all() for each in made.parameters() if each.grad is not None)


def test_a_frozen_selection_gets_no_gradient_and_costs_no_dense_pass():
    made, x = small(), features()
    made.selection.requires_grad_(False)
    noise = torch.randn(3, 9, 2)
    tokens = made(x, noise)
    assert not tokens.keep.requires_grad
    made.selection.requires_grad_(True)
    torch.testing.assert_close(made(x, noise).merged, tokens.merged, rtol=0, atol=1e-12)


def test_a_split_merger_trains_apart_from_the_one_that_makes_codes():
    made, x = small().eval(), features()
    expected, codes = made.inputs(x), made.codes(x)
    made.split()
    torch.testing.assert_close(made.inputs(x).rows, expected.rows)
    torch.nn.init.zeros_(made.input_merger.norm.weight)
    made.split()  # again: the copy stays as it is by now
    assert not torch.allclose(made.inputs(x).rows, expected.rows)
    assert torch.equal(made.codes(x)[0], codes[0])


def test_half_precision_is_finite_and_masks_stay_0_and_1():
    for weights in (torch.float32, torch.bfloat16):
        made = small().float().to(weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
            tokens = made(features(8).float())
            decoded = made.decode(tokens.vectors, tokens.counts)
        assert set(tokens.keep.unique().tolist()) == {0.0, 1.0} and tokens.keep.dtype == torch.float32
        assert tokens.losses.dtype == tokens.vectors.dtype == made.quantizer.codebook.dtype == torch.float32
        decoded.float().square().mean().backward()
        assert decoded.isfinite().all()
        assert all(each.grad.isfinite().all() for each in made.selection.parameters())


def test_features_that_are_not_finite_come_to_the_loss():
    made, x = small(), features()
    x[1] = torch.nan
    tokens = made(x)
    decoded = made.decode(tokens.vectors, tokens.counts)
    assert decoded[1].isnan().all() and decoded[[0, 2]].isfinite().all()


def test_no_pictures_are_fine():
    made = small()
    made.pixel_decoder = PAINTER(16).double()
    tokens = made(features(0))
    decoded = made.decode(tokens.vectors, tokens.counts)
    assert decoded.shape == (0, 9, 16) and made.pixels(decoded).shape == (0, 3, 6, 6)
    (decoded.sum() + tokens.losses.sum() + made.pixels(decoded).sum()).backward()
    assert made.inputs(features(0)).rows.shape == (0, 16)


def test_it_learns_to_reconstruct_and_how_much_to_keep():
    torch.manual_seed(0)
    made = VisualTokenizer(16, 9, selection=LearnedSelection, quantizer=None, depth=1, num_heads=2, mlp_ratio=2.0)
    directions = torch.randn(4, 16)
    x = directions[torch.randint(4, (16, 9))]
    optimizer, before = torch.optim.Adam(made.parameters(), lr=3e-3), None
    for _ in range(150):
        tokens = made(x)
        reconstruction = cosine_reconstruction_loss(made.decode(tokens.vectors, tokens.counts), x)
        loss = reconstruction + keep_ratio_loss(tokens.keep, ratio=1 / 3)
        before = reconstruction.item() if before is None else before
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 0.9 and reconstruction < 0.6
    assert 0.2 < tokens.keep.mean() < 0.5


@pytest.mark.parametrize(
    ("selection", "quantizer"),
    [
        (partial(LearnedSelection, decision="topk", ratio=0.4, tau=0.7), partial(VectorQuantizer, num_codes=32)),
        (partial(RandomSelection, ratio=0.5), partial(GradientCodebook, num_codes=8)),
        (AllPatches, partial(CountEMA, num_codes=8)),
        (AllPatches, partial(FSQ, levels=[5, 3])),
        (LearnedSelection, partial(LFQ, bits=4)),
        (LearnedSelection, None),
    ],
)
def test_a_folder_holds_all_of_it_bit_for_bit(tmp_path, selection, quantizer):
    made, x = small(selection=selection, quantizer=quantizer, exact_masking=False), features()
    if quantizer is not None:
        made.quantizer.start(torch.randn(40, 8).double())
    made(x)  # statistics that no update has taken in yet are kept, too
    made.pixel_decoder = PAINTER(16).double()
    made.split()
    made.discrete = True
    torch.nn.init.ones_(made.input_merger.norm.weight)
    made.save(tmp_path / "visual_tokenizer")
    made.save(tmp_path / "visual_tokenizer")  # over what is there
    assert {each.name for each in (tmp_path / "visual_tokenizer").iterdir()} == {"config.json", "model.safetensors"}

    again = VisualTokenizer.load(tmp_path / "visual_tokenizer")
    expected, found = made.state_dict(), again.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], each) and found[name].dtype == each.dtype for name, each in expected.items())
    assert again.discrete and again.settings == made.settings and again.training
    assert again.selection.settings == made.selection.settings and type(again.selection) is type(made.selection)
    made.eval(), again.eval()
    assert torch.equal(again.inputs(x).rows, made.inputs(x).rows)
    tokens, read = made(x, torch.zeros(3, 9, 2)), again(x, torch.zeros(3, 9, 2))
    assert torch.equal(read.vectors, tokens.vectors)
    pixels = (each.pixels(each.decode(tokens.vectors, tokens.counts)) for each in (made, again))
    assert torch.equal(*pixels)
    assert {name for name, each in again.named_parameters() if each.requires_grad} == {
        name for name, each in made.named_parameters() if each.requires_grad
    }


def test_a_plain_folder_says_so(tmp_path):
    small().save(tmp_path)
    again = VisualTokenizer.load(str(tmp_path))
    assert again.input_merger is None and again.pixel_decoder is None and not again.discrete


def damage(**changes):
    def work(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        config = {name: each for name, each in config.items() if each != "gone"}
        (folder / "config.json").write_text(json.dumps(config))

    return work


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (damage(selection={"class": "Best", "settings": {}}), "'Best' is no Selection that is imported.*RandomSel"),
        (damage(quantizer={"class": "LearnedSelection", "settings": {}}), "is no Quantizer that is .*VectorQuantizer"),
        (damage(pixel_decoder={"class": "Painter", "settings": {}}), "'Painter' is no PixelDecoder .* PatchPixels"),
        (damage(selection={"class": "AllPatches", "settings": {"ratio": 1}}), "unexpected keyword argument"),
        (damage(selection={"class": "AllPatches"}), "'settings' is missing"),
        (damage(dim="gone"), "dim"),
        (damage(split="gone"), "'split' is missing"),
        (damage(depth=3), "Missing key"),
        (damage(num_patches=16), "size mismatch"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"1234"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_message(tmp_path, harm, told):
    small().save(tmp_path)
    harm(tmp_path)
    with pytest.raises(InputError, match=told) as raised:
        VisualTokenizer.load(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_bad_input_is_refused():
    made = small()
    with pytest.raises(InputError, match=r"reads \(P, 9, 16\) patch features, got \(3, 8, 16\)"):
        made(features(num_patches=8))
    with pytest.raises(InputError, match="reads"):
        made.inputs(features(dim=12))
    with pytest.raises(InputError, match="no pixel decoder, such as PatchPixels"):
        made.pixels(features())
    with pytest.raises(InputError, match="depth"):
        small(depth=0)


def test_the_size_of_the_official_one():
    with torch.device("meta"):
        made = VisualTokenizer(1408, 256, selection=LearnedSelection, quantizer=None)
    sizes = {name: sum(each.numel() for each in part.parameters()) / 1e6 for name, part in made.named_children()}
    # LaVIT's, in millions: selector 3.2, merger 398, head 2.0, decoder 403 with its queries.
    assert sizes["selection"] == pytest.approx(3.2, abs=0.1) and sizes["to_codes"] == pytest.approx(2.0, abs=0.05)
    assert sizes["merger"] == pytest.approx(398, abs=1) and sizes["decoder"] == pytest.approx(403, abs=1)
