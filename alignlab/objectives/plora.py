"""PLoRA: likelihood through adapters that visual tokens alone pass through."""

from alignlab import adapters
from alignlab.errors import InputError
from alignlab.objectives.mle import MLE


class PLoRA(MLE):
    """Minimise the answers' negative log-likelihood by low-rank branches that act on visual tokens alone.

        W x + m_t * scaling * B A x        at token t, m_t = 1 where it is a visual one, else 0

    Partial LoRA of InternLM-XComposer2, Dong et al. 2024, https://arxiv.org/abs/2401.16420, is ``MLE`` with an adapter:
    the language model is frozen, each of its linear maps has a branch, and a text without pictures gets the very same
    answer as before. What else trains stays as it is: all the rest with ``adapter: null``, as in the paper's first
    stage, the projector with ``Full(parts=[projector, ...])``. For other objectives with such adapters, and adapters on
    other tokens, there is the adapter ``PLoRA``. Differs from the official code, which begins with branches that change
    the output (build_mlp.py): here B is 0.

    Args:
        rank: Of the branches.
        scaling: What a branch is multiplied by, alpha / rank.
        dropout: Share of a branch's inputs that is dropped in training.

    Raises:
        InputError: Adapters train already, of the adapter axis say.
    """

    def __init__(self, backbone, *, rank: int = 256, scaling: float = 1.0, dropout: float = 0.05) -> None:
        if any(p.requires_grad for p in adapters.adapter_parameters(backbone)):
            raise InputError(
                f"PLoRA brings branches of its own, but {backbone.path} has adapters that train already; for several "
                "kinds use the objective MLE with the adapter PLoRA, whose ranks are by scope"
            )
        trained = [p for p, part in backbone.part_of() if p.requires_grad and part != "language_model"]
        adapters.PLoRA(ranks={"visual": rank}, scaling=scaling, dropout=dropout).apply(backbone)
        for parameter in trained:
            parameter.requires_grad_(True)
        super().__init__(backbone)
