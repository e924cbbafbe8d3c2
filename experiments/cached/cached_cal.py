"""CachedCAL: CAL with the weights that the model gave its training data before it was trained."""

from typing import Any

import torch
from torch import Tensor

from alignlab import Batch
from alignlab.data import AlignmentData
from alignlab.functional import supervised
from alignlab.objectives import CAL


class CachedCAL(CAL):
    """Minimise CAL's loss with gains that are computed once, of the start model, and kept.

    A step costs what likelihood's does. Before training, and before it goes on, the training data are read once, which
    is a pass of each kind over all of them; other data, those of the validation, say, get their gains from the model
    as it is. Of a start that does not look at pictures yet, the weights say nothing.
    """

    def __init__(self, backbone, *, low: float = 1.0, high: float = 5.0, window: int = 3) -> None:
        super().__init__(backbone, low=low, high=high, window=window)
        self.kept: dict[str, Tensor] = {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        self.backbone.to(self.trainer.strategy.root_device)
        self.remember(self.trainer.datamodule)  # before a checkpoint's weights come back, also where training goes on

    @torch.no_grad()
    def remember(self, data: AlignmentData) -> None:
        """Keep the gains of all training examples by the backbone as it is."""
        examples, size = data.filled("train"), data.batch_size
        for start in range(0, len(examples), size):
            part = [examples[index] for index in range(start, min(start + size, len(examples)))]
            batch = self.backbone.encoder.batch(part, self.requires).to(self.backbone.device)
            chat = batch.conversation
            features = self.backbone.features(chat)
            hidden = self.backbone.hidden(chat, features=features)
            gain = super().gain(batch, hidden, super().blind_states(batch, features))
            rows = zip(batch.ids, gain, supervised(chat.labels), strict=True)
            self.kept |= {id: row[trained].cpu() for id, row, trained in rows}

    def blind_states(self, batch: Batch, features: Any) -> Tensor | None:
        return None if self.training else super().blind_states(batch, features)

    def gain(self, batch: Batch, hidden: Tensor, blind: Tensor | None) -> Tensor:
        if blind is not None:
            return super().gain(batch, hidden, blind)
        trained = supervised(batch.conversation.labels)
        gains = torch.cat([self.kept[id] for id in batch.ids]).to(hidden.device)
        return gains.new_zeros(trained.shape).masked_scatter(trained, gains)
