"""UniMEDistillation: the similarities of a batch's texts become those that a text teacher finds."""

from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from alignlab.backbones.batching import stacked
from alignlab.batch import Batch
from alignlab.data import AlignmentData
from alignlab.errors import InputError
from alignlab.functional import normalize, similarities, similarity_distillation
from alignlab.objectives.base import Loss
from alignlab.objectives.contrastive import Contrastive


class UniMEDistillation(Contrastive):
    """Minimise the divergence of the similarities within a batch from those of a teacher.

        mean_i sum_j p_ij (log p_ij - log q_ij)      in nats per text
        p_i = softmax_j(teacher_scale <e_i, e_j>),  q_i = softmax_j(scale <t_i, t_j>)

    First stage of UniME, Gu et al. 2025, https://arxiv.org/abs/2504.17432, Eq. 2, for which there is no official code:
    see ``functional.similarity_distillation`` on how it is read. t are embeddings of the targets, which must be texts,
    so that the language model alone is trained; e are the teacher's (``Example.embedding``), of any width. The paper
    gives no scale: at 10 the teacher's distribution still speaks of other texts than the text itself.

    Args:
        scale: Multiplier on the student's cosines, = 1 / temperature.
        teacher_scale: Multiplier on the teacher's; None: the same.
        direction: Whose distribution the mean is over, the first named: KL(teacher || student), or the other way.
        include_self: Whether a text's similarity with itself is part of its distribution, as in the paper.
        chunk_size: Sequences that are embedded at a time, for batches beyond the memory; None: all.
    """

    requires = ("target", "embedding")

    def __init__(
        self,
        backbone,
        *,
        scale: float = 10.0,
        teacher_scale: float | None = None,
        direction: Literal["teacher_student", "student_teacher"] = "teacher_student",
        include_self: bool = True,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(backbone, chunk_size=chunk_size)
        if min(scale, scale if teacher_scale is None else teacher_scale) <= 0:
            raise InputError(f"UniMEDistillation needs scale > 0, got {scale = }, {teacher_scale = }")
        self.scale, self.teacher_scale = scale, scale if teacher_scale is None else teacher_scale
        self.direction, self.include_self = direction, include_self

    def prepare(self, data: AlignmentData, num_processes: int) -> None:
        super().prepare(data, num_processes)
        examples = data.filled("train")
        first = [examples[index] for index in range(min(data.batch_size, len(examples)))]
        if shown := [example.id for example in first if not all(isinstance(part, str) for part in example.target)]:
            raise InputError(
                f"UniMEDistillation trains the language model on texts, but the target of example {shown[0]!r} holds a "
                "picture; set data whose targets are texts"
            )
        if not (first and self.include_self):
            return
        teacher = normalize(stacked(first))
        itself = (self.teacher_scale * similarities(teacher, teacher)).softmax(1).diagonal().mean().item()
        if itself > 0.99:
            rank_zero_warn(
                f"UniMEDistillation: at a scale of {self.teacher_scale:g} the teacher finds each text similar to "
                f"itself alone (probability {itself:.4f}), so there is little to learn; lower teacher_scale, or set "
                "include_self to false"
            )

    def loss(self, batch: Batch) -> Loss:
        student = self.embed(batch.target)  # (B, D)
        teacher = normalize(batch.embedding.to(student.dtype))  # (B, E)
        students, start = self.gather(student)  # (N, D)
        teachers, _ = self.gather(teacher)
        own = torch.arange(start, start + len(batch), device=student.device)
        mean = similarity_distillation(
            student,
            teacher,
            scale=self.scale,
            teacher_scale=self.teacher_scale,
            direction=self.direction,
            include_self=self.include_self,
            student_columns=students,
            teacher_columns=teachers,
            labels=own,
        )
        found, right = similarities(student, students).detach(), similarities(teacher, teachers)
        itself = (self.teacher_scale * right).softmax(1).gather(1, own[:, None]).mean()
        report = {"teacher_self": itself, "cosine_error": (found - right).abs().mean(), "cosine": found.mean()}
        return Loss(mean, len(batch), report)
