"""BlindDistillation: UniME's first stage with the embeddings of other texts: the placebo of its teacher."""

from dataclasses import replace

from alignlab import Batch, Loss
from alignlab.objectives import UniMEDistillation


class BlindDistillation(UniMEDistillation):
    """Minimise the divergence from a teacher who takes each text for another one of the batch.

    Its similarities are distributed as the teacher's are, and say nothing of the texts.
    """

    per_process = "the embeddings of a micro-batch are exchanged within it"

    def loss(self, batch: Batch) -> Loss:
        order = sorted(range(len(batch)), key=batch.ids.__getitem__)  # whatever the order of the batch
        giver = dict(zip(order, order[1:] + order[:1], strict=True))
        embedding = batch.embedding[[giver[row] for row in range(len(batch))]]
        return super().loss(replace(batch, embedding=embedding))
