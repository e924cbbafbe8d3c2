"""Which patches are kept: recorded values of the official code, and what it does not promise."""

import pytest
import torch
from tokenizing import enlarge, features, predictor, tensor, tensors

from alignlab.errors import InputError
from alignlab.functional import held_constants
from alignlab.modules import AllPatches, LearnedSelection, RandomSelection
from alignlab.modules.tokenizer.learned import sampled


def learned(**settings):
    torch.manual_seed(0)
    selection = LearnedSelection(16, **settings).double()
    enlarge(selection)
    return selection


def test_the_network_is_the_official_one(golden):
    case = golden("adapters_tokenizer/lavit_token_predictor")["cases"][
        0
    ]  # the other has a policy, which LaVIT never has
    assert case["case"] == "predictor policy=ones"
    selection = LearnedSelection(case["config"]["embed_dim"])
    selection.load_state_dict({"threshold": selection.threshold, **predictor(tensors(case["weights"]))})
    given = tensors(case["inputs"])
    x = given["x"].requires_grad_()
    found = selection.log_probs(x)
    torch.testing.assert_close(found, tensor(case["expected"]["log_probs"]), rtol=1e-4, atol=1e-5)
    (found * given["cotangent"]).sum().backward()
    expected = tensors(case["expected_grads"])
    torch.testing.assert_close(x.grad, expected.pop("x"), rtol=1e-4, atol=1e-5)
    for name, gradient in predictor(expected).items():
        torch.testing.assert_close(selection.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-5)


def test_sampling_is_the_official_one_but_for_empty_pictures(golden):
    cases = {case["case"]: case for case in golden("adapters_tokenizer/lavit_selector_gumbel")["cases"]}
    assert len(cases) == 4
    for name, case in cases.items():
        given = tensors(case["inputs"])
        log_probs = given["log_probs"].requires_grad_()
        found = sampled(log_probs, given["gumbel_noise"], tau=case["config"]["tau"])
        expected = tensor(case["expected"]["keep_mask"])
        if name == "none kept":
            assert not expected.any()
            expected.scatter_(1, log_probs[..., 0].argmax(1, keepdim=True), 1.0)
        assert torch.equal(found, expected)
        if "expected_grads" in case and case["expected_grads"]:
            (found * given["cotangent"]).sum().backward()
            gradient = tensor(case["expected_grads"]["log_probs"])
            torch.testing.assert_close(log_probs.grad, gradient, rtol=1e-4, atol=1e-5)


def test_forcing_a_patch_changes_no_gradient():
    log_probs = torch.log_softmax(torch.randn(1, 4, 2), -1)
    cotangent, gradients = torch.randn(1, 4), []
    for drop in (50.0, 0.0):
        given = log_probs.clone().requires_grad_()
        noise = torch.tensor([0.0, drop]).expand(1, 4, 2)
        mask = sampled(given, noise, tau=100.0)
        (mask * cotangent).sum().backward()
        gradients.append(given.grad)
        if drop:
            assert mask.sum() == 1 and mask[0, log_probs[0, :, 0].argmax()] == 1
            soft = torch.softmax((given.detach() + noise) / 100.0, -1).requires_grad_()
            expected = torch.autograd.grad((soft[..., 0] * cotangent).sum(), soft)[0]
            jacobian = soft * (expected - (expected * soft).sum(-1, keepdim=True)) / 100.0
            torch.testing.assert_close(given.grad, jacobian.detach())
    assert all(each.abs().min() > 0 for each in gradients)


def test_held_the_mask_changes_as_its_gradient_says():
    selection, x, noise = learned(), features(), torch.randn(3, 9, 2).double()
    weight, cotangent = selection.linears[0].weight, torch.randn(3, 9).double()
    with held_constants() as tape:
        (selection(x, noise).mask * cotangent).sum().backward()
        direction, sums = torch.randn_like(weight), []
        for step in (1e-5, -1e-5):
            tape.rewind()
            with torch.no_grad():
                weight.add_(direction, alpha=step)
                sums.append((selection(x, noise).mask * cotangent).sum())
                weight.sub_(direction, alpha=step)
    assert float((sums[0] - sums[1]) / 2e-5) == pytest.approx(float((weight.grad * direction).sum()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_is_0_and_1_exactly_and_one_a_picture_at_least(dtype):
    selection = LearnedSelection(16).to(dtype)
    torch.nn.init.constant_(selection.linears[-1].bias[:1], -4.0)  # nearly all dropped
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        kept = selection(torch.randn(500, 9, 16).to(dtype))
    assert kept.mask.dtype == kept.log_probs.dtype == torch.float32 and kept.mask.requires_grad
    assert set(kept.mask.flatten().tolist()) == {0.0, 1.0} and kept.mask.sum(1).min() == 1
    assert 0 < kept.mask.mean() < 0.2


def test_training_samples_what_it_says_is_probable():
    selection, x = learned(), features(1)
    masks = selection(x.expand(4000, -1, -1))
    # 4000 draws of each patch: a deviation of at most 0.008.
    torch.testing.assert_close(masks.mask.mean(0), masks.log_probs[0, :, 0].exp(), atol=0.04, rtol=0)


def test_given_noise_decides():
    selection, x = learned(), features()
    noise = torch.randn(3, 9, 2)
    assert torch.equal(selection(x, noise).mask, selection(x, noise).mask)
    noise[0, :, 0] += 50
    assert selection(x, noise).mask[0].all()


def test_threshold_keeps_what_is_more_probable_than_not():
    selection, x = learned().eval(), features(20)
    with torch.no_grad():  # so that about half are
        keep, drop = selection.log_probs(x).unbind(-1)
        selection.linears[-1].bias[0] -= (keep - drop).median()
    kept = selection(x)
    expected = kept.log_probs[..., 0].exp() > 0.5
    assert expected.any(1).all() and not expected.all()
    assert torch.equal(kept.mask.bool(), expected) and torch.equal(selection(x).mask, kept.mask)
    assert not kept.mask.requires_grad


def test_threshold_keeps_the_most_probable_where_none_is_probable():
    selection = learned().eval()
    torch.nn.init.constant_(selection.linears[-1].bias[:1], -100.0)
    kept = selection(features())
    assert torch.equal(kept.mask.argmax(1), kept.log_probs[..., 0].argmax(1)) and kept.mask.sum(1).tolist() == [1] * 3


@pytest.mark.parametrize(("ratio", "count"), [(1 / 3, 3), (0.01, 1), (1.0, 9), (0.4, 4)])
def test_topk_keeps_the_most_probable_share(ratio, count):
    kept = learned(decision="topk", ratio=ratio).eval()(features())
    for mask, score in zip(kept.mask, kept.log_probs[..., 0], strict=True):
        assert set(mask.nonzero()[:, 0].tolist()) == set(score.topk(count).indices.tolist())


def test_topk_takes_the_first_of_equal_patches():
    selection = learned(decision="topk").eval()
    assert selection(torch.ones(1, 60, 16).double()).mask.tolist() == [[1.0] * 20 + [0.0] * 40]


def test_sample_samples_in_evaluation_too():
    selection, x = learned(decision="sample").eval(), features()
    assert not torch.equal(selection(x).mask, selection(x).mask)


def test_pictures_do_not_act_on_one_another():
    order = torch.tensor([2, 0, 1])
    x = features()
    for selection in (learned().eval(), learned(decision="topk").eval(), RandomSelection(16), AllPatches(16)):
        assert torch.equal(selection(x[order]).mask, selection(x).mask[order])
    noise = torch.randn(3, 9, 2)
    assert torch.equal(learned()(x[order], noise[order]).mask, learned()(x, noise).mask[order])


def test_random_patches_are_the_same_for_the_same_features():
    selection, x = RandomSelection(16, ratio=0.5), features(300)
    kept = selection(x)
    assert kept.log_probs is None and not list(selection.parameters()) and not selection.state_dict()
    assert kept.mask.sum(1).tolist() == [4] * 300
    torch.rand(1)  # global randomness has no say
    assert torch.equal(RandomSelection(16, ratio=0.5).eval()(x).mask, kept.mask)
    # 126 sets of 4 among 9, and every patch in 4 of 9 pictures.
    assert len({tuple(row) for row in kept.mask.tolist()}) > 60
    torch.testing.assert_close(kept.mask.mean(0), torch.full((9,), 4 / 9).double(), atol=0.12, rtol=0)
    nudged = selection(x * (1 + 1e-7 * torch.randn_like(x)))
    assert (nudged.mask == kept.mask).all(1).double().mean() > 0.98


def test_all_patches():
    mask = AllPatches(16)(features(2).bfloat16()).mask
    assert mask.dtype == torch.float32 and mask.tolist() == [[1.0] * 9] * 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LearnedSelection(16, decision="best"), "threshold, topk, sample"),
        (lambda: LearnedSelection(6), "multiple of 4, got 6"),
        (lambda: LearnedSelection(16, tau=0.0), "above 0, got 0.0"),
        (lambda: LearnedSelection(16, ratio=1.5), "up to 1, got 1.5"),
        (lambda: RandomSelection(16, ratio=0.0), "RandomSelection.ratio"),
    ],
)
def test_bad_settings_are_refused(make, told):
    with pytest.raises(InputError, match=told):
        make()
