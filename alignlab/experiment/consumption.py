"""consumption: what a training has used up: samples, tokens, seconds, and examples that could not be read."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from alignlab.batch import Batch
from alignlab.objectives.base import gathered

NUM_NAMED = 10
"""Examples that could not be read whose ids the record states."""


class Consumption(Callback):
    """Counts the samples, real tokens and seconds of training; goes on counting after a resume."""

    def __init__(self) -> None:
        self.samples: int = 0
        self.tokens: torch.Tensor | int = 0
        self.of_sources: dict[str, int] = {}
        """Samples of each source of a mixture, those of all processes; known once training has ended."""
        self.skipped: dict[str, list[str]] = {"train": [], "val": []}
        """Ids of what could not be read, each once, those of all processes; known once training has ended."""
        self._before = 0.0
        self._started: float | None = None
        self._counted: Counter[str] = Counter()  # this process's
        self._met: dict[str, dict[str, None]] = {"train": {}, "val": {}}

    @property
    def seconds(self) -> float:
        """Seconds of training, those of earlier sessions up to their last checkpoint included."""
        return self._before + (0.0 if self._started is None else time.perf_counter() - self._started)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._before, self._started = self.seconds, None
        self.of_sources, self.skipped = _together(gathered(self._own()))

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.samples += len(batch) * trainer.world_size
        for tokens in batch:
            self.tokens = self.tokens + tokens.attention_mask.sum() * trainer.world_size
        if trainer.datamodule.sources:
            self._counted.update(batch.sources)
        self._met["train"].update(dict.fromkeys(batch.skipped))

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._met["val"].update(dict.fromkeys(batch.skipped))

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["consumed"] = gathered(self._own())

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:  # one process goes on with what all had counted
            counted, met = _together(checkpoint["consumed"])
            self._counted = Counter(counted)
            self._met = {phase: dict.fromkeys(ids) for phase, ids in met.items()}

    def state_dict(self) -> dict[str, float]:
        return {"samples": self.samples, "tokens": int(self.tokens), "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.samples, self.tokens, self._before = int(state["samples"]), int(state["tokens"]), state["seconds"]

    def _own(self) -> dict[str, Any]:
        return {"sources": dict(self._counted), "skipped": {phase: list(ids) for phase, ids in self._met.items()}}


def _together(counts: list[Mapping[str, Any]]) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Of all processes: samples by source, and the ids that were skipped in training and validation."""
    of_sources: Counter[str] = Counter()
    skipped: dict[str, dict[str, None]] = {"train": {}, "val": {}}
    for each in counts:
        of_sources.update(each["sources"])
        for phase, ids in each["skipped"].items():
            skipped[phase].update(dict.fromkeys(ids))
    return dict(sorted(of_sources.items())), {phase: list(ids) for phase, ids in skipped.items()}


def skipped_in_words(skipped: Mapping[str, list[str]]) -> dict[str, Any]:
    """How many examples could not be read, by split, and the ids of the first ones."""
    named = [id for ids in skipped.values() for id in ids][:NUM_NAMED]
    return {split: len(ids) for split, ids in skipped.items()} | {"examples": named}
