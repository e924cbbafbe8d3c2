"""Numbers of the three corners: by hand, at their limits, and against recorded outputs of taming and torchmetrics."""

import math

import pytest
import torch

from alignlab.evaluation.triangle import (
    code_bits,
    compression,
    continuous_bits,
    feature_cosines,
    psnr,
    quantization_error,
    ssim,
)


@pytest.fixture(scope="module")
def record(golden):
    return golden("localization_rl_metrics/tokenizer_triangle")


@pytest.fixture(scope="module")
def pictures(record):
    return torch.tensor(record["inputs"]["reconstruction"]), torch.tensor(record["inputs"]["image"])


def test_pictures_agree_with_recorded_outputs(record, pictures):
    expected = record["expected"]
    assert psnr(*pictures).shape == ssim(*pictures).shape == (2,)
    # Each picture's own ratio; that of the one error over both is another number.
    assert psnr(*pictures).mean().item() == pytest.approx(expected["psnr_per_image_mean"], rel=1e-6)
    assert psnr(*pictures).mean().item() != pytest.approx(expected["psnr_batch"], rel=1e-6)
    assert ssim(*pictures).mean().item() == pytest.approx(expected["ssim"], rel=1e-6)


def test_features_and_bits_agree_with_recorded_outputs(record):
    derived = record["derived_not_official"]
    student, teacher = (torch.tensor(record["inputs"][name])[None] for name in ("student", "teacher"))
    assert feature_cosines(student, teacher).item() == pytest.approx(derived["feature_cosine"], abs=1e-6)
    assert code_bits(derived["tokens_per_image"], 16) == derived["nominal_bits_per_image"]
    bits = code_bits(derived["tokens_per_image"], record["expected"]["perplexity"])
    assert bits == pytest.approx(derived["entropy_bits_per_image"], rel=1e-6)


def test_equal_pictures_have_a_hundred_decibels(pictures):
    assert psnr(pictures[0], pictures[0]).tolist() == [100.0, 100.0]
    assert ssim(pictures[0], pictures[0]).tolist() == pytest.approx([1.0, 1.0])
    # An error of 0.1 everywhere: 10 log10(1 / 0.01).
    assert psnr(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.6)).item() == pytest.approx(20, abs=1e-4)


def test_a_picture_is_scored_the_same_alone(pictures):
    for measure in (psnr, ssim):
        alone = torch.cat([measure(one[None], other[None]) for one, other in zip(*pictures, strict=True)])
        assert torch.allclose(alone, measure(*pictures))


def test_bits_are_of_tokens_and_ratios_of_pixels():
    assert code_bits(12, 256) == 96
    assert code_bits(12, 1) == code_bits(12, 0.5) == 0  # one code tells nothing; a rounding below it, no less
    # Emu2: 64 vectors of 1792 in 16 bits.
    assert continuous_bits(64, 1792, torch.bfloat16) == 64 * 1792 * 16
    assert compression(48, 48, 96) == 24 * 48 * 48 / 96 == 576
    assert math.isfinite(compression(48, 48, 0))


def test_the_error_of_quantising_is_a_share_of_all_squares():
    vectors, quantized = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 3.0], [0.0, 2.0]])
    # (1 + 4) / 25; row by row the second has no share.
    assert quantization_error(vectors, quantized).item() == pytest.approx(0.2)
    assert quantization_error(vectors, vectors).item() == 0
    assert quantization_error(vectors.half(), quantized.half()).dtype == torch.float32
