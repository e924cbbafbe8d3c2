"""Visual tokens that are patch features: pooling as recorded of Emu2, and what a folder gives back."""

import json

import pytest
import torch

from alignlab import InputError
from alignlab.modules import ContinuousTokenizer, PatchPixels, PictureTokenizer, VisualTokenizer
from alignlab.modules.tokenizer import LearnedSelection


def test_averages_are_those_of_emu2(golden):
    recorded = golden("localization_rl_metrics/emu_unified_autoregression")["emu2_pooling"]
    patches = torch.tensor(recorded["tower_output_with_cls"])[:, 1:]
    expected = torch.tensor(recorded["expected"])
    made = ContinuousTokenizer(patches.shape[2], patches.shape[1], 7, num_tokens=recorded["n_query"])
    torch.testing.assert_close(made.tokens(patches), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 4, 9])
def test_a_token_is_the_mean_of_its_square_and_goes_back_to_all_of_it(num_tokens):
    features = torch.randn(2, 36, 5, dtype=torch.float64)
    made = ContinuousTokenizer(5, 36, 7, num_tokens=num_tokens).double()
    across = {1: 1, 4: 2, 9: 3}[num_tokens]
    side = 6 // across
    expected = torch.zeros(2, 6, 6, 5, dtype=torch.float64)
    for down in range(6):
        for right in range(6):
            top, left = down // side * side, right // side * side
            square = features.view(2, 6, 6, 5)[:, top : top + side, left : left + side]
            expected[:, down, right] = square.mean((1, 2))
    seen = made(features)
    assert made.is_read and seen.codes is None and seen.counts.tolist() == [num_tokens] * 2
    assert seen.keep.shape == (2, 36) and seen.keep.all() and seen.vectors.shape == (2 * num_tokens, 5)
    torch.testing.assert_close(made.decode(seen.vectors, seen.counts), expected.flatten(1, 2))
    read = made.inputs(features)
    assert torch.equal(read.rows, seen.vectors) and read.keep.sum(1).tolist() == [num_tokens] * 2
    assert read.keep[:, :num_tokens].all()


def test_all_patches_are_what_they_were():
    features = torch.randn(3, 6, 5)  # of no square
    made = ContinuousTokenizer(5, 6, 7)
    seen = made(features)
    assert not made.is_read and made.num_codes == 0 and made.bits == 0
    assert torch.equal(seen.vectors, features.flatten(0, 1))
    assert torch.equal(made.decode(seen.vectors, seen.counts), features)


def test_pictures_are_painted_of_the_tokens():
    made = ContinuousTokenizer(5, 36, 7, num_tokens=9)
    made.pixel_decoder = PatchPixels(5, grid=(3, 3), patch_size=16, hidden=4)
    features = torch.randn(2, 36, 5)
    assert torch.equal(made.pixels(features), made.pixel_decoder(made.tokens(features)))
    assert made.pixels(features).shape == (2, 3, 48, 48)


@pytest.mark.parametrize("pixels", [False, True])
def test_a_folder_gives_back_every_bit(tmp_path, pixels):
    made = ContinuousTokenizer(5, 36, 7, num_tokens=9).double()
    if pixels:
        made.pixel_decoder = PatchPixels(5, grid=(3, 3), patch_size=16, hidden=4).double()
    made.save(tmp_path)
    again = PictureTokenizer.load(tmp_path)
    assert type(again) is ContinuousTokenizer
    assert repr(again) == repr(made) != repr(ContinuousTokenizer(5, 36, 7, num_tokens=4))
    assert (again.dim, again.num_patches, again.width, again.num_tokens) == (5, 36, 7, 9)
    states = made.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys() and len(states[0]) == (7 if pixels else 1)
    assert all(torch.equal(each, states[1][name]) for name, each in states[0].items())
    assert again.predict.weight.dtype == torch.float64
    with pytest.raises(InputError, match="'ContinuousTokenizer' is no VisualTokenizer"):
        VisualTokenizer.load(tmp_path)


def test_folders_say_which_class_they_are_of(tmp_path):
    sizes = {"depth": 1, "num_heads": 1, "mlp_ratio": 1.0, "code_dim": 2}
    VisualTokenizer(4, 9, selection=LearnedSelection, quantizer=None, **sizes).save(tmp_path)
    assert type(PictureTokenizer.load(tmp_path)) is VisualTokenizer
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"class": "PictureTokenizer"}))
    with pytest.raises(InputError, match="'PictureTokenizer' is no PictureTokenizer that is imported, which are Cont"):
        PictureTokenizer.load(tmp_path)
    del config["class"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="'class' is missing"):
        PictureTokenizer.load(tmp_path)


@pytest.mark.parametrize("num_tokens", [0, -4, 5, 16, 25, 64])
def test_what_does_not_divide_the_patches_is_refused(num_tokens):
    with pytest.raises(InputError, match=f"may be 1, 4, 9, 36, not {num_tokens}"):
        ContinuousTokenizer(5, 36, 7, num_tokens=num_tokens)


def test_what_is_no_square_is_not_averaged_and_other_shapes_are_refused():
    with pytest.raises(InputError, match="6 alone, which are no square, not 1"):
        ContinuousTokenizer(5, 6, 7, num_tokens=1)
    with pytest.raises(InputError, match="1 or more, got 5, 0 and 6"):
        ContinuousTokenizer(5, 6, 0)
    made = ContinuousTokenizer(5, 36, 7, num_tokens=9)
    with pytest.raises(InputError, match=r"reads \(P, 36, 5\) patch features, got \(2, 9, 5\)"):
        made(torch.zeros(2, 9, 5))
    with pytest.raises(InputError, match=r"9 to 9 rows of each picture, 17 together as given, got counts \[9, 8\]"):
        made.decode(torch.zeros(17, 5), torch.tensor([9, 8]))
    with pytest.raises(InputError, match="no pixel decoder"):
        made.pixels(torch.zeros(2, 36, 5))
