"""references: what a policy's log-probabilities are compared with."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from alignlab.adapters import adapter_parameters, adapters_off, has_adapters
from alignlab.adapters.switching import tuner_layers
from alignlab.backbones import Backbone
from alignlab.backbones.answers import Answers
from alignlab.batch import Batch, Tokens
from alignlab.data import AlignmentData
from alignlab.data.logps import AnswerLogps, Row, pair_hashes
from alignlab.errors import InputError
from alignlab.functional import upcast
from alignlab.functional.processes import in_pieces
from alignlab.modules.fingerprints import weights_fingerprint
from alignlab.modules.parted import evaluating
from alignlab.objectives.base import gathered


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
        self._digest: str | None = None

    def fingerprint(self) -> str:
        if self._digest is None:  # the copies never change
            digest = blake2b(digest_size=8)
            for _, kept in self.kept:
                digest.update(kept.cpu().contiguous().flatten().view(torch.uint8).numpy())
            self._digest = digest.hexdigest()
        return self._digest

    def changing(self) -> list[nn.Parameter]:
        """The weights that are not the start's once training has begun."""
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    def begin(self, trainer: Trainer) -> None:
        strategies = FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy
        if self.kept and (isinstance(trainer.strategy, strategies) or in_pieces(self.backbone)):
            raise InputError(
                f"{type(self).__name__} exchanges whole weights, which {type(trainer.strategy).__name__} cuts into "
                "pieces; use Cached, computed by a single process or with ddp"
            )
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
        torch.clear_autocast_cache()  # which knows weights by their tensor, and would go on with the others

    def logps(self, batch: Batch, answers: Answers, tape: list[Any]) -> Tensor:
        with torch.no_grad(), self.restored():
            features = self.backbone.features(batch.conversation, tape=tape)
            return self.backbone.answer_logps(answers, features=features)


class AdaptersOff(FrozenCopy):
    """The policy without its adapters; what trains beside them, the projector say, is kept in a second copy."""

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        if backbone.device.type == "meta":  # there are shapes alone
            return
        if not has_adapters(backbone):
            raise InputError("AdaptersOff needs a policy with adapters, and this one has none; use FrozenCopy")
        if not adapters_are_new(backbone):
            raise InputError(
                "AdaptersOff: the policy has adapters that change something before training begins, of an earlier "
                "stage say, so without them it is another model than the start; use FrozenCopy"
            )

    def changing(self) -> list[nn.Parameter]:
        added = {id(parameter) for parameter in adapter_parameters(self.backbone)}
        return [parameter for parameter in super().changing() if id(parameter) not in added]

    @contextmanager
    def restored(self) -> Iterator[None]:
        with adapters_off(self.backbone), super().restored():
            yield

    def logps(self, batch: Batch, answers: Answers, tape: list[Any]) -> Tensor:
        tower = self.backbone.model.get_encoder(modality="image")  # with adapters it sees otherwise than without
        return super().logps(batch, answers, [] if has_adapters(tower) else tape)


def live(backbone: Backbone) -> Reference:
    """The reference that costs least: without adapters where there are some that change nothing yet, else a copy."""
    if backbone.device.type == "meta":  # there are shapes alone, of adapters that are taken to be new
        return AdaptersOff() if has_adapters(backbone) else FrozenCopy()
    return AdaptersOff() if has_adapters(backbone) and adapters_are_new(backbone) else FrozenCopy()


def adapters_are_new(backbone: Backbone) -> bool:
    """Whether adapters change nothing yet: no low-rank branch does, and no other adapter a short text."""
    branches = [each for layer in tuner_layers(backbone) for each in getattr(layer, "lora_B", {}).values()]
    if any(bool(branch.weight.any()) for branch in branches):
        return False
    ids = torch.arange(4, device=backbone.device)[None]
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    text = Tokens(ids, torch.ones_like(ids), ids, nothing, {}, torch.zeros(1, dtype=torch.long, device=ids.device))
    with evaluating(backbone), torch.no_grad():
        states = upcast(backbone.hidden(text))
        with adapters_off(backbone):
            plain = upcast(backbone.hidden(text))
    size = float(plain.abs().max())
    rounding = 1e-4 if backbone.model.dtype in (torch.float32, torch.float64) else 3e-2
    return bool((states - plain).abs().max() <= rounding * size)


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
        folder: Where the files are, the same place for all processes.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.table: AnswerLogps | None = None
        self.folder = Path(folder)

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        if backbone.device.type != "meta":  # else there are shapes alone
            # New ones differ between seeds and say nothing; those of an earlier stage are part of the start.
            self.without = has_adapters(backbone) and adapters_are_new(backbone)
            self.weights = self._of_policy()

    def fingerprint(self) -> str:
        return self.weights

    def _of_policy(self) -> str:
        added = tuple(adapter_parameters(self.backbone)) if self.without else ()
        weights = weights_fingerprint(self.backbone.model, but=added)
        tokenizer = self.backbone.visual_tokenizer
        # Pictures may be read through it, as rows or as codes.
        return weights if tokenizer is None else f"{weights}-{weights_fingerprint(tokenizer)}"

    def prepare(self, data: AlignmentData) -> None:
        if data.stream() is not None:
            raise InputError(f"{type(self).__name__} reads all pairs first, but {type(data).__name__} streams them")
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
        with self.table.claimed() if trainer.is_global_zero else nullcontext():
            if trainer.strategy.broadcast(self.table.path.exists()):
                self.table.read()
            elif in_pieces(self.backbone):  # which all processes have to put together equally often
                raise InputError(
                    f"Cached: {self.table.path} is not there, and {type(trainer.strategy).__name__} cuts the weights "
                    "into pieces; let a training by a single process or with ddp compute it first"
                )
            else:
                self.table.fill([row for share in gathered(list(self._rows(trainer))) for row in share])
                if trainer.is_global_zero:
                    self.table.save()

    def logps(self, batch: Batch, answers: Answers, tape: list[Any]) -> Tensor:
        if self.table is None:
            raise InputError("Cached: nothing has been computed yet; that is what `begin` does, as training begins")
        return self.table.of(batch.ids, contents(batch))

    @torch.no_grad()
    def _rows(self, trainer: Trainer) -> Iterator[Row]:
        """Ids, and the log-probabilities of the two answers, of this process's share of all examples."""
        if self._of_policy() != self.weights:
            raise InputError(
                f"{self.table.path}, which this training began with, is gone, and the weights are the start's no "
                "longer; put the file back, or train anew"
            )
        autocast = trainer.precision_plugin.forward_context()
        plain = adapters_off(self.backbone) if self.without else nullcontext()
        with evaluating(self.backbone), plain, autocast:
            for split in ("train", "val"):
                examples = self.data.readable(split)
                size, processes = self.data.batch_size, trainer.world_size
                for start in range(trainer.global_rank * size, len(examples), processes * size):
                    readable = [examples.find(i) for i in range(start, min(start + size, len(examples)))]
                    if not (part := [each.example for each in readable if not each.skipped]):
                        continue  # what stands in for others has a row of its own
                    batch = self.backbone.encoder.batch(part, ("conversation", "rejected")).to(self.backbone.device)
                    answers = self.backbone.answers(batch.conversation, batch.rejected, batch.prompt_lengths)
                    features = self.backbone.features(batch.conversation)
                    found = self.backbone.answer_logps(answers, features=features)
                    yield from zip(batch.ids, found.T.tolist(), contents(batch).tolist(), strict=True)


def contents(batch: Batch) -> Tensor:
    """A number for each pair's texts, (B,) long, which other texts hardly share."""
    sums = []
    for tokens in (batch.conversation, batch.rejected):
        mask = tokens.attention_mask.long()
        place = mask.cumsum(1)  # counted from the first real token, whatever the padding
        # Odd multipliers scramble the 64 bits, in which sums and products wrap around alike on all devices.
        mixed = (tokens.input_ids + 1) * 6364136223846793005 + place * 1442695040888963407
        mixed = (mixed ^ (mixed >> 29)) * 2862933555777941757
        sums.append(((mixed ^ (mixed >> 32)) * mask).sum(1))
    return sums[0] * 3 + sums[1]
