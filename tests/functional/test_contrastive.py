import math

import pytest
import torch

from alignlab.functional import info_nce, normalize, similarity_distillation


def test_hand_computed_loss():
    # Cosines: query 0 has 1 with its target and 0 with the other, scale ln 3: softmax (3, 1) / 4.
    rows = torch.eye(2, dtype=torch.float64)
    assert info_nce(rows, rows, scale=math.log(3)).item() == pytest.approx(-math.log(3 / 4))


def test_indistinguishable_targets_give_chance():
    rows = normalize(torch.ones(5, 3))
    assert info_nce(rows, rows, scale=30.0, symmetric=True).item() == pytest.approx(math.log(5))


def test_batch_of_one_is_free():
    row = normalize(torch.randn(1, 4)).requires_grad_()
    loss = info_nce(row, row.detach(), scale=10.0)
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(row.grad, torch.zeros_like(row))


def test_further_targets_are_negatives_and_labels_name_the_positive():
    queries, targets = torch.eye(2), torch.cat([torch.zeros(1, 2), torch.eye(2)])
    named = info_nce(queries, targets, scale=math.log(2), labels=torch.tensor([1, 2]))
    assert named.item() == pytest.approx(-math.log(2 / 4))  # softmax over (1, 2, 1)
    assert info_nce(queries, targets, scale=math.log(2)).item() != pytest.approx(named.item())


def test_symmetric_is_the_mean_of_both_directions():
    torch.manual_seed(0)
    queries, targets = normalize(torch.randn(4, 6)), normalize(torch.randn(4, 6))
    both = (info_nce(queries, targets, scale=7.0) + info_nce(targets, queries, scale=7.0)) / 2
    torch.testing.assert_close(info_nce(queries, targets, scale=7.0, symmetric=True), both)


def test_symmetric_with_shuffled_targets_and_labels_is_unchanged():
    torch.manual_seed(0)
    queries, targets = normalize(torch.randn(4, 6)), normalize(torch.randn(4, 6))
    order = torch.tensor([2, 0, 3, 1])
    labels = order.argsort()
    torch.testing.assert_close(
        info_nce(queries, targets[order], scale=7.0, labels=labels, symmetric=True),
        info_nce(queries, targets, scale=7.0, symmetric=True),
    )


def test_half_precision_does_not_overflow():
    rows = torch.full((2, 64), 30.0, dtype=torch.float16)
    assert info_nce(rows, rows, scale=100.0).isfinite()


@pytest.mark.parametrize(
    ("queries", "targets", "symmetric"), [((2, 3), (2, 4), False), ((3, 2), (2, 2), False), ((2, 2), (3, 2), True)]
)
def test_shapes_that_do_not_fit_are_refused(queries, targets, symmetric):
    with pytest.raises(ValueError, match="got"):
        info_nce(torch.zeros(queries), torch.zeros(targets), scale=1.0, symmetric=symmetric)


def _tensor(value, dtype):
    return torch.tensor(value, dtype=getattr(torch, dtype), requires_grad=True)


def _compare(case, loss, inputs, tolerance):
    loss.backward()
    torch.testing.assert_close(loss.item(), case["expected"]["loss"], **tolerance)
    for name, tensor in inputs.items():
        if case["expected"]["grads"].get(name) is not None:
            expected = torch.tensor(case["expected"]["grads"][name], dtype=tensor.dtype)
            torch.testing.assert_close(tensor.grad, expected, **tolerance)


@pytest.mark.parametrize("name", ["contrastive/open_clip_ClipLoss", "contrastive/llm2clip_stage2_ClipLoss"])
def test_matches_open_clip_and_eva_clip(golden, name):
    file = golden(name)
    compared = 0
    for case in file["cases"]:
        if case["dtype"] == "float16":
            continue  # recorded to show an overflow, which the upcast avoids
        inputs = {key: _tensor(value, case["dtype"]) for key, value in case["inputs"].items()}
        loss = info_nce(
            inputs["image_features"],
            inputs["text_features"],
            scale=inputs["logit_scale"],
            symmetric=True,
            label_smoothing=case["params"].get("smoothing", 0.0),
        )
        inputs.pop("logit_bias", None)  # a constant bias cancels in the softmax
        _compare(case, loss, inputs, file["tolerance"][case["dtype"]])
        compared += 1
    assert compared >= 3


def test_matches_vlm2vec_with_shared_hard_negatives(golden):
    file = golden("contrastive/vlm2vec_InBatch")
    compared = 0
    for case in file["cases"]:
        if "raises" in case["expected"] or case["params"]["reduction"] != "mean":
            continue
        inputs = {key: _tensor(value, case["dtype"]) for key, value in case["inputs"].items()}
        labels = torch.arange(len(inputs["x"])) * (len(inputs["y"]) // len(inputs["x"]))
        loss = info_nce(inputs["x"], inputs["y"], scale=1 / case["params"]["temperature"], labels=labels)
        _compare(case, loss, inputs, file["tolerance"][case["dtype"]])
        compared += 1
    assert compared >= 5


def test_info_nce_keeps_its_precision_under_autocast():
    queries, targets = (normalize(torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))) for seed in (0, 1))
    expected = info_nce(queries, targets, scale=100.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(info_nce(queries, targets, scale=100.0), expected)
        narrow = torch.nn.functional.cross_entropy(100 * queries @ targets.T, torch.arange(16))
    assert abs(narrow - expected) > 1e-3  # what autocast would have made of it


def test_distillation_beside_clip_matches_open_clip(golden):
    """Its second term is the teacher's cross-entropy with the student: our divergence plus the teacher's entropy."""
    file = golden("contrastive/open_clip_DistillClipLoss")
    compared = 0
    for case in file["cases"]:
        inputs = {key: _tensor(value, case["dtype"]) for key, value in case["inputs"].items()}
        images, texts = inputs["image_features"], inputs["text_features"]
        teacher = inputs["dist_image_features"].detach(), inputs["dist_text_features"].detach()
        scales = {"scale": inputs["logit_scale"], "teacher_scale": inputs["dist_logit_scale"].detach()}
        apart = [
            similarity_distillation(student, known, student_columns=of, teacher_columns=known_of, **scales)
            for student, of, known, known_of in ((images, texts, *teacher), (texts, images, *teacher[::-1]))
        ]
        logits = scales["teacher_scale"] * teacher[0] @ teacher[1].T
        entropy = [torch.distributions.Categorical(logits=each).entropy().mean() for each in (logits, logits.T)]
        distilled = (sum(apart) + sum(entropy)) / 2
        torch.testing.assert_close(
            distilled.item(), case["expected"]["distill_loss"], **file["tolerance"][case["dtype"]]
        )
        loss = info_nce(images, texts, scale=inputs["logit_scale"], symmetric=True) + distilled
        _compare(case, loss, inputs, file["tolerance"][case["dtype"]])
        compared += 1
    assert compared >= 2
