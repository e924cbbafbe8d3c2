import math

import pytest
import torch

from alignlab.functional import sequence_logps, supervised, token_logps


def test_hand_computed_token_logps():
    # Position 0 predicts label 1: softmax of (ln 1, ln 3) gives 1/4 and 3/4; position 1 predicts nothing trained on.
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 9.0], [0.0, 0.0]]])
    labels = torch.tensor([[0, 1, -100]])
    assert token_logps(logits, labels)[0].tolist() == pytest.approx([math.log(3 / 4), 0.0])
    assert supervised(labels).tolist() == [[True, False]]


def test_hand_computed_sequence_logps():
    # Uniform over 4 words: each token costs ln 4; two supervised tokens in row 0, none in row 1.
    logits, labels = torch.zeros(2, 3, 4), torch.tensor([[-100, 1, 2], [-100, -100, -100]])
    assert sequence_logps(logits, labels).tolist() == pytest.approx([-2 * math.log(4), 0.0])
    assert sequence_logps(logits, labels, average=True).tolist() == pytest.approx([-math.log(4), 0.0])


def test_the_first_label_is_never_scored():
    logits = torch.randn(1, 3, 5)
    assert torch.equal(
        token_logps(logits, torch.tensor([[0, 1, 2]])), token_logps(logits, torch.tensor([[-100, 1, 2]]))
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unsupervised_logits_never_reach_value_or_gradient(bad):
    logits = torch.zeros(1, 3, 4)
    logits[0, 1:] = bad
    logits.requires_grad_()
    logps = token_logps(logits, torch.tensor([[-100, 2, -100]]))
    logps.sum().backward()
    assert logps.tolist() == [[pytest.approx(-math.log(4)), 0.0]]
    assert torch.equal(logits.grad[0, 1:], torch.zeros(2, 4))


def test_half_precision_is_widened_and_float64_kept():
    labels = torch.tensor([[0, 1]])
    assert token_logps(torch.zeros(1, 2, 3, dtype=torch.bfloat16), labels).dtype == torch.float32
    assert token_logps(torch.zeros(1, 2, 3, dtype=torch.float64), labels).dtype == torch.float64


def test_rows_without_targets_keep_a_graph():
    logits = torch.zeros(1, 2, 3, requires_grad=True)
    sequence_logps(logits, torch.full((1, 2), -100)).sum().backward()
    assert torch.equal(logits.grad, torch.zeros(1, 2, 3))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(1, 2, 3\) and \(1, 4\)"):
        token_logps(torch.zeros(1, 2, 3), torch.zeros(1, 4, dtype=torch.long))


def test_matches_seva_sequence_logps(golden):
    compared = 0
    for case in golden("preference/seva_sequence_logps")["cases"]:
        logits, labels = torch.tensor(case["inputs"]["logits"]), torch.tensor(case["inputs"]["labels"])
        got = sequence_logps(logits, labels, average=case["params"].get("average_log_prob", False))
        for mine, official, row in zip(got.tolist(), case["expected"]["logps"], labels, strict=True):
            if official is None:  # the official mean of no token is 0/0; ours is 0
                assert mine == 0.0 and (row[1:] == -100).all()
            else:
                assert mine == pytest.approx(official, rel=2e-5, abs=2e-5)
                compared += 1
    assert compared > 10


def test_matches_trl_selective_log_softmax(golden):
    for case in golden("preference/trl_selective_log_softmax")["cases"]:
        logits, index = case["inputs"]["logits"], case["inputs"]["index"]
        dtype = torch.float64 if case["name"] == "float64" else torch.float32
        if case["params"].get("temperature", 1.0) != 1.0 or case["name"] == "bfloat16":
            continue
        logits = torch.tensor(logits, dtype=dtype)
        logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)  # position t predicts label t + 1
        labels = torch.tensor(index)
        labels = torch.cat([torch.zeros_like(labels[:, :1]), labels], 1)
        expected = torch.tensor(next(v for v in case["expected"].values() if isinstance(v, list)), dtype=dtype)
        torch.testing.assert_close(token_logps(logits, labels), expected, rtol=2e-5, atol=2e-6)
