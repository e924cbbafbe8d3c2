"""Distillation: what a student has to learn of a teacher's similarities, in nats."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from alignlab.functional.contrastive import similarities


def similarity_distillation(
    student: Tensor,
    teacher: Tensor,
    *,
    scale: float = 10.0,
    teacher_scale: float | None = None,
    direction: Literal["teacher_student", "student_teacher"] = "teacher_student",
    include_self: bool = True,
    reduction: Literal["batchmean", "sum"] = "batchmean",
    student_columns: Tensor | None = None,
    teacher_columns: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Divergence between two models' similarities within a batch (UniME's first stage, arXiv 2504.17432, Eq. 2).

        sum_j p_ij (log p_ij - log q_ij),  p = softmax_j(teacher_scale <t_i, t_j>),  q = softmax_j(scale <s_i, s_j>)

    There is no official code, and the printed equation holds the similarity of a row with itself alone, which is no
    distribution; this is what the text around it says. With ``include_self`` a row's similarity with itself takes
    nearly all of p at large scales, and there is little left to learn.

    Args:
        student: (B, D), rows expected normalised (not checked).
        teacher: (B, E), without gradient.
        scale: Multiplier on the student's cosines, = 1 / temperature.
        teacher_scale: Multiplier on the teacher's; None: the same.
        direction: Whose distribution the mean is over, the first named: KL(teacher || student), or the other way.
        reduction: Mean or sum over rows.
        student_columns: (K, D), what rows are compared with, such as the rows of all processes; None: the rows.
        teacher_columns: (K, E).
        labels: (B,) long, the column that is the row itself; default: column i for row i.

    Returns:
        Scalar, >= 0.
    """
    columns = (
        student if student_columns is None else student_columns,
        teacher if teacher_columns is None else teacher_columns,
    )
    q_logits = scale * similarities(student, columns[0])
    p_logits = (scale if teacher_scale is None else teacher_scale) * similarities(teacher, columns[1]).detach()
    if not include_self:
        own = torch.arange(len(student), device=student.device) if labels is None else labels
        others = torch.ones_like(q_logits, dtype=torch.bool).scatter(1, own[:, None], False)
        q_logits, p_logits = (logits[others].reshape(len(student), -1) for logits in (q_logits, p_logits))
    q, p = q_logits.log_softmax(1), p_logits.log_softmax(1).to(q_logits.dtype)
    first, second = (p, q) if direction == "teacher_student" else (q, p)
    return F.kl_div(second, first, log_target=True, reduction=reduction)


def soft_label_kl(scores: Tensor, soft_labels: Tensor, *, scale: float = 50.0) -> Tensor:
    """Symmetric divergence between scores of candidates and a judge's (UniME-V2, ``SoftLabelSoftKLContrastiveLoss``).

        (KL(P || Q) + KL(Q || P)) / 2,  P = softmax(scale * soft_labels),  Q = softmax(scale * scores), mean over rows

    Args:
        scores: (B, K), such as cosines with the positive and the hard negatives.
        soft_labels: (B, K), in the same order, without gradient.

    Returns:
        Scalar, logarithms taken as log(p + 1e-8), as the official file does.
    """
    q, p = (scale * scores).softmax(1), (scale * soft_labels.detach()).softmax(1)
    log_q, log_p = (q + 1e-8).log(), (p + 1e-8).log()
    both = F.kl_div(log_q, p, reduction="batchmean") + F.kl_div(log_p, q, reduction="batchmean")
    return both / 2


def divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Divergence between two models' distributions over the vocabulary, at each position.

        KL(P || Q) = sum_v p_v (log p_v - log q_v)

    Args:
        p_logits: (..., V), of any floating type; a word of logit -inf adds nothing.
        q_logits: (..., V).

    Returns:
        (...) float64 in nats, >= 0; exactly 0 where the logits are the same bit by bit.
    """
    p, q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
    terms = p.exp() * (p - q)
    return terms.masked_fill(p == -torch.inf, 0.0).sum(-1).clamp(min=0.0)
