"""Spoiled pictures: the recorded noise of SeVa's code, Pillow's and colorsys's colours, seeds, what is out of range."""

import colorsys

import numpy as np
import pytest
import skimage
import torch
from PIL import Image, ImageEnhance

from alignlab.functional import (
    adjust_brightness,
    adjust_contrast,
    adjust_gamma,
    adjust_hue,
    adjust_saturation,
    diffusion_noise,
    flip,
    gaussian_blur,
    mask_patches,
    moco,
    random_crop,
)


def test_it_is_the_official_noise(golden):
    for case in golden("preference/seva_diffusion_noise")["cases"]:
        image, noise = torch.tensor(case["inputs"]["image"]), torch.tensor(case["inputs"]["noise"])
        noisy = diffusion_noise(image, case["params"]["noise_step"], num_steps=case["params"]["num_steps"], noise=noise)
        torch.testing.assert_close(noisy, torch.tensor(case["expected"]["noisy"]), rtol=1e-5, atol=1e-6)


def test_shares_by_the_published_steps():
    one, none = torch.ones(1), torch.zeros(1)
    for step, kept, noise in ((1, 1.0, 0.0067), (200, 0.9939, 0.1105), (500, 0.8630, 0.5052), (999, 0.2850, 0.9585)):
        assert diffusion_noise(one, step, noise=none).item() == pytest.approx(kept, abs=1e-4)
        assert diffusion_noise(none, step, noise=one).item() == pytest.approx(noise, abs=1e-4)


def test_a_generator_decides_the_noise():
    image = torch.randn(2, 3, 4, 4)
    drawn = [diffusion_noise(image, 500, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])


@pytest.mark.parametrize("step", [-1, 1000])
def test_a_step_out_of_range_is_refused(step):
    with pytest.raises(ValueError, match="0 <= step < 1000 needed"):
        diffusion_noise(torch.zeros(1), step)


@pytest.fixture
def photo():
    """A real photograph in 8 bits, and as (3, H, W) in [0, 1]."""
    picture = Image.fromarray(skimage.data.astronaut()).resize((40, 30))
    return picture, torch.from_numpy(np.array(picture)).movedim(-1, 0).double() / 255


def near(pixels, picture, steps=1):
    """Equal up to so many of the 255 steps, to which Pillow rounds in between."""
    torch.testing.assert_close(
        255 * pixels, torch.from_numpy(np.array(picture)).movedim(-1, 0).double(), rtol=0, atol=steps
    )


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
def test_brightness_contrast_and_saturation_are_those_of_pillow(photo, factor):
    picture, pixels = photo
    near(adjust_brightness(pixels, factor), ImageEnhance.Brightness(picture).enhance(factor))
    near(adjust_contrast(pixels, factor), ImageEnhance.Contrast(picture).enhance(factor))
    near(adjust_saturation(pixels, factor), ImageEnhance.Color(picture).enhance(factor), steps=1.5)


@pytest.mark.parametrize("turn", [-0.1, 0.0, 0.04, 0.5, 1.0])
def test_hues_turn_as_by_colorsys(photo, turn):
    pixels = photo[1][:, ::3, ::3]
    grey, pure = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.0, 1.0, 0.0])  # no hue, and two colours at the least
    pixels = torch.cat([pixels.flatten(1), torch.stack([grey, pure], 1).double()], 1)[..., None]
    expected = []
    for color in pixels.squeeze(-1).T.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    torch.testing.assert_close(adjust_hue(pixels, turn).squeeze(-1).T, torch.tensor(expected, dtype=torch.float64))


def test_gamma_and_flip_by_hand():
    pixels = torch.tensor([[[0.0, 0.25, 1.0]]])
    torch.testing.assert_close(adjust_gamma(pixels, 0.5), torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert flip(pixels).tolist() == [[[1.0, 0.25, 0.0]]]


def ramps(height, width):
    """Two planes that tell how far down and to the right a pixel's middle is."""
    down = (torch.arange(height, dtype=torch.float64) + 0.5)[:, None].expand(height, width)
    right = (torch.arange(width, dtype=torch.float64) + 0.5).expand(height, width)
    return torch.stack([down, right])


def extent(plane):
    """How much of a ramp is in the picture, in pixels before the crop, from edge to edge."""
    return (plane.max() - plane.min()).item()


def test_crops_have_areas_and_ratios_of_their_range():
    generator = torch.Generator().manual_seed(0)
    shares, ratios, places = [], [], []
    for _ in range(300):
        part = random_crop(ramps(120, 100), (0.2, 0.5), generator=generator)
        assert part.shape == (2, 120, 100)
        # The middles of the outer pixels are half a pixel of the result inside the part.
        height, width = extent(part[0]) * 120 / 119, extent(part[1]) * 100 / 99
        shares.append(height * width / 12000)
        ratios.append(width / height)
        places.append(((part[0].min() + part[0].max()) / 240).item())
    assert 0.19 < min(shares) < 0.23 and 0.47 < max(shares) < 0.51
    assert 0.73 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.36
    assert min(places) < 0.4 and max(places) > 0.6  # they lie anywhere


def test_where_no_part_fits_the_largest_in_the_middle_is_taken():
    part = random_crop(ramps(30, 300), (1.0, 1.0), size=(30, 40), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(part, ramps(30, 300)[..., 130:170])


def test_masked_patches_show_the_mean_colour(photo):
    pixels = photo[1]  # 30 x 40: 4 x 5 patches of 8, those at the bottom of 6 rows
    masked = mask_patches(pixels, 0.3, 8, torch.Generator().manual_seed(0))
    changed = (masked != pixels).any(0)
    patches = {(int(row) // 8, int(column) // 8) for row, column in changed.nonzero()}
    assert len(patches) == 6  # 0.3 of 20
    mean = pixels.mean((1, 2))
    for row, column in patches:
        place = (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        torch.testing.assert_close(masked[:, *place], mean[:, None, None].expand_as(masked[:, *place]))
    assert torch.equal(mask_patches(pixels, 0.0, 8), pixels)


def test_moco_draws_each_change_as_often_as_it_should():
    generator = torch.Generator().manual_seed(0)
    plain = torch.tensor([0.8, 0.3, 0.2], dtype=torch.float64)[:, None, None].expand(3, 12, 12)
    count, grey, same = 600, 0, 0
    for _ in range(count):  # neither crop, blur nor flip changes a picture of one colour
        drawn = moco(plain, generator=generator)
        assert 0 <= drawn.min() and drawn.max() <= 1
        grey += bool((drawn.amax(0) - drawn.amin(0)).max() < 1e-9)
        same += torch.allclose(drawn, plain)
    assert abs(grey / count - 0.2) < 0.05  # three standard deviations are 0.049
    assert abs(same / count - 0.2 * 0.8) < 0.045

    slope = torch.linspace(0.2, 0.8, 24, dtype=torch.float64).expand(3, 24, 24)
    flipped = sum(bool(drawn[:, :, 0].mean() > drawn[:, :, -1].mean()) for drawn in (
        moco(slope, generator=generator) for _ in range(count)
    ))  # fmt: skip
    assert abs(flipped / count - 0.5) < 0.062


def test_moco_blurs_half_of_the_time():
    generator = torch.Generator().manual_seed(0)
    board = ((torch.arange(48)[:, None] // 8 + torch.arange(48) // 8) % 2).double().expand(3, 48, 48)

    def sharpest(pixels):  # the steepest edge, as a share of what there is in the picture
        return ((pixels[..., 1:] - pixels[..., :-1]).abs().max() / (pixels.max() - pixels.min())).item()

    edges = [sharpest(moco(board, generator=generator)) for _ in range(300)]
    # Enlarged by up to sqrt(5), an edge alone is no softer than 0.4; a blur of over 1.2 pixels, 0.42 of all blurs, is.
    assert 0.1 < sum(edge < 0.33 for edge in edges) / len(edges) < 0.5


def test_moco_is_decided_by_its_generator_and_brings_to_a_size(photo):
    drawn = [moco(photo[1].float(), size=16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0].shape == (3, 16, 16)
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])


def test_pictures_of_a_batch_are_changed_alike(photo):
    pixels = photo[1]
    batch = moco(torch.stack([pixels, pixels]), generator=torch.Generator().manual_seed(3))
    one = moco(pixels, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(batch, torch.stack([one, one]))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: random_crop(x, (0.0, 1.0)),
        lambda x: random_crop(x, (0.5, 0.2)),
        lambda x: adjust_gamma(x, 0.0),
        lambda x: mask_patches(x, 1.1, 8),
        lambda x: mask_patches(x, 0.5, 0),
        lambda x: gaussian_blur(x, 0.0),
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(ValueError, match="needed, got"):
        change(torch.rand(3, 8, 8))
