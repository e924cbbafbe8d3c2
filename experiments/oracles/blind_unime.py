"""BlindUniME: UniME that forgets as many candidates as are right as well, but others: the placebo of its groups."""

from group_infonce import blind
from torch import Tensor

from alignlab import Batch
from alignlab.objectives import UniME


class BlindUniME(UniME):
    """Minimise UniME without as many true negatives of each query as there are candidates of its group.

    Args:
        num_hard: As in UniME, with ``groups`` always on and a filter that lets everything pass.
    """

    per_process = "what is forgotten is drawn within a process"

    def __init__(self, backbone, *, num_hard: int = 8) -> None:
        super().__init__(backbone, num_hard=num_hard, margin=2.0, groups=True)

    def same_group(self, batch: Batch, num_candidates: int) -> Tensor:
        same = super().same_group(batch, num_candidates)
        return blind(same.fill_diagonal_(False).cpu(), batch.ids).to(same.device)
