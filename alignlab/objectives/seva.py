"""SeVa: of two answers, likelier the one that was given to the image itself than the one to a corrupted image."""

from collections.abc import Callable
from inspect import signature
from typing import Literal

from lightning.pytorch import Trainer
from torch import Tensor

from alignlab.batch import Batch
from alignlab.data import AlignmentData
from alignlab.errors import InputError
from alignlab.functional import preference
from alignlab.modules.parted import disable_dropout
from alignlab.objectives.base import Loss, Objective
from alignlab.objectives.references import Free, Reference, live

PairLoss = Callable[..., Tensor]
"""A loss of ``functional.preference``, or one with its arguments."""

Name = Literal[
    *("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard"),
    *("apo_zero", "apo_down", "sigmoid_norm", "discopop"),
]


class SeVa(Objective):
    """Minimise a preference loss of pairs of answers, relative to the model that training starts from.

        mean over pairs of -log sigmoid(beta * (log p(chosen) / p0(chosen) - log p(rejected) / p0(rejected)))

    SeVa, Zhu et al. 2024, https://arxiv.org/abs/2404.10501, is DPO (Rafailov et al. 2023, arXiv 2305.18290) on pairs
    that no one has labelled: the rejected answer is the model's own to a corrupted image (``alignlab pairs``). Any
    other pairs do as well. p are sums over the tokens of the last answer, its closing token included. Differs from the
    official code, whose reference sees through the policy's projector and embeddings (seva/trainer/base_dpo_trainer.py,
    llava_dpo_trainer.py); here it is the start in all its parts. There is no dropout, as there and in TRL,
    also none for the other parts of a ``Mixture``.

    A step computes prompt and image once for both answers, and a frozen vision tower once for policy and reference.

    Reports TRL's names: ``rewards/...`` are beta log p / p0 in nats. ``displaced`` is the share of pairs whose chosen
    answer has become less likely than it was: margins may grow while both answers fall. ``skipped`` pairs, of which the
    longest sequence leaves nothing of a side, train nothing.

    Args:
        beta: Sharpness; the larger, the nearer the policy stays to its reference.
        loss: By its name, TRL's, or a function like those of ``alignlab.functional.preference``.
        reference: None: ``AdaptersOff`` where there are adapters that change nothing yet, else ``FrozenCopy``.
        label_smoothing: Of losses that have it; None: theirs.
        likelihood: Weight of a further term, the mean over pairs of the chosen answer's -log p per token.
    """

    requires = ("conversation", "rejected")

    def __init__(
        self,
        backbone,
        *,
        beta: float = 0.1,
        loss: Name | PairLoss = "sigmoid",
        reference: Reference | None = None,
        label_smoothing: float | None = None,
        likelihood: float = 0.0,
    ) -> None:
        super().__init__(backbone)
        self.pair_loss: PairLoss = getattr(preference, loss) if isinstance(loss, str) else loss
        takes = signature(self.pair_loss).parameters
        if beta <= 0 or likelihood < 0:
            raise InputError(f"SeVa needs beta > 0 and likelihood >= 0, got {beta = }, {likelihood = }")
        if label_smoothing is not None and "label_smoothing" not in takes:
            raise InputError(f"SeVa: the loss {self.pair_loss.__name__} has no label_smoothing; leave it out")
        self.beta, self.likelihood = beta, likelihood
        self.smoothing = {} if label_smoothing is None else {"label_smoothing": label_smoothing}
        self.by_length = "chosen_lengths" in takes
        disable_dropout(backbone)
        self.reference = reference or live(backbone)
        self.reference.attach(backbone)

    def prepare(self, data: AlignmentData, num_processes: int) -> None:
        self.reference.prepare(data)

    def begin(self, trainer: Trainer) -> None:
        self.reference.begin(trainer)

    def loss(self, batch: Batch) -> Loss:
        answers = self.backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
        tape: list = []
        # The reference comes first, before the policy's pass keeps what its gradient needs.
        reference = self.reference.logps(batch, answers, tape)  # (2, B)
        policy = self.backbone.answer_logps(answers, features=self.backbone.features(batch.conversation, tape=tape))
        lengths, whole = answers.lengths, batch.answer_lengths
        there = ~((lengths == 0) & (whole > 0)).any(0)  # nothing is learned of a pair with one side cut to nothing
        by_length = {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]} if self.by_length else {}
        losses = self.pair_loss(*policy, *reference, beta=self.beta, **self.smoothing, **by_length)
        losses = losses - self.likelihood * policy[0] / lengths[0].clamp(min=1)

        def mean(values: Tensor) -> Tensor:
            return (values * there).sum() / there.sum().clamp(min=1)

        chosen, rejected = self.beta * (policy.detach() - reference)
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": chosen > rejected,
            "rewards/margins": chosen - rejected,
            "logps/chosen": policy[0].detach(),
            "logps/rejected": policy[1].detach(),
            "lengths/chosen": lengths[0],
            "lengths/rejected": lengths[1],
        } | ({} if isinstance(self.reference, Free) else {"displaced": chosen < 0})
        shares = {"skipped": ~there, "truncated": (lengths < whole).any(0), "empty": (whole == 0).any(0)}
        report = {name: mean(value) for name, value in values.items()}
        report |= {name: share.float().mean() for name, share in shares.items()}
        return Loss(mean(losses), there.sum(), report, report_weight=len(batch))
