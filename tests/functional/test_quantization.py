"""Quantisation: the recorded values of official code, by hand, and at its limits."""

import math

import pytest
import torch
from test_adapting import tensors
from torch.nn import functional as F

from alignlab.functional import (
    code_usage,
    cosine_reconstruction_loss,
    entropy,
    fsq,
    fsq_values,
    held_constants,
    k_means,
    keep_ratio_loss,
    lfq_codes,
    lfq_entropy,
    lfq_values,
    nearest_codes,
    norm_ema_update,
    normalize,
    rotation_trick,
    straight_through,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def cases(golden, name):
    for case in golden(f"adapters_tokenizer/{name}")["cases"]:
        yield case, *(tensors(case.get(part, {})) for part in ("inputs", "weights", "expected", "expected_grads"))


def test_codes_are_those_of_lavit(golden):
    seen = []
    for case, given, weights, expected, _ in cases(golden, "lavit_vector_quantizer"):
        codebook = weights["embedding.weight"]
        codes = nearest_codes(normalize(given["z"].reshape(-1, 4)), codebook)
        seen.append(case["case"])
        if "indices" not in expected:  # a row of zeros, near the shortest code
            assert codebook[codes].isfinite().all()
            continue
        assert codes.tolist() == expected["indices"].tolist()
        assert torch.equal(codebook[codes], expected["z_q"].reshape(-1, 4))
        if "argmax_cosine" in expected:
            assert codes.tolist() != expected["argmax_cosine"].tolist()
    assert len(seen) == 5


@pytest.mark.parametrize("num_codes", [2, 63, 64, 65, 500, 4096])
def test_codes_are_the_nearest_of_all(num_codes):
    torch.manual_seed(num_codes)
    x, codebook = torch.randn(700, 5, dtype=torch.float64), torch.randn(num_codes, 5, dtype=torch.float64)
    expected = torch.cdist(x, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
    assert torch.equal(nearest_codes(x, codebook), expected)


@pytest.mark.parametrize("num_codes", [50, 1000, 3001])
def test_of_equal_codes_the_first_is_taken(num_codes):
    torch.manual_seed(0)
    some = torch.randn(7, 32)
    codebook = some.repeat(-(-num_codes // 7), 1)[:num_codes]
    assert nearest_codes(torch.randn(300, 32), codebook).max() < 7


def test_codes_do_not_depend_on_precision_around_them():
    torch.manual_seed(0)
    x, codebook = normalize(torch.randn(500, 32)), normalize(torch.randn(4096, 32))
    expected = nearest_codes(x, codebook)
    rounded = (x.bfloat16() @ codebook.bfloat16().T).argmax(-1)
    assert not torch.equal(rounded, expected)  # so there is something to lose
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(nearest_codes(x, codebook), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(torch.__version__ < "2.9", reason="set in another way")
def test_precision_set_for_one_kind_of_device_is_left_as_it_was():
    backend = torch.backends.cuda.matmul
    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    try:
        nearest_codes(torch.randn(3, 2), torch.randn(4, 2))
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_codes():
    torch.manual_seed(0)
    x, codebook = normalize(torch.randn(5000, 32)), normalize(torch.randn(16384, 32))
    torch.set_float32_matmul_precision("high")
    try:
        found = nearest_codes(x.cuda(), codebook.cuda()).cpu()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (found == nearest_codes(x, codebook)).float().mean() > 0.9999  # TF32 gives one in a thousand another


def test_codes_of_nothing_and_of_what_is_not_finite():
    codebook = torch.randn(70, 3)
    assert nearest_codes(torch.empty(0, 3), codebook).shape == (0,)
    strange = torch.tensor([[math.nan] * 3, [math.inf] * 3, [-math.inf, 0.0, math.inf], [1e38] * 3])
    codes = nearest_codes(strange, codebook)
    assert codes.min() >= 0 and codes.max() < 70


def test_norm_ema_is_that_of_beit(golden):
    number = 0
    for case, given, weights, expected, _ in cases(golden, "beit2_norm_ema_quantizer"):
        x = normalize(given["z_bchw"].permute(0, 2, 3, 1).reshape(-1, 4))
        codes = nearest_codes(x, weights["codebook"])
        assert codes.tolist() == expected["indices"].tolist()
        if "train" in case["case"]:
            found = norm_ema_update(weights["codebook"], x, codes, decay=case["config"]["decay"])
            torch.testing.assert_close(found, expected["codebook_after"], **CLOSE)
            number += 1
    assert number == 3


def test_norm_ema_by_hand():
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    x = torch.tensor([[0.0, -1.0], [0.0, -1.0], [0.6, 0.8], [1.0, 0.0], [-1.0, 0.0]])
    found = norm_ema_update(codebook, x, torch.tensor([0, 0, 1, 2, 2]), decay=0.5)
    # (0.5, -0.5) and (0.3, 0.9) of length 1; two rows that cancel each other leave the third code where it is.
    expected = [[0.5**0.5, -(0.5**0.5)], [0.1**0.5, 0.9**0.5], [-1.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_k_means_is_that_of_beit(golden):
    ((_, given, _, expected, _),) = cases(golden, "beit2_kmeans_cosine")
    means, counts = k_means(given["samples"], given["samples"][given["initial_indices"]])
    torch.testing.assert_close(means, expected["means"], **CLOSE)
    assert counts.tolist() == expected["bins"].tolist()


def test_k_means_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 1.0], [10.0, 3.0]])
    means, counts = k_means(x, torch.tensor([[1.0, 1.0], [9.0, 9.0], [-50.0, 0.0]]), cosine=False)
    assert means.tolist() == [[1.0, 0.0], [10.0, 2.0], [-50.0, 0.0]]  # the last has no rows and stays
    assert counts.tolist() == [2, 2, 0]


def test_fsq_is_the_library_s(golden):
    number = 0
    for case, given, _, expected, gradients in cases(golden, "vqp_fsq"):
        z, levels = given["z"].requires_grad_(), case["config"]["levels"]
        values, codes = fsq(z, levels)
        torch.testing.assert_close(values, expected["codes"], **CLOSE)
        assert codes.tolist() == expected["indices"].tolist()
        torch.testing.assert_close(fsq_values(codes, levels), expected["codes_from_indices"], **CLOSE)
        assert torch.equal(fsq_values(codes, levels), values)
        (values * given["cotangent"]).sum().backward()
        torch.testing.assert_close(z.grad, gradients["z"], **CLOSE)
        number += 1
    assert number == 3


@pytest.mark.parametrize("levels", [[3], [4, 3], [8, 5, 6]])
def test_fsq_reaches_every_code_and_no_other(levels):
    torch.manual_seed(0)
    _, codes = fsq(6 * torch.rand(20000, len(levels)) - 3, levels)
    assert codes.unique().tolist() == list(range(math.prod(levels)))
    ends, _ = fsq(torch.tensor([[1e4], [-1e4]]).expand(2, len(levels)), levels)
    assert ends.abs().max() == 1  # however far out, and 4 levels are -1, -1/2, 0, 1/2
    _, strange = fsq(torch.tensor([[math.nan] * len(levels)]), levels)
    assert 0 <= strange.item() < math.prod(levels)


def test_lfq_is_the_library_s(golden):
    number = 0
    for case, given, _, expected, gradients in cases(golden, "vqp_lfq"):
        settings, x = case["config"], given["x"].requires_grad_()
        bits, scale = settings["dim"], settings["dim"] ** -0.5 if settings["spherical"] else 1.0
        rows = x.reshape(-1, bits)
        rows = normalize(rows) if settings["spherical"] else rows
        codes = lfq_codes(rows)
        assert codes.tolist() == expected["indices"].flatten().tolist()
        values = lfq_values(codes, bits, scale=scale)
        torch.testing.assert_close(values.reshape(x.shape), expected["quantized"], **CLOSE)
        own, summed = lfq_entropy(rows, scale=scale, inverse_temperature=settings["inv_temperature"])
        spread = entropy(summed / len(rows))
        commitment = F.mse_loss(rows, values)
        # The library takes no logarithm below log 1e-5: 64 codes below that may differ by 64e-5 log(1e5) at most.
        torch.testing.assert_close(own.mean(), expected["per_sample_entropy"], rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(spread, expected["batch_entropy"], rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(commitment, expected["commitment"], **CLOSE)
        loss = 0.1 * (own.mean() - spread) + 0.25 * commitment
        torch.testing.assert_close(loss, expected["aux_loss"], rtol=1e-4, atol=4e-5)
        given_gradient = (straight_through(rows, values).reshape(x.shape) * given["cotangent"]).sum()
        (loss + given_gradient).backward()
        torch.testing.assert_close(x.grad, gradients["x"], rtol=1e-3, atol=1e-4)
        number += 1
    assert number == 2


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_lfq_entropies_are_those_of_all_codes_written_down(bits):
    torch.manual_seed(0)
    x = torch.randn(6, bits, dtype=torch.float64, requires_grad=True)
    patterns = lfq_values(torch.arange(2**bits), bits, scale=0.5, dtype=torch.float64)
    p = (2 * 3 * x @ patterns.T).softmax(-1)
    own, summed = lfq_entropy(x, scale=0.5, inverse_temperature=3.0)
    torch.testing.assert_close(own, torch.special.entr(p).sum(-1))
    torch.testing.assert_close(summed, p.sum(0))
    (found,) = torch.autograd.grad(own.sum() - entropy(summed / 6), x)
    (expected,) = torch.autograd.grad(torch.special.entr(p).sum() - torch.special.entr(p.mean(0)).sum(), x)
    torch.testing.assert_close(found, expected)


def test_lfq_at_its_limits():
    x = torch.tensor([[1e4, -1e4], [0.0, 0.0]], requires_grad=True)
    own, summed = lfq_entropy(x, scale=1.0, inverse_temperature=100.0)
    torch.testing.assert_close(own, torch.tensor([0.0, 2 * math.log(2)]))  # decided; all four codes alike
    torch.testing.assert_close(summed, torch.tensor([0.25, 0.25, 1.25, 0.25]))
    (own.sum() - entropy(summed / 2)).backward()
    assert x.grad.isfinite().all()


def test_rotation_trick_is_the_library_s(golden):
    number = 0
    for case, given, weights, expected, gradients in cases(golden, "vqp_vector_quantize"):
        if "rotation_trick=True" in case["case"]:
            x = given["x"].requires_grad_()
            rows = x.reshape(-1, 4)
            rows = normalize(rows) if case["config"]["use_cosine_sim"] else rows
            chosen = weights["embed"][nearest_codes(rows, weights["embed"])]
            out = rotation_trick(rows, chosen)
            torch.testing.assert_close(out.reshape(x.shape), expected["quantized"], **CLOSE)
            loss = case["config"]["commitment_weight"] * F.mse_loss(rows, chosen)
            ((out.reshape(x.shape) * given["cotangent"]).sum() + loss).backward()
            torch.testing.assert_close(x.grad, gradients["x"], **CLOSE)
            number += 1
    assert number == 2


def test_rotation_trick_is_finite_where_it_is_undefined():
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    out = rotation_trick(x, torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    out.sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_straight_through_is_the_value_exactly_with_the_gradient_of_x(dtype):
    x = (100 * torch.randn(50)).to(dtype).requires_grad_()
    value = torch.randn(50).to(dtype).requires_grad_()
    out = straight_through(x, value)
    assert torch.equal(out, value)
    out.backward(torch.arange(50.0).to(dtype))
    assert x.grad.tolist() == list(range(50)) and value.grad is None


def test_straight_through_declares_what_it_holds():
    x = torch.tensor([0.2, 0.9], dtype=torch.float64)
    with held_constants() as tape:
        before = straight_through(x, x.round())
        tape.rewind()
        after = straight_through(x + 0.3, (x + 0.3).round())
    torch.testing.assert_close(after - before, torch.full_like(x, 0.3))  # as the derivative says, though one rounds up


def test_keep_ratio_is_that_of_dynamic_vit(golden):
    number = 0
    for case, given, _, expected, gradients in cases(golden, "keep_ratio_loss"):
        keep, settings = given["keep_mask"].requires_grad_(), case["config"]
        loss = keep_ratio_loss(keep, ratio=settings["rho"], weight=settings["lambda"], reduction=settings["reduction"])
        torch.testing.assert_close(loss, expected["loss"], **CLOSE)
        loss.backward()
        torch.testing.assert_close(keep.grad, gradients["keep_mask"], **CLOSE)
        number += 1
    assert number == 8


def test_keep_ratio_by_hand():
    keep = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert keep_ratio_loss(keep, ratio=0.5).item() == 0.5  # 2 (0.5^2 + 0.5^2) / 2
    assert keep_ratio_loss(keep, ratio=0.5, reduction="batch_mean").item() == 0
    none = torch.empty(0, 4, requires_grad=True)
    keep_ratio_loss(none).backward()
    assert none.grad.shape == (0, 4)


def test_reconstruction_is_that_of_vq_kd(golden):
    ((_, given, _, expected, gradients),) = cases(golden, "vqkd_cosine_rec_loss")
    prediction = given["rec"].requires_grad_()
    loss = cosine_reconstruction_loss(prediction, given["target"])
    torch.testing.assert_close(loss, expected["loss"], **CLOSE)
    loss.backward()
    torch.testing.assert_close(prediction.grad, gradients["rec"], **CLOSE)


def test_reconstruction_of_rows_without_a_direction():
    prediction = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [3.0, 0.0]], requires_grad=True)
    loss = cosine_reconstruction_loss(prediction, torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(2 / 3) and not prediction.grad[:2].any()
    none = torch.empty(0, 2, requires_grad=True)
    cosine_reconstruction_loss(none, none).backward()


def test_usage_by_hand():
    used, effective = code_usage(torch.tensor([0, 0, 1, 1, 2, 2]), 4)
    assert used.item() == 0.75 and effective.item() == pytest.approx(3)
    used, effective = code_usage(torch.tensor([3, 3]), 4)
    assert used.item() == 0.25 and effective.item() == pytest.approx(1)
    used, effective = code_usage(torch.empty(0, dtype=torch.long), 4)
    assert used.item() == 0 and effective.item() == 1
