"""Rows back to features, and features to pixels."""

import pytest
import torch
from tokenizing import DECODER_BLOCK, blocks, enlarge, features, tensor, tensors
from torch import nn

from alignlab.errors import InputError
from alignlab.modules import PatchPixels
from alignlab.modules.tokenizer import FeatureDecoder


def decoder(**settings):
    torch.manual_seed(0)
    sizes = {"code_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0} | settings
    made = FeatureDecoder(16, 9, **sizes).double()
    enlarge(made)
    return made


def vectors(number, seed=2):
    return torch.randn(number, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_official_one(golden):
    (case,) = golden("adapters_tokenizer/lavit_feature_decoder")["cases"]
    given, sizes = tensors(case["inputs"]), case["config"]
    made = FeatureDecoder(sizes["embed_dim"], sizes["num_patches"], code_dim=sizes["in_chans"], depth=sizes["depth"],
                          num_heads=sizes["num_heads"], mlp_ratio=sizes["mlp_ratio"])  # fmt: skip
    made.head[2] = nn.Linear(sizes["embed_dim"], sizes["out_dim"])  # the recording has another width here
    made.load_state_dict(blocks(tensors(case["weights"]), DECODER_BLOCK))
    x = given["quantized_tokens_flat"].requires_grad_()
    found = made(x, given["token_nums"])
    torch.testing.assert_close(found, tensor(case["expected"]["reconstructed_features"]), rtol=1e-4, atol=1e-5)
    (found * given["cotangent"]).sum().backward()
    gradient = tensor(case["expected_grads"]["quantized_tokens_flat"])
    torch.testing.assert_close(x.grad, gradient, rtol=1e-4, atol=1e-5)


def test_pictures_do_not_act_on_one_another():
    made, x, counts = decoder(), vectors(13), torch.tensor([3, 9, 1])
    together = made(x, counts)
    for index, rows in enumerate(x.split(counts.tolist())):
        alone = made(rows, counts[index : index + 1])
        torch.testing.assert_close(together[index], alone[0], rtol=0, atol=1e-12)


def test_rows_are_told_apart_by_their_rank():
    made, x, count = decoder(), vectors(4), torch.tensor([4])
    swapped = made(x[[1, 0, 2, 3]], count)
    assert not torch.allclose(swapped, made(x, count), atol=1e-3)
    nn.init.zeros_(made.positions)
    torch.testing.assert_close(made(x[[1, 0, 2, 3]], count), made(x, count), rtol=0, atol=1e-12)


def test_every_patch_reads_every_row():
    made, x, count = decoder(), vectors(4).requires_grad_(), torch.tensor([4])
    for patch in range(9):
        (gradient,) = torch.autograd.grad(made(x, count)[0, patch].square().sum(), x)
        assert (gradient.abs().sum(1) > 1e-6).all()


@pytest.mark.parametrize("counts", [[3, 0], [10, 1], [2, 2], [4, -1]])
def test_other_counts_are_refused(counts):
    with pytest.raises(InputError, match="1 to 9 rows of each picture, 3 together as given"):
        decoder()(vectors(3), torch.tensor(counts))


def pixels(**settings):
    torch.manual_seed(0)
    return PatchPixels(16, **{"grid": (2, 3), "patch_size": 4, "hidden": 8} | settings).double()


def test_a_patch_is_painted_in_its_place_from_what_is_around_it():
    made, x = pixels(), features(2, num_patches=6)
    found = made(x)
    assert found.shape == (2, 3, 8, 12) and 0 < found.min() and found.max() < 1
    changed = x.clone()
    changed[0, 5] += 1.0  # the last patch: below and right; its neighbours are 1, 2 and 4
    moved = (made(changed) != found).any(1)
    tiles = moved.unflatten(2, (3, 4)).unflatten(1, (2, 4)).any(-1).any(2)
    assert tiles[0].tolist() == [[False, True, True], [False, True, True]] and not tiles[1].any()


def test_pixels_of_a_patch_lie_row_by_row_as_torch_shuffles_them():
    made, x = pixels(), features(2, num_patches=6)
    around = nn.functional.unfold(x.mT.unflatten(-1, (2, 3)), 3, padding=1)  # (P, C 9, N), by channel
    around = around.unflatten(1, (-1, 9)).permute(0, 3, 2, 1).flatten(2)  # (P, N, 9 C), by place
    painted = made.paint(around).mT.unflatten(-1, (2, 3))
    expected = nn.functional.pixel_shuffle(painted, 4).sigmoid()
    torch.testing.assert_close(made(x), expected)


def test_half_precision_is_painted_in_float32():
    assert pixels().bfloat16()(features(1, num_patches=6)).dtype == torch.float32
    assert pixels()(features(1, num_patches=6)).dtype == torch.float64


def test_pixels_learn_a_picture():
    made, x = pixels(), features(1, num_patches=6)
    goal = torch.rand(1, 3, 8, 12).double()
    optimizer, losses = torch.optim.Adam(made.parameters(), lr=0.02), []
    for _ in range(100):
        losses.append((made(x) - goal).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 4


def test_other_features_are_refused():
    with pytest.raises(InputError, match="2 x 3 patches of width 16, got features of 9 patches of width 16"):
        pixels()(features(1))
    with pytest.raises(InputError, match="all 1 or more, got"):
        pixels(grid=(0, 3))
