"""Losses of other libraries as objectives, to be certified where they are installed.

    cd experiments/certificates && alignlab certify others.OpenClip

What is theirs is the loss on embeddings or on logits; embeddings, weights of processes and the step are alignlab's.
"""

import importlib.util
from pathlib import Path

from torch import Tensor, distributed, nn

from alignlab import Batch, InputError, Loss, Objective
from alignlab.functional import normalize
from alignlab.objectives import Contrastive


class OpenClip(Contrastive):
    """open_clip's ``ClipLoss`` with its own defaults.

    Args:
        local_loss: Each process takes the loss of its own rows only.
        gather_with_grad: Others' embeddings bring their gradients.
    """

    requires = ("query", "target")

    def __init__(self, backbone, *, local_loss: bool = False, gather_with_grad: bool = False) -> None:
        super().__init__(backbone)
        self.settings = {"local_loss": local_loss, "gather_with_grad": gather_with_grad}
        self.log_scale = nn.Parameter(backbone.model.lm_head.weight.new_tensor(2.66))  # = ln(1 / 0.07), its default

    def loss(self, batch: Batch) -> Loss:
        rank, world = _processes()
        ClipLoss = _module("open_clip", "loss.py").ClipLoss
        theirs = ClipLoss(**self.settings, rank=rank, world_size=world)
        mean = theirs(self.embed(batch.query), self.embed(batch.target), self.log_scale.exp())
        return Loss(mean, len(batch))


class OpenClipExact(OpenClip):
    """The same with the two settings that its documentation recommends together for large runs."""

    def __init__(self, backbone) -> None:
        super().__init__(backbone, local_loss=True, gather_with_grad=True)


class SentenceTransformers(Contrastive):
    """sentence-transformers' ``MultipleNegativesRankingLoss``.

    Args:
        gather: Its ``gather_across_devices``; off by default there.
    """

    requires = ("query", "target")

    def __init__(self, backbone, *, gather: bool = False) -> None:
        super().__init__(backbone)
        self.gather = gather

    def loss(self, batch: Batch) -> Loss:
        losses = _library("sentence_transformers.sentence_transformer.losses")
        theirs = losses.MultipleNegativesRankingLoss(None, gather_across_devices=self.gather)
        embeddings = [self.embed(batch.query), self.embed(batch.target)]
        return Loss(theirs.compute_loss_from_embeddings(embeddings, None), len(batch))


class SentenceTransformersGathered(SentenceTransformers):
    """The same, gathered."""

    def __init__(self, backbone) -> None:
        super().__init__(backbone, gather=True)


class SentenceTransformersCached(Objective):
    """sentence-transformers' ``CachedMultipleNegativesRankingLoss``, its form of GradCache."""

    requires = ("query", "target")
    coupled = "a query is compared with the targets of its own micro-batch"
    per_process = "gather_across_devices is off"

    def loss(self, batch: Batch) -> Loss:
        losses = _library("sentence_transformers.sentence_transformer.losses")
        theirs = losses.CachedMultipleNegativesRankingLoss(nn.Sequential(_Embedder(self.backbone)), mini_batch_size=2)
        sides = [
            {"input_ids": side.input_ids, "attention_mask": side.attention_mask, **side.vision}
            for side in (batch.query, batch.target)
        ]
        return Loss(theirs(sides, None), len(batch))


class _Embedder(nn.Module):
    """A backbone as sentence-transformers sees a model."""

    def __init__(self, backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.backbone.model.base_model(**features, use_cache=False).last_hidden_state
        mask = features["attention_mask"]
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return {"sentence_embedding": normalize(hidden[range(len(hidden)), last])}


class TransformersLikelihood(Objective):
    """The loss that a model of transformers gives for labels; micro-batches count the same, as in a plain loop."""

    requires = ("conversation",)

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        theirs = self.backbone.model(
            input_ids=chat.input_ids, attention_mask=chat.attention_mask, labels=chat.labels, **chat.vision
        )
        return Loss(theirs.loss, 1.0)


def _processes() -> tuple[int, int]:
    several = distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} cannot be imported: {error}; pip install {name.partition('.')[0]}") from None


def _module(package: str, file: str):
    """One file of a package, without what the package imports beside it."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise InputError(f"{package} is not installed; pip install {package}_torch")
    place = Path(found.submodule_search_locations[0]) / file
    module = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("theirs", place))
    spec.loader.exec_module(module)
    return module
