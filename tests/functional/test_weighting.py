"""CAL's weights and loss, by hand and against what the official code gave."""

import pytest
import torch

from alignlab.functional import logit_gain, supervised, visual_weights, weighted_mean, weighted_nll


def logits_of(*rows):
    return torch.tensor(rows, dtype=torch.float64)[None]


def test_the_gain_is_of_raw_logits_at_the_label():
    seeing, blind = logits_of([1, 5, 2], [0, 0, 9], [0, 0, 0]), logits_of([1, 2, 2], [4, 0, 1], [0, 0, 0])
    assert logit_gain(seeing, blind, torch.tensor([[0, 1, 2]])).tolist() == [[5 - 2, 9 - 1]]
    # Where nothing is trained on, id 0 is looked up.
    assert logit_gain(seeing, blind, torch.tensor([[0, -100, 2]])).tolist() == [[1 - 1, 9 - 1]]


def test_weights_by_hand():
    gain = torch.tensor([[0.0, 4.0, 9.0, 2.0], [3.0, 0.0, 0.0, 7.0]])
    kept = torch.tensor([[True, True, True, False], [False, True, True, True]])
    # clamped to [1, 5]: 1 4 5 | 1 1 5, each averaged over the kept neighbours of its row
    masked = [[(1 + 4) / 2, (1 + 4 + 5) / 3, (4 + 5) / 2, 0], [0, (1 + 1) / 2, (1 + 1 + 5) / 3, (1 + 5) / 2]]
    torch.testing.assert_close(visual_weights(gain, kept), torch.tensor(masked))
    # flat: 1 4 5 2 3 1 1 5 in one row, and what is not kept among the neighbours
    flat = [[(1 + 4) / 2, (1 + 4 + 5) / 3, (4 + 5 + 2) / 3, 0], [0, (3 + 1 + 1) / 3, (1 + 1 + 5) / 3, (1 + 5) / 2]]
    torch.testing.assert_close(visual_weights(gain, kept, pooling="flat"), torch.tensor(flat))
    torch.testing.assert_close(visual_weights(gain, kept, window=1), gain.clamp(1, 5) * kept)


def test_equal_bounds_weigh_all_the_same():
    gain, kept = torch.randn(3, 6), torch.rand(3, 6) < 0.5
    torch.testing.assert_close(visual_weights(gain, kept, low=2.0, high=2.0), 2.0 * kept)


def test_rows_and_untrained_positions_do_not_mix_when_masked():
    gain, kept = 1 + 4 * torch.rand(2, 6, dtype=torch.float64), torch.ones(2, 6, dtype=torch.bool)
    kept[0, 3:] = False
    other = gain.clone()
    other[1] = 6 - gain[1]
    other[0, 3:] = 6 - gain[0, 3:]
    assert torch.equal(visual_weights(gain, kept)[0], visual_weights(other, kept)[0])
    assert not torch.equal(
        visual_weights(gain, kept, pooling="flat")[0], visual_weights(other, kept, pooling="flat")[0]
    )


def test_the_loss_by_hand_and_its_two_means():
    # p = 1/2 at both tokens of the first row, 1/4 at the one of the second
    logits = torch.zeros(2, 3, 4, dtype=torch.float64)
    logits[0, :, 2:] = -1e9
    labels = torch.tensor([[0, 0, 1], [0, -100, 3]])
    weights = torch.tensor([[1.0, 3.0], [7.0, 2.0]], dtype=torch.float64)
    log2 = torch.tensor(2.0, dtype=torch.float64).log()
    batch = (1 * log2 + 3 * log2 + 2 * 2 * log2) / (1 + 3 + 2)
    torch.testing.assert_close(weighted_nll(logits, labels, weights, eps=0.0), batch)
    sample = (log2 + 2 * log2) / 2
    torch.testing.assert_close(weighted_nll(logits, labels, weights, normalize="sample", eps=0.0), sample)


def test_nothing_to_train_on_is_zero_with_a_graph():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    labels = torch.full((2, 3), -100)
    for normalize in ("batch", "sample"):
        loss = weighted_nll(logits, labels, torch.ones(2, 2), normalize=normalize)
        loss.backward()
        assert loss == 0 and not logits.grad.any()


def test_weights_and_gain_have_no_gradient():
    logits, blind = torch.randn(2, 2, 5, 7, requires_grad=True)
    labels = torch.randint(7, (2, 5))
    weights = visual_weights(logit_gain(logits, blind, labels), supervised(labels))
    assert not weights.requires_grad


def test_it_is_the_official_loss(golden):
    cases = golden("preference/cal_weights_loss")["cases"]
    for case in cases:
        given, settings, expected = case["inputs"], case["params"], case["expected"]
        logits, blind = (torch.tensor(given[f"logits_{name}_image"]) for name in ("with", "without"))
        logits.requires_grad_()
        labels = torch.tensor(given["labels"])
        labels = labels.masked_fill(labels < 0, -100)  # the official file marks the picture's places by -300
        kept = supervised(labels)
        bounds = {"low": settings["clamp_min"], "high": settings["clamp_max"], "window": settings["pool_window"]}
        weights = visual_weights(logit_gain(logits, blind, labels), kept, pooling="flat", **bounds)
        torch.testing.assert_close(weights, torch.tensor(expected["weights"]) * kept, rtol=2e-5, atol=2e-5)
        loss = weighted_nll(logits, labels, weights, eps=settings["eps"])
        assert loss.item() == pytest.approx(expected["loss"], rel=2e-5, abs=1e-7)
        loss.backward()
        torch.testing.assert_close(logits.grad, torch.tensor(expected["grad_logits_with_image"]), rtol=1e-4, atol=1e-6)
    assert len(cases) == 10


@pytest.mark.parametrize("settings", [{"window": 2}, {"window": 0}, {"low": 3.0, "high": 2.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="an odd window >= 1 and low <= high needed"):
        visual_weights(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), **settings)


def test_the_packed_mean_is_that_of_the_rows_it_knows():
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 2.0])
    rows = torch.tensor([0, 0, 5])
    assert weighted_mean(losses, weights, rows, eps=0.0) == pytest.approx((1 + 6 + 8) / 6)
    assert weighted_mean(losses, weights, rows, normalize="sample", eps=0.0) == pytest.approx((7 / 4 + 4) / 2)
    none = weighted_mean(losses.requires_grad_(), torch.zeros(3), rows, eps=0.0)
    none.backward()
    assert none == 0 and not losses.grad.any()
