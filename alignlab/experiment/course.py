"""course: how many steps, samples and epochs a training has, by its Trainer's settings."""

import math
from dataclasses import dataclass

from lightning.pytorch import Trainer

from alignlab.experiment.config import Experiment

EPOCHS = 1000
"""Where neither steps nor epochs are set, as Lightning has it."""


@dataclass(frozen=True)
class Course:
    """The length of a training, and what it is made of.

    Args:
        splits: Examples by split; without train, where it is streamed.
        steps: Of the optimizer; None: time alone ends it.
        batches: Micro-batches of a process in all steps, of which an epoch's last may have fewer; None as steps.
        samples: A step, of all processes.
        epochs: None as steps, or where a stream has no epochs.
        accumulate: Micro-batches of a process and step.
    """

    splits: dict[str, int]
    steps: int | None
    batches: int | None
    samples: int
    epochs: float | None
    accumulate: int
    processes: int


def course_of(experiment: Experiment, num_train: int) -> Course:
    """The length of an experiment's training.

    Args:
        num_train: Training examples.
    """
    settings, data = experiment.trainer, experiment.data
    processes = Trainer(**settings, logger=False, enable_checkpointing=False, enable_progress_bar=False).world_size
    accumulate = settings["accumulate_grad_batches"]
    size, streamed = data.epoch_size(num_train), data.stream() is not None
    limit = settings["overfit_batches"] or settings["limit_train_batches"]
    batches = _limited(size // (data.batch_size * processes), limit)
    an_epoch = math.ceil(batches / accumulate)
    bounds = [settings["max_steps"]] if settings["max_steps"] >= 0 else []
    if settings["max_epochs"] not in (None, -1) and not streamed:
        bounds.append(settings["max_epochs"] * an_epoch)
    elif not bounds and settings["max_epochs"] is None and settings["max_time"] is None:
        bounds.append(EPOCHS * an_epoch)
    steps = min(bounds, default=None)
    epochs, rest = (0, steps or 0) if streamed else divmod(steps or 0, max(an_epoch, 1))
    return Course(
        splits={
            split: num_train if split == "train" else len(data.examples(split))
            for split in data.splits
            if not (streamed and split == "train")
        },
        steps=steps,
        batches=None if steps is None else epochs * batches + rest * accumulate,
        samples=data.batch_size * processes * accumulate,
        epochs=None if steps is None or streamed else steps / max(an_epoch, 1),
        accumulate=accumulate,
        processes=processes,
    )


def _limited(batches: int, limit: int | float | None) -> int:
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)
