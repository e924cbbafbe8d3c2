"""Objective: the base class; a subclass writes ``loss`` and nothing else unless it must."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, distributed

from alignlab.backbones import Backbone
from alignlab.batch import Batch
from alignlab.data.base import AlignmentData, check_supplies
from alignlab.errors import NotFinite
from alignlab.functional import upcast
from alignlab.functional.processes import pieces, total_norm
from alignlab.objectives import saving
from alignlab.objectives.averages import Averages
from alignlab.objectives.optimization import Optimization, optimizer_and_schedule


@dataclass(frozen=True)
class Loss:
    """What ``loss`` gives back.

    Args:
        mean: Scalar, the mean over this batch.
        weight: What the mean is over: supervised tokens, pairs, summed weights.
        report: Detached scalars to log.
        report_weight: What these are means over; None: what the loss is.
    """

    mean: Tensor
    weight: Tensor | float
    report: Mapping[str, Tensor] = field(default_factory=dict)
    report_weight: Tensor | float | None = None


class Objective(LightningModule):
    """One way to align a backbone.

    Micro-batches and processes count by their ``Loss.weight``: the gradient of a step is that of the mean over
    everything the step saw, however unequally it was split.

    Args:
        backbone: The model to align.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """The fields of ``Example`` that become sequences of the Batch."""

    coupled: ClassVar[str] = ""
    """Why accumulating micro-batches is not a larger batch, where it is not."""

    per_process: ClassVar[str] = ""
    """Why several processes are not one with a larger batch, where they are not."""

    alone: ClassVar[str] = ""
    """Why it cannot be trained beside another objective, where it cannot."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.optimization = Optimization()
        self._seen = Averages()
        self._validated = Averages()
        self._validated_of: dict[str, Averages] = {}  # by source, of a mixture of data sets
        self._step_weight: Tensor | float = 0.0
        self._step_batches: list[tuple[tuple[str, ...], Tensor]] = []  # ids and loss of each micro-batch
        self._last_step: tuple[int, Tensor, list[tuple[tuple[str, ...], Tensor]]] | None = None
        self.logged: Mapping[str, float] = {}
        self._frozen: dict[str, int] | None = None  # the fingerprint of what does not change while training

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Compute the objective on one batch; never logs, never reads the trainer, never writes into the batch."""

    def prepare(self, data: AlignmentData, num_processes: int) -> None:
        """Look at the data once, before training begins or goes on; by default nothing is to be known of them.

        Raises:
            InputError: They are none that this objective can be trained on.
        """

    def begin(self, trainer: Trainer) -> None:
        """See or compute what needs the start's weights, on their device, before the first step; by default nothing.

        Also called before a training goes on, with the weights as they are by then.
        """

    def setup(self, stage: str) -> None:
        self._frozen = None
        data = self.trainer.datamodule
        check_supplies(type(self).__name__, self.requires, data)
        self.backbone.encoder.check(self.requires, who=type(self).__name__)
        self.prepare(data, self.trainer.world_size)
        data.connect(partial(self.backbone.encoder.batch, sequences=tuple(self.requires)))
        if self.coupled and self.trainer.accumulate_grad_batches > 1:
            rank_zero_warn(f"{type(self).__name__}: accumulating micro-batches is not a larger batch: {self.coupled}")
        if self.per_process and self.trainer.world_size > 1:
            rank_zero_warn(f"{type(self).__name__}: several processes are not one larger batch: {self.per_process}")

    def on_fit_start(self) -> None:
        self.begin(self.trainer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._stop_if_not_finite()

    def on_validation_start(self) -> None:
        self._stop_if_not_finite()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        weight = self._seen.add(loss)
        mean = upcast(loss.mean)
        # A mean that is not finite makes the weight NaN, and with it that of the whole step, in every process.
        self._step_weight = self._step_weight + weight + 0.0 * mean.detach()
        self._step_batches.append((batch.ids, mean.detach()))
        return mean * weight

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Summed over micro-batches by us, divided by their number by Lightning, averaged over processes by the
        # strategy: one exact rescaling makes it the mean over the whole step. Clipping comes after this hook.
        total = self.trainer.strategy.reduce(self._step_weight, reduce_op="sum")
        count = self.trainer.world_size * self.trainer.accumulate_grad_batches
        factor = count / total.clamp(min=1e-30)  # where there was nothing to train on, gradients of 0 stay 0
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(pieces(gradients), factor)
        self._norm = norm = total_norm(gradients)
        # In float16 a scaler finds gradients that overflow, and leaves out their step.
        finite = torch.isfinite(total if self.trainer.precision == "16-mixed" else norm)
        self._last_step = (self.trainer.global_step + 1, finite, self._step_batches)
        self._step_weight, self._step_batches = 0.0, []
        if finite.device.type == "cpu":  # a GPU is not waited for: it is asked before the next batch or checkpoint
            self._stop_if_not_finite()
        # Logging every metric every step costs more than a small step itself, so metrics are buffered and flushed.
        step = self.trainer.global_step + 1
        if step % self.trainer.log_every_n_steps == 0 or step == self.trainer.max_steps:
            self._seen.latest["grad_norm"] = norm
            self._seen.latest["lr"] = self.lr_schedulers().get_last_lr()[0]
            self._log("train", self._seen, step)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:  # as torch does, with the norm that is known already
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(pieces(gradients), (gradient_clip_val / (self._norm + 1e-6)).clamp(max=1.0))

    def on_train_end(self) -> None:
        if self._seen.rows:  # steps since the last flush, where epochs or time end the training
            self._log("train", self._seen, self.trainer.global_step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self.loss(batch)
        self._validated.add(loss)
        if self.trainer.datamodule.sources:  # a batch is of one
            self._validated_of.setdefault(batch.sources[0], Averages()).add(loss)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            metrics = self._log("val", self._validated, self.trainer.global_step, of=self._validated_of)
            self.log("val/loss", metrics["val/loss"], logger=False)
        self._validated, self._validated_of = Averages(), {}

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.after_step()

    def after_step(self) -> None:
        """Set right in place what a step may not leave as it is, before a checkpoint holds it; by default nothing."""

    def configure_optimizers(self) -> dict:
        return optimizer_and_schedule(self, self.optimization, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._stop_if_not_finite()
        checkpoint["unlogged"] = gathered(self._seen.rows)
        if not self.trainer.strategy.restore_checkpoint_after_setup:  # else processes hold pieces of weights
            if self._frozen is None:
                self._frozen = saving.fingerprint(self.backbone)
            saving.leave_out(checkpoint, self, self.backbone, self._frozen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if saving.FROZEN in checkpoint:
            self._frozen = saving.fingerprint(self.backbone)
            saving.put_back(checkpoint, self, self.backbone, self._frozen)
        if len(checkpoint["unlogged"]) == self.trainer.world_size:
            rows, device = checkpoint["unlogged"][self.trainer.global_rank], self.trainer.strategy.root_device
            self._seen.rows = {names: [row.to(device) for row in kept] for names, kept in rows.items()}

    def _stop_if_not_finite(self) -> None:
        """Raise NotFinite if the last step was not finite; called in all processes."""
        if self._last_step is None or self._last_step[1]:
            return
        step, _, batches = self._last_step
        batches = sum(gathered([(ids, bool(mean.isfinite())) for ids, mean in batches]), [])
        bad = [ids for ids, finite in batches if not finite]
        what, where = ("loss", bad) if bad else ("gradient", [ids for ids, _ in batches])
        raise NotFinite(
            f"{type(self).__name__}: the {what} of step {step} is not finite; lower optimization.lr, or look at its "
            f"examples: {', '.join(id for ids in where for id in ids)}"
        )

    def _log(
        self, phase: str, averages: Averages, step: int, *, of: Mapping[str, Averages] | None = None
    ) -> dict[str, float]:
        """Log averages, and those of each source by its name."""
        metrics = {}
        for place, each in ((phase, averages), *((f"{phase}/{source}", own) for source, own in (of or {}).items())):
            metrics |= {f"{place}/{name}": value for name, value in each.flush(self.trainer.strategy).items()}
        self.logged = metrics
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)
        return metrics


def gathered(value: Any) -> list[Any]:
    """What each process has, by rank; every process has to call it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
