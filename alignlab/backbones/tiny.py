"""tiny: a random model of a few thousand weights, for what has to hold of any model."""

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
    SiglipConfig,
    SiglipProcessor,
)

from alignlab.backbones.locations import locate


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


def write_tiny_dual(folder: Path, config: CLIPConfig | SiglipConfig) -> None:
    """Write a random CLIP or SigLIP with the lab's words and pictures, as a directory that ``DualEncoder`` reads.

    Args:
        config: Shapes; what depends on the lab is set here.
    """
    lab = AutoProcessor.from_pretrained(locate("scenes-parts"))
    tokenizer = lab.tokenizer
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.chat_template = None
    config.text_config.vocab_size = len(tokenizer)
    config.text_config.eos_token_id, config.text_config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.vision_config.image_size, config.vision_config.patch_size = (
        lab.image_processor.size["height"],
        lab.patch_size,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    kind = CLIPProcessor if isinstance(config, CLIPConfig) else SiglipProcessor
    kind(image_processor=lab.image_processor, tokenizer=tokenizer).save_pretrained(folder)


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
