"""BlindCAL: CAL whose weights stand at other tokens: the placebo of what the picture adds."""

from role_mle import dealt
from torch import Tensor

from alignlab import Batch
from alignlab.functional import supervised
from alignlab.objectives import CAL


class BlindCAL(CAL):
    """Minimise CAL after the weights of a batch are dealt out anew among its answers' tokens.

    As many tokens weigh as much as in CAL, and which ones says nothing of the picture.
    """

    coupled = per_process = "the weights of a micro-batch are dealt out within it"

    def weights(self, batch: Batch, gain: Tensor) -> Tensor:
        return dealt(super().weights(batch, gain), supervised(batch.conversation.labels), batch.ids)
