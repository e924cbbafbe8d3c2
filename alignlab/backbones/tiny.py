"""tiny: a random model of a few thousand weights, for what has to hold of any model."""

from functools import partial
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPProcessor,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Processor,
    SiglipConfig,
    SiglipProcessor,
)

from alignlab.backbones.backbone import Backbone
from alignlab.backbones.locations import locate
from alignlab.backbones.patches import check_patchwise, patch_grid
from alignlab.modules import LearnedSelection, PatchPixels, VectorQuantizer, VisualTokenizer


def write_tiny(folder: Path, *, layers: int = 1, dropout: float = 0.0) -> None:
    """Write a random LLaVA with the lab's processor, as a directory that ``Backbone`` reads.

    Args:
        layers: Of the vision tower and of the language model each.
        dropout: Of their attention.
    """
    start = locate("scenes-parts")
    config = AutoConfig.from_pretrained(start)
    for part in (config.vision_config, config.text_config):
        part.hidden_size, part.intermediate_size, part.num_hidden_layers = 32, 48, layers
        part.attention_dropout = dropout
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(start).save_pretrained(folder)


def write_tiny_dual(folder: Path, kind: type[CLIPConfig | SiglipConfig | Siglip2Config]) -> None:
    """Write a random CLIP or SigLIP with the lab's words and pictures, as a directory that ``DualEncoder`` reads."""
    lab = AutoProcessor.from_pretrained(locate("scenes-parts"))
    tokenizer, pictures = lab.tokenizer, lab.image_processor
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    tokenizer.chat_template = None
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {**shape, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 40}
    vision = {**shape, "patch_size": lab.patch_size, "image_size": pictures.size["height"]}
    processor = CLIPProcessor
    if kind is CLIPConfig:
        settings = {"projection_dim": 24}
    else:
        settings, processor = {}, SiglipProcessor
        text["projection_size"] = shape["hidden_size"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names = [
            "input_ids"
        ]  # as those of the released models: padding is read, too
    if kind is Siglip2Config:
        processor, vision["num_patches"] = Siglip2Processor, 36
        pictures = Siglip2ImageProcessorPil(patch_size=lab.patch_size, max_num_patches=36)
    config = kind(text_config=text, vision_config=vision, **settings)
    AutoModel.from_config(config).save_pretrained(folder)
    processor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)


def give_tokenizer(backbone: Backbone) -> None:
    """Let a backbone have a random visual tokenizer of 16 codes, in its model's type."""
    num_patches, dim = check_patchwise(backbone)
    sizes = {"depth": 1, "num_heads": 4, "mlp_ratio": 1.5, "code_dim": 4}
    tokenizer = VisualTokenizer(
        dim, num_patches, selection=LearnedSelection, quantizer=partial(VectorQuantizer, num_codes=16), **sizes
    )
    grid, patch_size = patch_grid(backbone, num_patches)
    tokenizer.pixel_decoder = PatchPixels(dim, grid=grid, patch_size=patch_size, hidden=16)
    backbone.visual_tokenizer = tokenizer.to(backbone.device, backbone.model.dtype)


def make_exact(model: nn.Module) -> None:
    """Let a LLaVA compute in float64 throughout; as it comes, its Llama rounds norms and angles to float32."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            match type(child).__name__:
                case "LlamaRMSNorm":
                    norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon, dtype=torch.float64)
                    norm.weight = child.weight
                    setattr(module, name, norm)
                case "LlamaRotaryEmbedding":
                    setattr(module, name, _Rotary(child.inv_freq))


class _Rotary(nn.Module):
    """Rotary position embeddings (Su et al. 2021, https://arxiv.org/abs/2104.09864), in the precision of the states."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(frequencies.double(), persistent=False)

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * self.frequencies).repeat(1, 1, 2)
        return angles.cos().to(states.dtype), angles.sin().to(states.dtype)
