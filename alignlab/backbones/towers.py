"""towers: what a dual encoder is made of; here as transformers joins them in one model (CLIP, SigLIP)."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel

from alignlab.adapters.merging import merged_weights
from alignlab.adapters.placing import adapters_of
from alignlab.backbones.contents import ContentEncoder, PlainTexts
from alignlab.backbones.encoding import padding_id
from alignlab.backbones.kinds import is_dual
from alignlab.backbones.processing import read_processor
from alignlab.backbones.reading import random_model, read_config, read_model
from alignlab.errors import InputError
from alignlab.functional import upcast
from alignlab.modules.parted import Dtype

WHAT = "dual encoder"


class Towers(nn.Module):
    """Base of the two kinds: a tower that reads pictures and one that reads texts, into one space of width D."""

    logit_scale: nn.Parameter | None
    """The logarithm of what cosines were multiplied by in training."""

    logit_bias: nn.Parameter | None
    """What was added to them."""

    @abstractmethod
    def images(self, vision: Mapping[str, Any]) -> Tensor:
        """Embed M pictures, as the image processor returned them: (M, D)."""

    @abstractmethod
    def texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed B texts (B, T), padded on whichever side: (B, D)."""

    @property
    @abstractmethod
    def parts(self) -> dict[str, nn.ModuleList]:
        """The modules of each part."""

    @abstractmethod
    def encoder(self, max_length: int | None) -> ContentEncoder:
        """What turns contents into tokens for these towers."""

    @abstractmethod
    def save(self, folder: Path | str, dtype: Dtype | None) -> None:
        """Write a directory that is read again as these towers."""


class JoinedTowers(Towers):
    """A model of transformers that embeds pictures and texts: CLIP, SigLIP, SigLIP 2, and what is built like them.

    A model with a bias was trained with a sigmoid, on texts padded to its full length, the last place of which it reads
    whatever stands there; another one reads a text at its end token.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        for each in (self.logit_scale, self.logit_bias):
            if each is not None:
                each.data = upcast(each.data)  # in 16 bits it would never move
                each.requires_grad_(False)

    @classmethod
    def load(cls, path: str, settings: dict[str, Any], *, random: bool) -> Self:
        """Read a directory, or draw a model of its config."""
        if not is_dual(config := read_config(path, what=WHAT)):
            raise InputError(
                f"backbone.path: {path} is a {config.model_type}, no dual encoder; with backbone.text_tower its vision "
                "tower can be put beside a language model"
            )
        make = random_model if random else read_model
        model, processor = make(AutoModel, path, settings, what=WHAT), read_processor(path, config)
        towers = cls(model, processor)
        if random and towers.logit_bias is not None:
            with torch.no_grad():  # where training starts, arXiv 2303.15343, section 3.2; transformers says 0
                towers.logit_scale.fill_(math.log(10))
                towers.logit_bias.fill_(-10)
        return towers

    @property
    def logit_scale(self) -> nn.Parameter | None:
        return getattr(self.model, "logit_scale", None)

    @property
    def logit_bias(self) -> nn.Parameter | None:
        return getattr(self.model, "logit_bias", None)

    @property
    def parts(self) -> dict[str, nn.ModuleList]:
        """The towers, and what stands behind them; SigLIP keeps the texts' projection inside the tower."""
        vision, text = self.model.vision_model, self.model.text_model
        heads = [module for name, module in text.named_children() if name == "head"]
        between = [module for module in self.model.children() if module is not vision and module is not text]
        rest = [module for module in text.children() if module not in heads]
        return {
            "vision_tower": nn.ModuleList([vision]),
            "projector": nn.ModuleList([*between, *heads]),
            "language_model": nn.ModuleList([*rest, nn.ParameterList(text.parameters(recurse=False))]),
        }

    def images(self, vision: Mapping[str, Any]) -> Tensor:
        return self.model.get_image_features(**vision).pooler_output

    def texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokenizer = self.processor.tokenizer
        pad_id = padding_id(tokenizer)
        if self.logit_bias is None:
            ids, mask = packed(input_ids, attention_mask, pad_id)
            ids, mask = ids[:, : self.longest_text], mask[:, : self.longest_text]
        else:
            side = tokenizer.padding_side
            ids, mask = packed(input_ids, attention_mask, pad_id, length=self.longest_text, side=side)
            if "attention_mask" not in tokenizer.model_input_names:
                mask = None  # it was trained to read the padding
        return self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    @property
    def longest_text(self) -> int:
        """The places that the text tower knows."""
        return self.model.config.text_config.max_position_embeddings

    def encoder(self, max_length: int | None) -> ContentEncoder:
        limit = self.longest_text if max_length is None else min(max_length, self.longest_text)
        texts = PlainTexts(self.processor.tokenizer, limit, reads_end=self.logit_bias is None)
        return ContentEncoder(texts, self.processor.image_processor)

    def save(self, folder: Path | str, dtype: Dtype | None) -> None:
        self.model.save_pretrained(folder, state_dict=in_type(merged_weights(self.model, adapters_of(self)), dtype))
        tokenizer = self.processor.tokenizer
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # which transformers may forget
        self.processor.save_pretrained(folder)

    def gradient_checkpointing_enable(self) -> None:
        self.model.gradient_checkpointing_enable()


def packed(
    input_ids: Tensor, attention_mask: Tensor, pad_id: int, *, length: int | None = None, side: str = "right"
) -> tuple[Tensor, Tensor]:
    """Move the padding of texts (B, T) to one side, and pad or cut it to a length: ids and mask, (B, T or length)."""
    order = (1 - attention_mask).argsort(dim=1, stable=True)  # the real ones first, as they came
    ids, mask = input_ids.gather(1, order), attention_mask.gather(1, order)
    ids = ids.masked_fill(mask == 0, pad_id)
    if length is not None:
        more = max(0, length - ids.shape[1])
        ids = nn.functional.pad(ids, (0, more), value=pad_id)[:, :length]
        mask = nn.functional.pad(mask, (0, more))[:, :length]
    if side == "left":
        order = mask.argsort(dim=1, stable=True)
        ids, mask = ids.gather(1, order), mask.gather(1, order)
    return ids, mask


def in_type(weights: Mapping[str, Tensor], dtype: Dtype | None) -> dict[str, Tensor]:
    """Weights in a type, but for scale and bias, which half a precision would move; None: as they are."""
    if dtype is None:
        return dict(weights)
    kept = ("logit_scale", "logit_bias")
    return {key: each if key in kept else each.to(getattr(torch, dtype)) for key, each in weights.items()}
