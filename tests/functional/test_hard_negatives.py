"""Hard negatives, the sigmoid loss, distillation and soft labels, by hand and against what official code gave."""

import math

import pytest
import torch
from torch.nn import functional as F

from alignlab.functional import (
    hard_negative_info_nce,
    hard_negatives,
    info_nce,
    multi_positive_info_nce,
    normalize,
    sigmoid_contrastive,
    similarity_distillation,
    soft_label_kl,
)


def inputs_of(case):
    return {key: torch.tensor(value, dtype=getattr(torch, case["dtype"]), requires_grad=True)
            for key, value in case["inputs"].items()}  # fmt: skip


def close(case, file, loss, expected, gradients, inputs):
    tolerance = file["tolerance"][case["dtype"]]
    torch.testing.assert_close(loss.item(), expected, **tolerance)
    if not gradients:
        return
    given = [inputs[name] for name in gradients]
    for (name, recorded), found in zip(gradients.items(), torch.autograd.grad(loss, given), strict=True):
        torch.testing.assert_close(found, torch.tensor(recorded, dtype=found.dtype), msg=name, **tolerance)


def rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64))


class TestHardNegatives:
    # Query 0: positive 0.5; 0.9 is above it by more than the margin; 0.4 and 0.1 are left.
    cosines = torch.tensor([[0.5, 0.9, 0.4, 0.1], [0.2, 0.6, 0.65, 0.3]])

    def test_the_hardest_that_are_not_taken_for_right(self):
        hard, missing = hard_negatives(self.cosines, num_hard=2, margin=0.1)
        assert hard.tolist() == [[2, 3], [2, 3]] and not missing.any()  # 0.65 is above 0.6, but within the margin
        hard, missing = hard_negatives(self.cosines, num_hard=9, margin=0.0)
        assert missing.tolist() == [[False, False, True, True], [False, False, True, True]]
        assert hard[:, :2].tolist() == [[2, 3], [3, 0]]

    def test_what_is_excluded_is_no_candidate_and_labels_name_the_positive(self):
        exclude = torch.tensor([[False, False, True, False]] * 2)
        assert hard_negatives(self.cosines, num_hard=1, exclude=exclude)[0].tolist() == [[3], [3]]
        hard, _ = hard_negatives(self.cosines, num_hard=1, labels=torch.tensor([1, 3]), margin=1.0)
        assert hard.tolist() == [[0], [2]]

    def test_the_loss_by_hand(self):
        queries = torch.eye(2, dtype=torch.float64)
        targets = self.cosines.double().T  # (4, 2), so that the products are the cosines above
        loss = hard_negative_info_nce(queries, targets, scale=10.0, num_hard=1)
        expected = [-math.log(1 / (1 + math.exp(10 * (0.4 - 0.5)))), -math.log(1 / (1 + math.exp(10 * (0.65 - 0.6))))]
        assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-6)

    def test_with_all_negatives_and_no_filter_it_is_info_nce(self):
        queries, targets = rows(5, 8), rows(9, 8, seed=1)
        hard = hard_negative_info_nce(queries, targets, scale=7.0, num_hard=100, margin=2.0)
        torch.testing.assert_close(hard, info_nce(queries, targets, scale=7.0))

    def test_a_learned_scale_gets_a_gradient_though_candidates_are_missing(self):
        scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
        hard_negative_info_nce(rows(4, 3), rows(4, 3, seed=1), scale=scale, num_hard=3, margin=-0.2).backward()
        assert scale.grad.isfinite()

    def test_nothing_to_compare_with_is_zero_with_a_graph(self):
        row = rows(1, 4).requires_grad_()
        loss = hard_negative_info_nce(row, row.detach())
        loss.backward()
        assert loss.item() == 0 and torch.equal(row.grad, torch.zeros_like(row))

    def test_matches_the_paper_s_rule(self, golden):
        file, compared = golden("contrastive/unime_stage2_paper_semantics"), 0
        for case in file["cases"]:
            inputs, parameters = inputs_of(case), case["params"]
            loss = hard_negative_info_nce(
                inputs["x"], inputs["y"], scale=1 / parameters["temperature"], num_hard=parameters["topk"],
                margin=parameters["threshold_value"], fill=parameters["fill"],
            )  # fmt: skip
            recorded = {name: value for name, value in case["expected"]["grads"].items() if value is not None}
            close(case, file, loss, case["expected"]["loss_mean_over_rows_with_negatives"], recorded, inputs)
            compared += 1
        assert compared >= 12

    def test_matches_the_official_file_where_it_has_candidates_and_not_where_it_has_not(self, golden):
        file, compared, leaks = golden("contrastive/unime_stage2_BatchRank"), 0, 0
        for case in file["cases"]:
            inputs, parameters = inputs_of(case), case["params"]
            if "raises" in case["expected"]:
                continue  # more hard negatives than samples
            loss = hard_negative_info_nce(
                inputs["x"], inputs["y"], scale=1 / parameters["temperature"], num_hard=parameters["topk"],
                margin=parameters["threshold_value"],
            )  # fmt: skip
            loss = loss * (len(inputs["x"]) if parameters["reduction"] == "sum" else 1)
            if min(case["derived"]["survivors_per_row"]) < parameters["topk"]:
                assert loss.item() < case["expected"]["loss"]  # there the positive and the filtered ones come back
                leaks += 1
            else:
                known = case["deterministic"]
                recorded = {name: value for name, value in case["expected"]["grads"].items() if known[f"grad_{name}"]}
                close(case, file, loss, case["expected"]["loss"], recorded, inputs)
                compared += 1
        assert compared >= 9 and leaks >= 3


class TestExclude:
    def test_what_is_excluded_is_out_of_the_denominator(self):
        queries, targets = torch.eye(3), torch.eye(3)
        exclude = torch.tensor([[True, True, False]] + [[False] * 3] * 2)
        loss = info_nce(queries, targets, scale=math.log(2), exclude=exclude)  # a positive is never excluded
        assert loss.item() == pytest.approx((-math.log(2 / 3) - 2 * math.log(2 / 4)) / 3)

    def test_excluding_nothing_changes_nothing_with_smoothing_either(self):
        queries, targets = rows(4, 6), rows(4, 6, seed=1)
        nothing = torch.zeros(4, 4, dtype=torch.bool)
        for symmetric in (False, True):
            settings = {"scale": 9.0, "label_smoothing": 0.2, "symmetric": symmetric}
            torch.testing.assert_close(
                info_nce(queries, targets, exclude=nothing, **settings), info_nce(queries, targets, **settings)
            )

    def test_smoothing_spreads_over_what_is_left_and_both_directions_exclude(self):
        queries, targets = rows(3, 6), rows(3, 6, seed=1)
        exclude = torch.tensor([[False, False, True], [False, False, False], [False, False, False]])
        logits = 9.0 * queries @ targets.T
        rows_kept = [logits[0, :2], logits[1], logits[2]]
        columns_kept = [logits[:, 0], logits[:, 1], logits[1:, 2]]
        places = ((rows_kept, (0, 1, 2)), (columns_kept, (0, 1, 1)))
        expected = sum(
            F.cross_entropy(kept[None], torch.tensor([at]), label_smoothing=0.1)
            for ways, ats in places for kept, at in zip(ways, ats, strict=True)
        ) / 6  # fmt: skip
        found = info_nce(queries, targets, scale=9.0, exclude=exclude, symmetric=True, label_smoothing=0.1)
        torch.testing.assert_close(found, expected)

    def test_matches_llm2clip_with_explicit_negatives(self, golden):
        file, compared = golden("contrastive/llm2clip_cc_HardNegativeNLL"), 0
        for case in file["cases"]:
            inputs = inputs_of(case)
            queries, *targets = (normalize(each) for each in inputs.values())
            loss = info_nce(queries, torch.cat(targets), scale=case["params"]["scale"])
            recorded = case["expected"]["grads"]
            if case["name"].startswith("zero_"):  # where the official gradient is large, ours is 0 on purpose
                (row,) = (inputs["d_reps_neg"] == 0).all(1).nonzero().flatten().tolist()
                assert max(map(abs, recorded["d_reps_neg"][row])) > 9
                recorded["d_reps_neg"][row] = [0.0] * len(recorded["d_reps_neg"][row])
            close(case, file, loss, case["expected"]["loss"], recorded, inputs)
            compared += 1
        assert compared >= 9

    def test_matches_e5v(self, golden):
        file, compared = golden("contrastive/e5v_nli"), 0
        for case in file["cases"]:
            inputs = inputs_of(case)
            queries, *targets = (normalize(each) for each in inputs.values())
            loss = info_nce(queries, torch.cat(targets), scale=1 / case["params"]["temperature"])
            close(case, file, loss, case["expected"]["loss"], case["expected"]["grads"], inputs)
            compared += 1
        assert compared == 3


def test_mismatched_counts_are_refused():
    few, many = rows(2, 3), rows(4, 3)
    for loss in (info_nce, hard_negative_info_nce):
        with pytest.raises(ValueError, match="4 queries need a target each, got 2"):
            loss(many, few, scale=1.0)
        with pytest.raises(ValueError, match=r"queries \(B, D\) and targets \(K, D\) needed"):
            loss(many, rows(4, 2), scale=1.0)
    with pytest.raises(ValueError, match="got 2 texts for 4 images"):
        sigmoid_contrastive(many, few, scale=1.0, bias=0.0)
    assert sigmoid_contrastive(many, few, scale=1.0, bias=0.0, negatives_only=True) > 0


def test_a_process_without_rows_has_a_loss_of_zero():
    none, some = rows(2, 3)[:0].requires_grad_(), rows(4, 3)
    for loss in (
        info_nce(none, some, scale=1.0),
        info_nce(none, some, scale=1.0, exclude=torch.zeros(0, 4, dtype=torch.bool)),
        sigmoid_contrastive(none, some, scale=1.0, bias=0.0),
        hard_negative_info_nce(none, some),
    ):
        loss.backward()
        assert loss == 0


class TestMultiplePositives:
    # Query 0 has the positives 0 and 1, query 1 the positive 2 and no other negative than 0, query 2 no positive.
    cosines = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4], [0.0, 0.1, 0.2]], dtype=torch.float64)
    positives = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
    exclude = torch.tensor([[False, False, False], [False, True, False], [False, False, False]])

    def loss(self, cosines, scale=10.0):
        eye = torch.eye(3, dtype=torch.float64)
        return multi_positive_info_nce(eye, cosines.T, scale=scale, positives=self.positives, exclude=self.exclude)

    def test_by_hand(self):
        # query 0: log(1 + e^(1-9)) and log(1 + e^(1-5)), their mean; query 1: log(1 + e^(2-4)); query 2 does not count
        first = (math.log1p(math.exp(-8)) + math.log1p(math.exp(-4))) / 2
        second = math.log1p(math.exp(-2))
        assert self.loss(self.cosines).item() == pytest.approx((first + second) / 2)

    def test_one_positive_each_is_info_nce(self):
        queries, targets = rows(5, 4), rows(5, 4, seed=1)
        eye = torch.eye(5, dtype=torch.bool)
        loss = multi_positive_info_nce(queries, targets, scale=7.0, positives=eye, exclude=eye)
        torch.testing.assert_close(loss, info_nce(queries, targets, scale=7.0))

    def test_nobody_to_compare_with_is_zero_with_a_graph_and_no_gradient(self):
        texts = rows(2, 4).requires_grad_()
        pair = torch.tensor([[False, True], [True, False]])
        loss = multi_positive_info_nce(texts, texts, scale=50.0, positives=pair, exclude=torch.ones_like(pair))
        loss.backward()
        assert loss == 0 and texts.grad.abs().sum() == 0
        texts.grad = None
        none = multi_positive_info_nce(texts, texts, scale=50.0, positives=~pair & pair, exclude=pair)
        none.backward()
        assert none == 0 and texts.grad.abs().sum() == 0


class TestSigmoid:
    def test_by_hand(self):
        images, texts = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        loss = sigmoid_contrastive(images, texts, scale=math.log(3), bias=0.0)
        assert loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))

    def test_matches_open_clip(self, golden):
        file = golden("contrastive/open_clip_SigLipLoss")
        for case in file["cases"]:
            inputs = inputs_of(case)
            loss = sigmoid_contrastive(
                inputs["image_features"], inputs["text_features"], scale=inputs["logit_scale"],
                bias=inputs["logit_bias"], negatives_only=case["params"]["negative_only"],
            )  # fmt: skip
            close(case, file, loss, case["expected"]["loss"], case["expected"]["grads"], inputs)


class TestDistillation:
    def test_the_teacher_s_own_geometry_costs_nothing(self):
        rotation = torch.linalg.qr(rows(6, 6, seed=3))[0]
        loss = similarity_distillation(rows(5, 6) @ rotation, rows(5, 6))
        assert loss.item() == pytest.approx(0, abs=1e-12)

    def test_by_hand_without_the_row_itself(self):
        # Row 0 has only row 1 beside itself, so both distributions are certain; with itself they are not.
        student, teacher = rows(2, 4), rows(2, 4, seed=1)
        assert similarity_distillation(student, teacher, include_self=False).item() == pytest.approx(0, abs=1e-12)
        assert similarity_distillation(student, teacher).item() > 0

    def test_columns_of_all_processes_and_the_place_of_the_rows_among_them(self):
        student, teacher = rows(6, 4), rows(6, 5, seed=1)
        for include_self in (True, False):
            whole = similarity_distillation(student, teacher, reduction="sum", include_self=include_self)
            parts = [
                similarity_distillation(
                    student[part], teacher[part], reduction="sum", include_self=include_self,
                    student_columns=student, teacher_columns=teacher, labels=torch.arange(6)[part],
                )
                for part in (slice(0, 2), slice(2, 6))
            ]  # fmt: skip
            torch.testing.assert_close(sum(parts), whole)

    def test_matches_the_recorded_readings(self, golden):
        file, compared = golden("contrastive/unime_stage1_distill"), 0
        for case in file["cases"]:
            for reading, recorded in case["expected"].items():
                if not reading.startswith(("kl_", "no_self_kl_")):
                    continue  # the printed equation, and another library's cross-entropy
                inputs = inputs_of(case)
                *_, direction, reduction = reading.replace("kl_", "kl ").replace("_batchmean", " batchmean").replace(
                    "_sum", " sum").split()  # fmt: skip
                loss = similarity_distillation(
                    normalize(inputs["student"]), normalize(inputs["teacher"]), direction=direction,
                    reduction=reduction, scale=1 / case["params"]["tau_student"],
                    teacher_scale=1 / case["params"]["tau_teacher"], include_self=not reading.startswith("no_self"),
                )  # fmt: skip
                close(case, file, loss, recorded["loss"], recorded["grads"], inputs)
                compared += 1
        assert compared >= 40


def test_soft_labels_match_the_official_file(golden):
    file = golden("contrastive/unime_v2_SoftLabelSoftKL")
    for case in file["cases"]:
        inputs = inputs_of(case)
        loss = soft_label_kl(inputs["scores"], inputs["understanding_scores"], scale=1 / case["params"]["temperature"])
        close(case, file, loss, case["expected"]["loss"], case["expected"]["grads"], inputs)


def test_soft_labels_that_agree_cost_nothing():
    scores = rows(3, 5)
    assert soft_label_kl(scores, scores).item() == pytest.approx(0, abs=1e-6)
