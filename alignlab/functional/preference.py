"""Losses of preference pairs, from the log-probabilities of two answers under a policy and its reference.

All take (B,) sums of token log-probabilities in nats (``sequence_logps``) and give a loss for each pair, (B,), with
gradients for the policy's. They are named as the loss types of TRL 1.16 (trl/trainer/dpo_trainer.py), whose values they
have. With a = policy_chosen - reference_chosen, r = policy_rejected - reference_rejected and s the logistic function:

    sigmoid        -log s(beta (a - r))                          DPO, Rafailov et al. 2023, arXiv 2305.18290
    hinge          relu(1 - beta (a - r))                        SLiC, Zhao et al. 2023, arXiv 2305.10425
    ipo            (a / n_a - r / n_r - 1 / (2 beta))^2          IPO, Azar et al. 2023, arXiv 2310.12036
    sigmoid_norm   -log s(beta (a / n_a - r / n_r))
    robust         sigmoid, flipped labels expected              Chowdhury et al. 2024, arXiv 2403.00409
    exo_pair       reverse divergence to smoothed labels         EXO, Ji et al. 2024, arXiv 2402.00856
    nca_pair       each side's own likelihood ratio              NCA, Chen et al. 2024, arXiv 2402.05369
    bco_pair       -log s(beta a) - log s(-beta r)               BCO, Jung et al. 2024, arXiv 2404.04656
    sppo_hard      (a - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2   SPPO, Wu et al. 2024, arXiv 2405.00675
    apo_zero       1 - s(beta a) + s(beta r)                     APO, D'Oosterlinck et al. 2024, arXiv 2408.06266
    apo_down       s(beta a) + 1 - s(beta (a - r))               the same
    discopop       a blend of logistic and exponential           Lu et al. 2024, arXiv 2406.08414

A pair whose sides are the same, or a policy that is its reference, has the loss ln 2 in ``sigmoid``.
"""

import math

from torch import Tensor
from torch.nn import functional as F


def sigmoid(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """DPO's logistic loss, (B,)."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return -F.logsigmoid(beta * (chosen - rejected))


def hinge(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """What a margin of 1 / beta is missed by, times beta, (B,)."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return F.relu(1 - beta * (chosen - rejected))


def ipo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
) -> Tensor:
    """Squared distance of the difference per token from 1 / (2 beta), (B,).

    Args:
        chosen_lengths: (B,), tokens of each chosen answer; no fewer than 1 count.
        rejected_lengths: (B,), likewise.
    """
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return (_per_token(chosen, chosen_lengths) - _per_token(rejected, rejected_lengths) - 1 / (2 * beta)).square()


def sigmoid_norm(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
) -> Tensor:
    """The logistic loss of the difference per token, (B,); lengths as in ``ipo``."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return -F.logsigmoid(beta * (_per_token(chosen, chosen_lengths) - _per_token(rejected, rejected_lengths)))


def robust(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The logistic loss, unbiased where a known share of the pairs is the wrong way round, (B,).

    Args:
        label_smoothing: That share, in [0, 0.5).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"0 <= label_smoothing < 0.5 needed, got {label_smoothing}")
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    margin, flipped = beta * (chosen - rejected), label_smoothing
    losses = -(1 - flipped) * F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)
    return losses / (1 - 2 * flipped)


def exo_pair(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 1e-3,
) -> Tensor:
    """Divergence of the policy's preferences from smoothed labels, in the reverse direction, (B,).

    Args:
        label_smoothing: Probability of the rejected answer, in (0, 1).
    """
    if not 0 < label_smoothing < 1:
        raise ValueError(f"0 < label_smoothing < 1 needed, got {label_smoothing}")
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    margin = beta * (chosen - rejected)
    preferred = margin.sigmoid()
    to_chosen = F.logsigmoid(margin) - math.log(1 - label_smoothing)
    to_rejected = F.logsigmoid(-margin) - math.log(label_smoothing)
    return preferred * to_chosen + (1 - preferred) * to_rejected


def nca_pair(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Each answer against noise, by its own likelihood ratio, (B,)."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    noise = F.logsigmoid(-beta * chosen) + F.logsigmoid(-beta * rejected)
    return -F.logsigmoid(beta * chosen) - 0.5 * noise


def bco_pair(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """A classifier of both answers, as TRL has it: without the paper's running shift, (B,)."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)


def sppo_hard(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Squared distances of both gains from +- 1 / (2 beta), (B,)."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square()


def apo_zero(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Make the chosen answer likelier and the rejected one less, (B,)."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return 1 - (beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """Make both answers less likely, the rejected one more so, (B,)."""
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    return (beta * chosen).sigmoid() + 1 - (beta * (chosen - rejected)).sigmoid()


def discopop(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    tau: float = 0.05,
) -> Tensor:
    """A blend of the logistic and the exponential loss, weighed by the margin itself, (B,).

    Args:
        tau: Temperature of the blend, > 0.
    """
    chosen, rejected = _gains(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta)
    margin = beta * (chosen - rejected)
    exponential = (margin / tau).sigmoid()
    return -F.logsigmoid(margin) * (1 - exponential) + (-margin).exp() * exponential


def mdpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    policy_imageless: Tensor,
    reference_imageless: Tensor,
    beta: float,
) -> Tensor:
    """DPO, the same of the chosen answer with its image over that with a corrupted one, and an anchor, (B,).

    Source: mDPO, Wang et al. 2024, arXiv 2406.11839 (mdpo_trainer.py); the anchor is -log s(beta a).

    Args:
        policy_imageless: (B,), the chosen answer where its image is corrupted.
        reference_imageless: (B,), likewise.
    """
    preference = sigmoid(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=beta)
    seeing = sigmoid(policy_chosen, policy_imageless, reference_chosen, reference_imageless, beta=beta)
    return preference + seeing - F.logsigmoid(beta * (policy_chosen - reference_chosen))


def _gains(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """How much likelier than its reference the policy finds each answer, (B,) and (B,)."""
    shapes = {tuple(each.shape) for each in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)}
    if len(shapes) != 1 or policy_chosen.ndim != 1 or beta <= 0:
        raise ValueError(f"four (B,) tensors and beta > 0 needed, got shapes {sorted(shapes)} and {beta = }")
    return policy_chosen - reference_chosen.detach(), policy_rejected - reference_rejected.detach()


def _per_token(values: Tensor, lengths: Tensor) -> Tensor:
    return values / lengths.clamp(min=1)
