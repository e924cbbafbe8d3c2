"""references: what a policy's log-probabilities are compared with."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from alignlab.adapters import adapter_parameters, adapters_off, has_adapters
from alignlab.backbones import Backbone
from alignlab.backbones.answers import Answers
from alignlab.backbones.parted import evaluating
from alignlab.batch import Batch
from alignlab.data import AlignmentData
from alignlab.data.logps import AnswerLogps, pair_hashes
from alignlab.data.teachers import weights_fingerprint
from alignlab.errors import InputError


class Reference(nn.Module, ABC):
    """The model that training starts from, as it judges answers.

    Its weights are no part of a checkpoint; their fingerprint is.
    """

    def attach(self, backbone: Backbone) -> None:
        """Take notice of the policy, whose weights are those of the start still."""
        self._policy = (backbone,)  # which is no module of this one

    @property
    def backbone(self) -> Backbone:
        return self._policy[0]

    def prepare(self, data: AlignmentData) -> None:
        """Look at the data, before training begins or goes on."""

    def begin(self, trainer: Trainer) -> None:
        """As ``Objective.begin``."""

    def fingerprint(self) -> str:
        """What tells its weights from others'; empty where it has none."""
        return ""

    def get_extra_state(self) -> str:
        return self.fingerprint()

    def set_extra_state(self, state: str) -> None:
        if state != self.fingerprint():
            raise InputError(
                f"what is to be loaded was trained with another reference than {self.backbone.path} as it is now; go "
                "on from the weights that it began with, or train anew"
            )

    @abstractmethod
    def logps(self, batch: Batch, answers: Answers, tape: list[Any]) -> Tensor:
        """Log-probabilities of the answers, (2, B) as of ``Backbone.answer_logps``, without gradient.

        Args:
            tape: See ``Backbone.features``.
        """


class FrozenCopy(Reference):
    """The weights of the start, in a second copy of those that train; the others are shared."""

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        self.kept = [(parameter, parameter.detach().clone()) for parameter in self.changing()]

    @cache  # noqa: B019  # of as many objects as there are objectives
    def fingerprint(self) -> str:
        digest = blake2b(digest_size=8)
        for _, kept in self.kept:
            digest.update(kept.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def changing(self) -> list[nn.Parameter]:
        """The weights that are not the start's once training has begun."""
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    def begin(self, trainer: Trainer) -> None:
        if {id(parameter) for parameter, _ in self.kept} != {id(parameter) for parameter in self.changing()}:
            raise InputError(
                f"{type(self).__name__} copied the weights that trained when the objective was made, and others do "
                "by now; apply the adapter first"
            )
        self._follow()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The policy is its reference for a while."""
        self._follow()
        try:
            self._exchange()
            yield
        finally:
            self._exchange()

    def _follow(self) -> None:
        """Be where the policy is, and of its type."""
        self.kept = [(policy, kept.to(policy.device, policy.dtype)) for policy, kept in self.kept]

    def _exchange(self) -> None:
        for policy, kept in self.kept:
            policy.data, kept.data = kept.data, policy.data

    def logps(self, batch: Batch, answers: Answers, tape: list[Any]) -> Tensor:
        with torch.no_grad(), self.restored():
            features = self.backbone.features(batch.conversation, tape=tape)
            return self.backbone.answer_logps(answers, features=features)


class AdaptersOff(FrozenCopy):
    """The policy without its adapters; what trains beside them, the projector say, is kept in a second copy."""

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        if not (backbone.device.type == "meta" or has_adapters(backbone)):
            raise InputError("AdaptersOff needs a policy with adapters, and this one has none; use FrozenCopy")

    def changing(self) -> list[nn.Parameter]:
        added = {id(parameter) for parameter in adapter_parameters(self.backbone)}
        return [parameter for parameter in super().changing() if id(parameter) not in added]

    @contextmanager
    def restored(self) -> Iterator[None]:
        with adapters_off(self.backbone), super().restored():
            yield


class Free(Reference):
    """No reference: answers are judged by their log-probabilities alone."""

    def logps(self, batch: Batch, answers: Answers, tape: list[Any]) -> Tensor:
        return torch.zeros(answers.lengths.shape, device=answers.lengths.device)


class Cached(Reference):
    """The start's log-probabilities, computed before the first step for all examples of both splits, once.

    They are kept in a file for each start, data set, tokenizer, image processor, longest sequence and precision, which
    all trainings that name the folder share, whatever their seed and objective; a second one waits while the first one
    computes. They differ from a live reference's by rounding, as other sequences are computed together.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        if backbone.device.type != "meta":  # else there are shapes alone
            self.weights = self._of_policy()

    def fingerprint(self) -> str:
        return self.weights

    def _of_policy(self) -> str:
        return weights_fingerprint(self.backbone.model, but=tuple(adapter_parameters(self.backbone)))

    def prepare(self, data: AlignmentData) -> None:
        self.data = data

    def begin(self, trainer: Trainer) -> None:
        encoder = self.backbone.encoder
        self.table = AnswerLogps(
            self.folder,
            {
                "weights": self.weights,
                "tokenizer": encoder.tokenizer_fingerprint(),
                "image processor": encoder.image_fingerprint(),
                "max_length": str(encoder.max_length),
                "precision": str(trainer.precision),
                "data": pair_hashes(self.data),
            },
        )
        if trainer.is_global_zero:
            self.table.write(self._rows(trainer))
        trainer.strategy.barrier()
        self.table.read()

    def logps(self, batch: Batch, answers: Answers, tape: list[Any]) -> Tensor:
        return self.table.of(batch.ids).to(answers.lengths.device)

    @torch.no_grad()
    def _rows(self, trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
        """Ids, and the log-probabilities (2,) of the two answers, of all examples."""
        if self._of_policy() != self.weights:
            raise InputError(
                f"{self.table.path}, which this training began with, is gone, and the weights are the start's no "
                "longer; put the file back, or train anew"
            )
        autocast = trainer.precision_plugin.forward_context()
        with evaluating(self.backbone), adapters_off(self.backbone), autocast:
            for split in ("train", "val"):
                examples = self.data.filled(split)
                for start in range(0, len(examples), self.data.batch_size):
                    part = [examples[i] for i in range(start, min(start + self.data.batch_size, len(examples)))]
                    batch = self.backbone.encoder.batch(part, ("conversation", "rejected")).to(self.backbone.device)
                    answers = self.backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
                    features = self.backbone.features(batch.conversation)
                    found = self.backbone.answer_logps(answers, features=features)
                    yield from zip(batch.ids, found.T.cpu(), strict=True)
