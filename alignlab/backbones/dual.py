"""DualEncoder: one tower reads pictures, another reads texts; what they make of them is compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from alignlab.adapters.merging import fold
from alignlab.adapters.placing import adapters_of
from alignlab.backbones.composed import ComposedTowers, is_composed
from alignlab.backbones.kinds import is_generative
from alignlab.backbones.reading import read_config, read_model
from alignlab.backbones.towers import WHAT, JoinedTowers, Towers
from alignlab.batch import Tokens
from alignlab.functional import normalize
from alignlab.modules import TextAdapter
from alignlab.modules.parted import PARTS, Attention, Dtype, Part, Parted, start_of


class DualEncoder(Parted):
    """A vision tower and a text tower, each with its projection into the space of embeddings.

    Three kinds of directories: a CLIP or SigLIP of transformers; with ``text_tower``, a vision tower (of a CLIP, SigLIP
    or LLaVA-type directory) beside a language model (see ``ComposedTowers``); and what such a one was saved as.

    Args:
        path: Name of a packaged checkpoint, a directory, or a hub name.
        fresh: Parts to start from random weights, drawn from torch's global generator.
        take: Parts to take from other backbones of the same shape, part -> path.
        text_tower: A directory whose language model reads the texts, instead of a text tower of ``path``.
        dtype: The parameters' type.
        attention: The attention implementation of transformers.
        max_length: Longest text in tokens; None: as long as the text tower reads.

    Raises:
        InputError: A directory is missing or holds no such model, or a part does not fit.
    """

    visual_tokenizer = None
    """Whatever reads and writes pictures as codes: it has none, as it writes nothing."""

    def __init__(
        self,
        path: str,
        *,
        fresh: Sequence[Part] = (),
        take: Mapping[Part, str] | None = None,
        text_tower: str | None = None,
        dtype: Dtype = "float32",
        attention: Attention = "sdpa",
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        self.path, self.start = path, start_of(path, fresh, take)
        settings = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        self.model = self._made(path, text_tower, settings, fresh)
        for part, donor in (take or {}).items():
            self.transplant(_donor(donor, part, settings), (part,), f"take from {donor}")
        self.encoder = self.model.encoder(max_length)
        self.train()

    def _made(self, path: str, text_tower: str | None, settings: dict[str, Any], fresh: Sequence[Part]) -> Towers:
        if text_tower is not None:
            return ComposedTowers.compose(path, text_tower, settings, fresh=fresh)
        whole = set(fresh) == set(PARTS)
        made = self.model = _towers(path, settings, random=whole)
        if fresh and not whole:
            self.transplant(_towers(path, settings, random=True).parts, fresh, "fresh")
        return made

    @property
    def parts(self) -> dict[str, nn.ModuleList]:
        """The modules of each part; the projector is the projections of both towers. Scale and bias are of none."""
        return self.model.parts

    @property
    def logit_scale(self) -> nn.Parameter | None:
        """The logarithm of what the model's cosines are multiplied by; frozen until an objective trains it."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """What is added to them; frozen until an objective trains it."""
        return self.model.logit_bias

    @property
    def text_adapter(self) -> TextAdapter | None:
        """What stands between a language model that reads the texts and their embeddings, if one does."""
        return self.model.text_adapter if isinstance(self.model, ComposedTowers) else None

    def keep(self, *, logit_scale: nn.Parameter | None = None, logit_bias: nn.Parameter | None = None) -> None:
        """Let a scale and a bias that an objective made be saved with the model, where it has a place for them."""
        if isinstance(self.model, ComposedTowers):
            self.model.logit_scale = self.logit_scale if logit_scale is None else logit_scale
            self.model.logit_bias = self.logit_bias if logit_bias is None else logit_bias

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def embed(self, tokens: Tokens) -> Tensor:
        """Embed contents: (B, D), not normalised.

        One picture, or texts, give what their tower makes of them; several of these in one content give the sum of
        their normalised embeddings, as UniME (https://arxiv.org/abs/2504.17432) embeds what is interleaved.
        """
        speaks = tokens.attention_mask.any(1)
        rows = torch.arange(len(tokens), device=speaks.device)
        vectors, owners = [], []
        if tokens.num_images.any():
            vectors.append(self.model.images(tokens.vision))
            owners.append(rows.repeat_interleave(tokens.num_images))
        if speaks.any():
            vectors.append(self.model.texts(tokens.input_ids[speaks], tokens.attention_mask[speaks]))
            owners.append(rows[speaks])
        found, owner = torch.cat(vectors), torch.cat(owners)
        several = (tokens.num_images + speaks > 1)[owner, None]
        found = torch.where(several, normalize(found).to(found.dtype), found)
        return found.new_zeros(len(tokens), found.shape[1]).index_add(0, owner, found)

    def read(self, tokens: Tokens) -> Tensor:
        """What the language model makes of texts, before the adapter: (B, E); see ``adapt``."""
        return self.model.states(tokens.input_ids, tokens.attention_mask)

    def adapt(self, embeddings: Tensor) -> Tensor:
        """Embed texts that the language model has read already: its states (B, E) of their last tokens, to (B, D)."""
        return self.text_adapter(embeddings)

    def save(self, folder: Path | str, *, dtype: Dtype | None = None) -> None:
        """Write a directory (safetensors) that is read again, in ``dtype`` if given; transformers loads a CLIP, too.

        Adapters are merged.
        """
        self.model.save(folder, dtype)


def _towers(path: str, settings: dict[str, Any], *, random: bool = False) -> Towers:
    if is_composed(path):
        return ComposedTowers.load(path, settings, random=random)
    return JoinedTowers.load(path, settings, random=random)


def _donor(path: str, part: Part, settings: dict[str, Any]) -> dict[str, nn.ModuleList]:
    """The parts of another backbone; a vision-language model has a vision tower to give, and a language model."""
    if is_composed(path) or not is_generative(read_config(path, what=WHAT)):
        return _towers(path, settings).parts
    model = read_model(AutoModelForImageTextToText, path, settings, what="vision-language model")
    towers = {"vision_tower": model.get_encoder(modality="image"), "language_model": model.get_decoder()}
    given = {name: nn.ModuleList([tower]) for name, tower in towers.items()}
    if part in given:
        fold(given[part], adapters_of(model), f"backbone.take: the {part} of {path}", texts_only=True)
    return given
