"""LLM2CLIP: pictures learn to find their texts as a frozen language model reads them."""

from typing import Self

from lightning.pytorch.utilities import rank_zero_warn

from alignlab.backbones import DualEncoder
from alignlab.batch import Batch
from alignlab.data import AlignmentData
from alignlab.errors import InputError
from alignlab.functional import normalize
from alignlab.objectives.base import Loss
from alignlab.objectives.clip import CLIP


class LLM2CLIP(CLIP):
    """Minimise CLIP's loss between pictures and a language model's embeddings of texts, which an adapter maps.

        CLIP with x = picture,  y = adapter(e),  e the language model's state of the text's last token

    Second stage of LLM2CLIP, Huang et al. 2024, https://arxiv.org/abs/2411.04997; microsoft/LLM2CLIP, ``llm2clip``. The
    backbone is a dual encoder with a ``text_tower``, which ``LLM2CLIPText``, an earlier stage, tunes on captions. The
    language model is frozen here, whatever the adapter says, and kept in evaluation mode: what it reads has to stay
    the same. Which of several captions a sample shows is the data's choice (``Example.target``); the official code
    takes the short or the long one with probability 1/2.

    Args:
        precomputed: Read e from the data (``embedding``) instead of the language model, which then is run for texts in
            queries alone.
        scale: As in ``CLIP``.
        max_scale: As in ``CLIP``.
        label_smoothing: In [0, 1); the official script takes it, but never uses it.
        chunk_size: Sequences that are embedded at a time, for batches beyond the memory; None: all.

    Raises:
        InputError: The backbone has no text adapter.
    """

    def __init__(
        self,
        backbone,
        *,
        precomputed: bool = False,
        scale: float | None = None,
        max_scale: float | None = 100.0,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
    ) -> None:
        if not isinstance(backbone, DualEncoder) or backbone.text_adapter is None:
            raise InputError(
                f"LLM2CLIP needs a dual encoder whose texts a language model reads, got {backbone.path}; set "
                "backbone.text_tower to the directory of one"
            )
        if not 0 <= label_smoothing < 1:
            raise InputError(f"LLM2CLIP needs 0 <= label_smoothing < 1, got {label_smoothing}")
        super().__init__(backbone, scale=scale, max_scale=max_scale, chunk_size=chunk_size)
        self.precomputed, self.label_smoothing = precomputed, label_smoothing
        self.requires = ("query", "embedding") if precomputed else ("query", "target")
        frozen = [parameter for parameter, part in backbone.part_of() if part == "language_model"]
        if any(parameter.requires_grad and not parameter.is_meta for parameter in frozen):
            rank_zero_warn("LLM2CLIP freezes the language_model: the texts' embeddings are what pictures are taught")
        for parameter in frozen:
            parameter.requires_grad_(False)
        self.train(self.training)

    def prepare(self, data: AlignmentData, num_processes: int) -> None:
        super().prepare(data, num_processes)
        examples, width = data.filled("train"), self.backbone.text_adapter.in_dim
        if self.precomputed and len(examples) and (given := len(examples[0].embedding)) != width:
            raise InputError(
                f"LLM2CLIP: the data's embeddings have {given} numbers, but the text tower's have {width}; they have "
                "to come from that language model"
            )

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.parts["language_model"].eval()
        return self

    def loss(self, batch: Batch) -> Loss:
        texts = normalize(self.backbone.adapt(batch.embedding)) if self.precomputed else self.embed(batch.target)
        return self.compared(self.embed(batch.query), texts, label_smoothing=self.label_smoothing)
