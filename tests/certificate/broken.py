"""Objectives that are wrong in the ways objectives are wrong, each with the property that has to fail."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignlab import Batch, Loss
from alignlab.functional import gather, info_nce, normalize, stop_gradient, token_logps
from alignlab.objectives import MLE, Contrastive, InfoNCE, Mixture


class DetachedGather(InfoNCE):
    """Other processes' embeddings come without their gradients."""

    breaks = "processes"

    def gather(self, embeddings: Tensor) -> tuple[Tensor, int]:
        joined, start = gather(embeddings.detach())
        joined = joined.clone()
        joined[start : start + len(embeddings)] = embeddings
        return joined, start


class OwnNegatives(InfoNCE):
    """Each process has negatives of its own, and nobody says so."""

    breaks = "processes"

    def gather(self, embeddings: Tensor) -> tuple[Tensor, int]:
        return embeddings, 0


class MeanOfProcesses(MLE):
    """Processes and micro-batches count the same, whatever they hold."""

    breaks = "processes"

    def loss(self, batch: Batch) -> Loss:
        return Loss(super().loss(batch).mean, 1.0)


class MeanOfMicroBatches(MLE):
    """A mean over tokens that is weighted by samples."""

    breaks = "accumulation"

    def loss(self, batch: Batch) -> Loss:
        return Loss(super().loss(batch).mean, len(batch))


class Summed:
    """Accumulation that adds up and does not divide."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        count = self.trainer.accumulate_grad_batches
        super().on_before_optimizer_step(optimizer)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(count)


class SumOfMicroBatches(Summed, MLE):
    """The sum where the mean is meant."""

    breaks = "accumulation"


class SumOfCoupled(Summed, InfoNCE):
    """The same where micro-batches are no larger batch anyway, but still their mean."""

    breaks = "accumulation"


class LastColumn(InfoNCE):
    """Reads the embedding from the last column, padding or not."""

    breaks = "padding"

    def embed(self, tokens) -> Tensor:
        return normalize(self.backbone.hidden(tokens)[:, -1])


class PositionsFromPadding(MLE):
    """Counts positions from the sequence's edge, padding included."""

    breaks = "padding"

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        logps = token_logps(self.backbone(chat).logits, chat.labels)
        later = torch.arange(logps.shape[1], dtype=logps.dtype) + 1
        return Loss(-(logps * later).sum() / later.sum(), len(batch))


class NoiseByPosition(InfoNCE):
    """Noise that belongs to the place in the batch, not to the sample."""

    breaks = "order"

    def embed(self, tokens) -> Tensor:
        embeddings = super().embed(tokens)
        noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0), dtype=embeddings.dtype)
        return normalize(embeddings + 0.1 * noise)


class UnseededNoise(InfoNCE):
    """Noise that no seed reaches."""

    breaks = "seeds"

    def embed(self, tokens) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        embeddings = super().embed(tokens)
        return normalize(embeddings + 0.1 * torch.randn(embeddings.shape, generator=generator, dtype=embeddings.dtype))


class OneSeed(MLE):
    """Five seeds are one seed."""

    breaks = "seeds"

    def loss(self, batch: Batch) -> Loss:
        torch.manual_seed(7)
        return super().loss(batch)


class MovingReference(MLE):
    """A reference model, declared frozen, that follows the one that is trained."""

    breaks = "frozen"

    def __init__(self, backbone) -> None:
        super().__init__(backbone)
        self.reference = copy.deepcopy(backbone).requires_grad_(False)

    def loss(self, batch: Batch) -> Loss:
        with torch.no_grad():
            for old, new in zip(self.reference.parameters(), self.backbone.parameters(), strict=True):
                old.lerp_(new + 1e-3, 0.5)
        return super().loss(batch)


class Unfreezes(MLE):
    """Trains what it was given as frozen."""

    breaks = "frozen"

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.backbone.requires_grad_(True)


class Forgotten(MLE):
    """A weight to learn that is in no loss."""

    breaks = "frozen"

    def __init__(self, backbone) -> None:
        super().__init__(backbone)
        self.temperature = nn.Parameter(torch.ones(()))


class Logging(MLE):
    """Logs from the loss."""

    breaks = "purity"

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        self.log("loss", loss.mean)
        return loss


class LoggingPart(Mixture):
    """A part logs from the loss."""

    breaks = "purity"

    def __init__(self, backbone) -> None:
        super().__init__(backbone, parts={"likelihood": MLE, "logging": Logging})


class CachesInBatch(MLE):
    """Keeps something in the batch for later."""

    breaks = "purity"

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        batch.conversation.vision["seen"] = loss.mean.detach()
        return loss


class WritesIntoBatch(MLE):
    """Takes labels out of the batch itself."""

    breaks = "purity"

    def loss(self, batch: Batch) -> Loss:
        batch.conversation.labels[0] = -100
        return super().loss(batch)


class ReportsGraph(MLE):
    """Keeps the graph of every step in what it reports."""

    breaks = "purity"

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        return Loss(loss.mean, loss.weight, {"loss": loss.mean})


class ForgottenState(MLE):
    """Counts in an attribute that no checkpoint holds."""

    breaks = "resume"

    def __init__(self, backbone) -> None:
        super().__init__(backbone)
        self.calls = 0

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        self.calls += self.training
        return Loss(loss.mean / (1 + 0.1 * self.calls), loss.weight)


class UndeclaredConstant(MLE):
    """Weights that depend on the model, taken as constants in silence."""

    breaks = "derivative"
    held = staticmethod(Tensor.detach)

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        logps = token_logps(self.backbone(chat).logits, chat.labels)
        weights = self.held(1 - logps.exp())
        return Loss(-(weights * logps).sum() / len(batch), len(batch))


class DeclaredConstant(UndeclaredConstant):
    """The same, said aloud: this one is right."""

    breaks = ""
    held = staticmethod(stop_gradient)


class LastChunk(InfoNCE):
    """Chunks of which the last one alone keeps its graph."""

    breaks = "chunks"

    def embed(self, tokens) -> Tensor:
        if self.chunk_size is None:
            return super().embed(tokens)
        chunks = torch.arange(len(tokens)).split(self.chunk_size)
        *others, last = [self.backbone.embed(tokens.select(rows)) for rows in chunks]
        return normalize(torch.cat([*(each.detach() for each in others), last]))


class ChunksDiffer(InfoNCE):
    """Another embedding in chunks, certified as it is configured: in chunks."""

    breaks = "chunks"

    def __init__(self, backbone) -> None:
        super().__init__(backbone, chunk_size=2)

    def embed(self, tokens) -> Tensor:
        return super().embed(tokens) * (1.0 if self.chunk_size is None else 0.9)


class OtherDropout(InfoNCE):
    """Chunks whose second pass draws other dropout than the first."""

    breaks = "derivative"

    def _recomputed(self, tokens, rows) -> Tensor:
        chunk, run = tokens.select(rows), self.backbone.embed
        return checkpoint(lambda ids: run(chunk), chunk.input_ids, use_reentrant=False, preserve_rng_state=False)


class Counting(nn.Module):
    """A layer that is another one at every call in training."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.calls = layer, 0

    def forward(self, states: Tensor) -> Tensor:
        self.calls += self.training
        return self.layer(states * (1 + 0.1 * self.calls))


class CountsPasses(MLE):
    """A model that a second forward pass changes."""

    breaks = "recomputation"

    def __init__(self, backbone) -> None:
        super().__init__(backbone)
        layer = backbone.model.get_decoder().layers[0]
        layer.mlp = Counting(layer.mlp)


class NarrowDistance(Contrastive):
    """Small distances, between pictures, as differences of large numbers, in whatever precision autocast likes."""

    breaks = "bfloat16"
    requires = ("query",)

    def loss(self, batch: Batch) -> Loss:
        queries = self.embed(batch.query)
        everyone, start = self.gather(queries)
        other = torch.arange(len(everyone)) != torch.arange(start, start + len(queries))[:, None]
        near = (0.0002 + self.distances(queries, everyone)[other]).pow(-2)
        return Loss(near.sum() / max(1, near.numel()), len(batch))  # one sample alone is far from nobody

    def distances(self, queries: Tensor, others: Tensor) -> Tensor:
        return (2 - 2 * queries @ others.T).clamp(min=0)


class WideDistance(NarrowDistance):
    """The same without the cancellation: this one is right."""

    breaks = ""

    def distances(self, queries: Tensor, others: Tensor) -> Tensor:
        return (queries[:, None] - others[None]).square().sum(-1)


class Centred(InfoNCE):
    """A centre in a buffer that every pass moves, as DINO has it: this one is right."""

    breaks = ""

    def __init__(self, backbone) -> None:
        super().__init__(backbone)
        self.register_buffer("center", torch.zeros(backbone.model.config.text_config.hidden_size))

    def embed(self, tokens) -> Tensor:
        return normalize(super().embed(tokens) - self.center)

    def loss(self, batch: Batch) -> Loss:
        loss = super().loss(batch)
        if self.training:
            with torch.no_grad():
                self.center.lerp_(gather(self.backbone.embed(batch.query))[0].mean(0), 0.1)
        return loss


class OwnDropout(InfoNCE):
    """A head that drops out and a residual that begins as nothing: this one is right."""

    breaks = ""

    def __init__(self, backbone) -> None:
        super().__init__(backbone)
        width = backbone.model.config.text_config.hidden_size
        self.down, self.up = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(0.1)

    def embed(self, tokens) -> Tensor:
        embeddings = super().embed(tokens).to(self.up.weight.dtype)
        return normalize(self.dropout(embeddings + self.up(self.down(embeddings))))


class Advantage(MLE):
    """A policy gradient on policy, whose loss is 0 and whose gradient is not: this one is right."""

    breaks = ""
    coupled = "advantages are relative to the batch"
    per_process = coupled

    def loss(self, batch: Batch) -> Loss:
        chat = batch.conversation
        logps = token_logps(self.backbone(chat).logits, chat.labels).sum(-1)
        rewards = torch.tensor([0.1 * (sum(map(ord, id)) % 7) for id in batch.ids], dtype=logps.dtype)
        advantages = rewards - rewards.mean()
        return Loss(-((logps - stop_gradient(logps)).exp() * advantages).mean(), len(batch))


class InwardGradient(InfoNCE):
    """Takes a gradient of its own, and changes in place what it declared constant: this one is right."""

    breaks = ""

    def loss(self, batch: Batch) -> Loss:
        queries, targets = self.embed(batch.query), self.embed(batch.target)
        (direction,) = torch.autograd.grad((queries * targets).sum(), queries, retain_graph=True)
        step = stop_gradient(direction).mul_(0.1)
        everyone, start = self.gather(targets)
        own = torch.arange(start, start + len(batch))
        scale = self.log_scale.exp()
        return Loss(info_nce(normalize(queries - step), everyone, scale=scale, labels=own), len(batch))


GALLERY = [item for item in list(vars().values()) if isinstance(item, type) and "breaks" in vars(item)]
