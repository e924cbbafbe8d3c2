"""Preference losses: the recorded values of TRL and of the methods' own code, by hand, and at their limits."""

import math

import pytest
import torch

from alignlab.functional import preference, sequence_logps

NAMES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
         "discopop", "sigmoid_norm")  # fmt: skip
BY_LENGTH, SMOOTHED = ("ipo", "sigmoid_norm"), ("exo_pair", "robust")


def settings_of(name, lengths=(3.0, 5.0), smoothing=0.1):
    given = {}
    if name in BY_LENGTH:
        given |= dict(zip(("chosen_lengths", "rejected_lengths"), map(torch.as_tensor, lengths), strict=True))
    return given | ({"label_smoothing": smoothing} if name in SMOOTHED else {})


def test_every_loss_of_trl_and_its_gradient(golden):
    seen = set()
    for case in golden("preference/trl_dpo_losses")["cases"]:
        given, settings, expected = case["inputs"], case["params"], case["expected"]
        (name, *others) = settings["loss_type"]
        changed = settings["ld_alpha"], settings["use_weighting"], settings["f_divergence_type"] != "reverse_kl"
        if others or name not in NAMES or any(changed):
            continue
        seen.add(name)
        mask = torch.tensor(given["completion_mask"])
        labels = torch.tensor(given["input_ids"]).masked_fill(mask == 0, -100)
        logits = torch.tensor(given["policy_logits"], requires_grad=True)
        chosen, rejected = sequence_logps(logits, labels).chunk(2)
        references = sequence_logps(torch.tensor(given["reference_logits"]), labels).chunk(2)
        more = settings_of(name, mask.sum(1).chunk(2), settings["label_smoothing"])
        loss = getattr(preference, name)(chosen, rejected, *references, beta=settings["beta"], **more).mean()
        assert loss.item() == pytest.approx(expected["loss"], rel=2e-5), case["name"]
        loss.backward()
        torch.testing.assert_close(logits.grad, torch.tensor(expected["grad_policy_logits"]), rtol=1e-4, atol=1e-6)
    assert seen == set(NAMES)


def test_sevas_dpo(golden):
    for case in golden("preference/seva_dpo_loss")["cases"]:
        given, expected, beta = case["inputs"], case["expected"], case["params"]["beta"]
        policy = [torch.tensor(given[f"policy_{side}_logps"], requires_grad=True) for side in ("chosen", "rejected")]
        reference = [torch.tensor(given[f"reference_{side}_logps"]) for side in ("chosen", "rejected")]
        if case["params"]["reference_free"]:
            reference = [torch.zeros_like(each) for each in reference]
        losses = preference.sigmoid(*policy, *reference, beta=beta)
        torch.testing.assert_close(losses, torch.tensor(expected["losses"]))
        losses.mean().backward()
        for side, each in zip(("chosen", "rejected"), policy, strict=True):
            torch.testing.assert_close(each.grad, torch.tensor(expected[f"grad_policy_{side}"]))


def test_mdpo(golden):
    (case,) = golden("preference/mdpo_loss")["cases"]
    given, expected = case["inputs"], case["expected"]
    values = {key: torch.tensor(value) for key, value in given.items()}
    policy = {
        side: values[f"policy_{side}_logps"].requires_grad_() for side in ("chosen", "rejected", "imageless_chosen")
    }
    losses = preference.mdpo(
        policy["chosen"],
        policy["rejected"],
        values["reference_chosen_logps"],
        values["reference_rejected_logps"],
        policy_imageless=policy["imageless_chosen"],
        reference_imageless=values["reference_imageless_chosen_logps"],
        beta=case["params"]["beta"],
    )
    torch.testing.assert_close(losses, torch.tensor(expected["losses"]))
    losses.mean().backward()
    for side, name in (("chosen", "chosen"), ("rejected", "rejected"), ("imageless_chosen", "imageless")):
        torch.testing.assert_close(policy[side].grad, torch.tensor(expected[f"grad_policy_{name}"]))


def test_by_hand():
    # The policy finds the chosen answer likelier by 2 nats than its reference, the rejected one less likely by 1.
    four = [torch.tensor([value]) for value in (-3.0, -6.0, -5.0, -5.0)]
    assert preference.sigmoid(*four, beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert preference.hinge(*four, beta=0.2).item() == pytest.approx(1 - 0.6)
    lengths = {"chosen_lengths": torch.tensor([4]), "rejected_lengths": torch.tensor([2])}
    assert preference.ipo(*four, beta=0.5, **lengths).item() == pytest.approx((0.5 + 0.5 - 1) ** 2)
    assert preference.sppo_hard(*four, beta=0.5).item() == pytest.approx((2 - 1) ** 2 + (-1 + 1) ** 2)
    smooth = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(0.5))
    assert preference.apo_zero(*four, beta=0.5).item() == pytest.approx(1 - smooth[0] + smooth[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_gets_no_gradient_and_each_pair_its_own_loss(name):
    four = [torch.randn(6, requires_grad=True) for _ in range(4)]
    loss, settings = getattr(preference, name), settings_of(name)
    losses = loss(*four, beta=0.3, **settings)
    losses.sum().backward()
    assert losses.shape == (6,) and four[0].grad.any() and four[2].grad is None and four[3].grad is None
    alone = loss(*(each[2:3] for each in four), beta=0.3, **settings)
    torch.testing.assert_close(alone, losses[2:3])


def test_a_policy_that_is_its_reference_is_at_ln_2_exactly():
    chosen, rejected = torch.randn(2, 5) * 100
    assert (preference.sigmoid(chosen, rejected, chosen, rejected, beta=0.1) == math.log(2)).all()
    assert (preference.sigmoid(chosen, chosen, rejected, rejected, beta=0.1) == math.log(2)).all()


def test_extreme_margins_do_not_overflow():
    zero, far = torch.zeros(1), torch.full((1,), 6e4)
    assert preference.sigmoid(zero, far, zero, zero, beta=0.1).item() == pytest.approx(6e3)
    assert preference.sigmoid(far, zero, zero, zero, beta=0.1).item() == 0


def test_no_flipped_labels_are_dpo():
    four = torch.randn(4, 7)
    torch.testing.assert_close(preference.robust(*four, beta=0.2), preference.sigmoid(*four, beta=0.2))


def test_an_empty_answer_counts_as_one_token():
    four = torch.randn(4, 1)
    found = [preference.ipo(*four, beta=0.2, chosen_lengths=torch.tensor([3]), rejected_lengths=torch.tensor([length]))
             for length in (0, 1)]  # fmt: skip
    assert torch.equal(*found)


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: preference.sigmoid(x, x, x, x[:1], beta=0.1), "four"),
    (lambda x: preference.sigmoid(x, x, x, x, beta=0.0), "beta > 0"),
    (lambda x: preference.robust(x, x, x, x, beta=0.1, label_smoothing=0.5), "< 0.5"),
    (lambda x: preference.exo_pair(x, x, x, x, beta=0.1, label_smoothing=0.0), "0 < label_smoothing"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2))
