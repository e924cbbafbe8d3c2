"""composed: towers of two models put together, a vision tower and a language model (LLM2CLIP)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoTokenizer,
)
from transformers.utils import cached_file

from alignlab.adapters.merging import fold, merged_weights
from alignlab.adapters.placing import adapters_of
from alignlab.backbones.contents import ChatTexts, ContentEncoder
from alignlab.backbones.encoding import padding_id
from alignlab.backbones.kinds import is_dual, is_generative
from alignlab.backbones.locations import locate
from alignlab.backbones.processing import read_processor
from alignlab.backbones.reading import UNREADABLE, model_type, random_model, read_config, read_model
from alignlab.backbones.towers import Towers, in_type, packed
from alignlab.errors import InputError
from alignlab.modules import TextAdapter
from alignlab.modules.parted import Dtype, Part

MODEL_TYPE = "alignlab-dual-encoder"
WEIGHTS = "model.safetensors"


class ComposedTowers(Towers):
    """A vision tower with a linear projection, and a language model with a ``TextAdapter``, as in LLM2CLIP.

    A picture's embedding is read where the vision tower pools (CLIP's first token, SigLIP's attention), or is the mean
    over the last states where it does not; the projection is the tower's own where it comes with one, as CLIP's does. A
    text is rendered as a user's turn by the language model's chat template; its embedding is the state of the last
    token. Scale and bias are there from when an objective trains them.

    Args:
        in_parts: Whether the chat template takes a turn's content as a list of parts.
    """

    def __init__(
        self,
        vision_tower: Any,
        projection: nn.Linear,
        language_model: Any,
        text_adapter: TextAdapter,
        *,
        image_processor: Any,
        tokenizer: Any,
        in_parts: bool,
    ) -> None:
        super().__init__()
        self.vision_tower, self.projection = vision_tower, projection
        self.language_model, self.text_adapter = language_model, text_adapter
        self.register_parameter("logit_scale", None)
        self.register_parameter("logit_bias", None)
        self.image_processor, self.tokenizer, self.in_parts = image_processor, tokenizer, in_parts
        self.pad_id = padding_id(tokenizer)

    @classmethod
    def compose(cls, path: str, text_tower: str, settings: dict[str, Any], *, fresh: Sequence[Part]) -> Self:
        """Take the towers of two directories; the text adapter is drawn anew.

        Args:
            path: A CLIP, SigLIP or vision-language model, whose vision tower is taken.
            text_tower: A language model, or a vision-language model whose language model is taken.
        """
        vision_tower, projection, image_processor = _vision(path, settings, random="vision_tower" in fresh)
        language_model, tokenizer, in_parts = _text(text_tower, settings, random="language_model" in fresh)
        if projection is None or "projector" in fresh:
            width = vision_tower.config.hidden_size
            out = width if projection is None else projection.out_features
            projection = nn.Linear(width, out, bias=False, dtype=settings["dtype"])
        adapter = TextAdapter(language_model.config.hidden_size, projection.out_features).to(settings["dtype"])
        parts = {"image_processor": image_processor, "tokenizer": tokenizer, "in_parts": in_parts}
        return cls(vision_tower, projection, language_model, adapter, **parts)

    @classmethod
    def load(cls, path: str, settings: dict[str, Any], *, random: bool) -> Self:
        """Read what ``save`` wrote, or draw it anew."""
        folder = locate(path)
        try:
            vision, text = (
                AutoModel.from_config(AutoConfig.from_pretrained(folder, subfolder=name), **settings)
                for name in ("vision", "text")
            )
            config = json.loads(Path(cached_file(folder, "config.json")).read_text())
            image_processor = AutoImageProcessor.from_pretrained(folder, subfolder="vision")
            tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="text")
            projection = nn.Linear(vision.config.hidden_size, config["width"], bias=config["bias"])
            adapter = TextAdapter(text.config.hidden_size, config["width"], num_blocks=config["num_blocks"])
            parts = {"image_processor": image_processor, "tokenizer": tokenizer, "in_parts": config["in_parts"]}
            towers = cls(vision, projection.to(settings["dtype"]), text, adapter.to(settings["dtype"]), **parts)
            if not random:
                towers._read(load_file(cached_file(folder, WEIGHTS)))
        except (SafetensorError, RuntimeError, KeyError, *UNREADABLE) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"backbone.path: {path} cannot be read as a saved dual encoder: {first}") from None
        return towers

    def _read(self, weights: Mapping[str, Tensor]) -> None:
        for name in ("logit_scale", "logit_bias"):
            if name in weights:
                self.register_parameter(name, nn.Parameter(weights[name].float(), requires_grad=False))
        self.load_state_dict(weights)

    @property
    def parts(self) -> dict[str, nn.ModuleList]:
        return {
            "vision_tower": nn.ModuleList([self.vision_tower]),
            "projector": nn.ModuleList([self.projection, self.text_adapter]),
            "language_model": nn.ModuleList([self.language_model]),
        }

    def images(self, vision: Mapping[str, Any]) -> Tensor:
        output = self.vision_tower(**vision, return_dict=True)
        pooled = output.last_hidden_state.mean(1) if output.pooler_output is None else output.pooler_output
        return self.projection(pooled)

    def texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.text_adapter(self.states(input_ids, attention_mask))

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the language model makes of B texts (B, T): the states (B, E) of their last tokens."""
        ids, mask = packed(input_ids, attention_mask, self.pad_id)
        states = self.language_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows = torch.arange(len(ids), device=ids.device)
        return states[rows, mask.sum(1) - 1]

    def encoder(self, max_length: int | None) -> ContentEncoder:
        texts = ChatTexts(self.tokenizer, self.tokenizer.chat_template, in_parts=self.in_parts, max_length=max_length)
        return ContentEncoder(texts, self.image_processor)

    def save(self, folder: Path | str, dtype: Dtype | None) -> None:
        folder = Path(folder)
        self.vision_tower.config.save_pretrained(folder / "vision")
        self.image_processor.save_pretrained(folder / "vision")
        self.language_model.config.save_pretrained(folder / "text")
        self.tokenizer.save_pretrained(folder / "text")
        config = {
            "model_type": MODEL_TYPE,
            "width": self.projection.out_features,
            "bias": self.projection.bias is not None,
            "num_blocks": len(self.text_adapter.blocks),
            "in_parts": self.in_parts,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        merged = merged_weights(self, adapters_of(self))
        weights = {key: value.contiguous() for key, value in in_type(merged, dtype).items()}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    def gradient_checkpointing_enable(self) -> None:
        self.vision_tower.gradient_checkpointing_enable()
        self.language_model.gradient_checkpointing_enable()


def is_composed(path: str, *, key: str = "path") -> bool:
    """Whether a directory holds what ``ComposedTowers.save`` writes."""
    return model_type(path, key=key) == MODEL_TYPE


def _vision(path: str, settings: dict[str, Any], *, random: bool) -> tuple[Any, nn.Linear | None, Any]:
    """A directory's vision tower, with its own projection if there is one, and its image processor."""
    make = random_model if random else read_model
    if is_composed(path):
        raise InputError(f"backbone.text_tower: {path} has a text tower of its own; leave text_tower out")
    config = read_config(path, what="model with a vision tower")
    processor = read_processor(path, config).image_processor
    if is_generative(config):
        _check_whole_pictures(path, processor)
        model = make(AutoModelForImageTextToText, path, settings, what="vision-language model")
        tower = model.get_encoder(modality="image")
        fold(tower, adapters_of(model), f"backbone.path: {path}")
        return tower, None, processor
    if not is_dual(config):
        raise InputError(
            f"backbone.path: {path} has no vision tower to put beside a text tower: it is a {config.model_type}, "
            "neither a dual encoder nor a vision-language model"
        )
    model = make(AutoModel, path, settings, what="dual encoder")
    return model.vision_model, getattr(model, "visual_projection", None), processor


def _check_whole_pictures(path: str, image_processor: Any) -> None:
    """Raise InputError unless each picture, whatever its shape, is one input of a vision tower."""
    for size in ((64, 64), (256, 64)):
        values = image_processor(images=[Image.new("RGB", size)], return_tensors="pt")["pixel_values"]
        if values.dim() != 4 or len(values) != 1:
            raise InputError(
                f"backbone.path: {path} has a vision tower that reads pictures as tiles or patches, of which a picture "
                "has several; beside a text_tower it needs one that reads a picture as a whole, such as CLIP's"
            )


def _text(path: str, settings: dict[str, Any], *, random: bool) -> tuple[Any, Any, bool]:
    """A directory's language model, its tokenizer with its chat template, and whether that takes parts."""
    make, key = random_model if random else read_model, "text_tower"
    config = None if is_composed(path, key=key) else read_config(path, what="language model", key=key)
    if config is not None and is_generative(config):
        model = make(AutoModelForImageTextToText, path, settings, what="vision-language model", key=key)
        processor = read_processor(path, config, key=key)
        tokenizer = processor.tokenizer
        tokenizer.chat_template = processor.chat_template or tokenizer.chat_template
        decoder = model.get_decoder()
        fold(decoder, adapters_of(model), f"backbone.text_tower: {path}", texts_only=True)
        return decoder, tokenizer, True
    if config is None or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = "a dual encoder" if config is None else f"a {config.model_type}"
        raise InputError(f"backbone.text_tower: {path} is {what}; what reads the texts has to be a language model")
    model = make(AutoModel, path, settings, what="language model", key=key)
    return model, AutoTokenizer.from_pretrained(locate(path, key=key)), False
