"""Spoiled pictures: the recorded noise of SeVa's code, seeds, and what is out of range."""

import pytest
import torch

from alignlab.functional import diffusion_noise


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
