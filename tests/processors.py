"""Tiny directories of many families: a random model, its own processor, the lab's words and a chat template."""

import json
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    SiglipImageProcessorPil,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.utils import is_num2words_available

from alignlab.backbones import locate

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
VISION = {**SHAPE, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
FINE = {**VISION, "patch_size": 4}
QWEN = {"num_heads": 2, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
TILES = [f"<row_{row}_col_{column}>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4)]
CHAT = (
    "{{ bos_token }}{% for message in messages %} {{ message['role'] }} :{% for part in message['content'] %} "
    "{{ PICTURE if part['type'] == 'image' else part['text'] }}{% endfor %}{% if message['role'] == 'assistant' %} "
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)
# As its processor would write it: pictures, the beginning of the text, the text, a new line.
PREFIXED = (
    "{% for message in messages %}{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{{ bos_token if loop.first else '' }}{% for part in message['content'] if part['type'] == 'text' %}"
    " {{ part['text'] }}{% endfor %}{{ ' ' + eos_token if message['role'] == 'assistant' else ' \\n' }}{% endfor %}"
)


@dataclass(frozen=True)
class Family:
    """What makes a directory of one family.

    Args:
        config: Of the model, made with the ids of the special tokens by name, and ``text``, the decoder's sizes.
        processor: The processor's class, as directories name it.
        images: Makes the image processor.
        picture: What stands for a picture in a text, as the chat template writes it.
        named: Special tokens that the processor asks its tokenizer for, by name.
        others: More special tokens.
        settings: Of the processor.
        video: The class of its video processor, which the directory names; None: it has none.
        template: The chat template.
    """

    config: Any
    processor: str
    images: Any
    picture: str = "<image>"
    named: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    video: str | None = None
    template: str = CHAT


def sized(kind, **settings):
    return partial(kind, **{"size": {"height": 16, "width": 16}, **settings})


def llava(kind, ids, text, **settings):
    return kind(
        vision_config={**VISION, "model_type": settings.pop("tower", "clip_vision_model"), "vision_use_head": False},
        text_config={**text, "model_type": settings.pop("decoder", "llama")},
        image_token_index=ids["<image>"],
        vision_feature_layer=-1,
        **settings,
    )


def gemma(ids, text):
    return Gemma3Config(
        text_config={**text, "sliding_window": 512, "query_pre_attn_scalar": 8},
        vision_config={**FINE, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )


def paligemma(ids, text):
    return PaliGemmaConfig(
        vision_config={**VISION, "model_type": "siglip_vision_model", "projection_dim": 32, "vision_use_head": False},
        text_config={**text, "model_type": "gemma"},
        image_token_index=ids["<image>"],
        projection_dim=32,
        hidden_size=32,
    )


def idefics(kind, decoder, ids, text):
    text = {**text, "model_type": decoder, "pad_token_id": ids["<pad>"]}
    return kind(
        vision_config=FINE, text_config=text, image_token_id=ids["<image>"], scale_factor=2, pad_token_id=ids["<pad>"]
    )


def internvl(ids, text):
    return InternVLConfig(
        vision_config={**FINE, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config={**text, "model_type": "qwen2"},
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=4,
        downsample_ratio=0.5,
    )


def qwen(kind, vision, ids, text):
    return kind(
        text_config={**text, **ROPE},
        vision_config={**QWEN, **vision},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def qwen_family(kind, processor, video, vision, normal):
    return Family(
        config=partial(qwen, kind, vision),
        processor=processor,
        images=partial(
            Qwen2VLImageProcessorPil,
            patch_size=4,
            size={"shortest_edge": 64, "longest_edge": 640},
            image_mean=[normal] * 3,
            image_std=[normal] * 3,
        ),
        picture="<|vision_start|><|image_pad|><|vision_end|>",
        others=("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        video=video,
    )


def idefics_family(kind, processor, images, decoder, video=None):
    return Family(
        config=partial(idefics, kind, decoder),
        processor=processor,
        images=partial(images, size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        others=("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>", *TILES),
        settings={"image_seq_len": 4},
        video=video,
    )


FAMILIES = {
    "LLaVA": Family(
        config=partial(llava, LlavaConfig),
        processor="LlavaProcessor",
        images=sized(CLIPImageProcessorPil, do_center_crop=False),
        settings={"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "LLaVA-NeXT": Family(
        config=partial(llava, LlavaNextConfig, image_grid_pinpoints=PINPOINTS),
        processor="LlavaNextProcessor",
        images=partial(
            LlavaNextImageProcessorPil,
            size={"shortest_edge": 16},
            crop_size={"height": 16, "width": 16},
            image_grid_pinpoints=PINPOINTS,
        ),
        settings={"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "Idefics3": idefics_family(Idefics3Config, "Idefics3Processor", Idefics3ImageProcessorPil, "llama"),
    "PaliGemma": Family(
        config=paligemma,
        processor="PaliGemmaProcessor",
        images=sized(SiglipImageProcessorPil, image_seq_length=4),
        template=PREFIXED,
    ),
    "Gemma 3": Family(
        config=gemma,
        processor="Gemma3Processor",
        images=sized(Gemma3ImageProcessorPil),
        picture="<start_of_image>",
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        settings={"image_seq_length": 4},
    ),
    "LLaVA-OneVision": Family(
        config=partial(
            llava,
            LlavaOnevisionConfig,
            image_grid_pinpoints=PINPOINTS,
            tower="siglip_vision_model",
            decoder="qwen2",
            vision_feature_select_strategy="full",
        ),
        processor="LlavaOnevisionProcessor",
        images=sized(LlavaOnevisionImageProcessorPil, image_grid_pinpoints=PINPOINTS),
        settings={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        others=("<video>",),
        video="LlavaOnevisionVideoProcessor",
    ),
    "Qwen2-VL": qwen_family(
        Qwen2VLConfig,
        "Qwen2VLProcessor",
        "Qwen2VLVideoProcessor",
        {"depth": 1, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        0.5,
    ),
    "Qwen2.5-VL": qwen_family(
        Qwen2_5_VLConfig,
        "Qwen2_5_VLProcessor",
        "Qwen2VLVideoProcessor",
        {
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 16},
            **{"fullatt_block_indexes": [1]},
        },
        0.5,
    ),
    "Qwen3-VL": qwen_family(
        Qwen3VLConfig,
        "Qwen3VLProcessor",
        "Qwen3VLVideoProcessor",
        {
            **{"depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32},
            **{"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        },
        0.5,
    ),
    "InternVL": Family(
        config=internvl,
        processor="InternVLProcessor",
        images=sized(GotOcr2ImageProcessorPil, crop_to_patches=True, min_patches=1, max_patches=3),
        picture="<IMG_CONTEXT>",
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        settings={"image_seq_length": 4},
        video="InternVLVideoProcessor",
    ),
    "SmolVLM": idefics_family(
        SmolVLMConfig, "SmolVLMProcessor", SmolVLMImageProcessorPil, "llama", "SmolVLMVideoProcessor"
    ),
}


def write_family(name, folder):
    """Write a directory that plain transformers reads, as far as its video processor can be read here."""
    family = FAMILIES[name]
    tokenizer = AutoProcessor.from_pretrained(locate("scenes-parts")).tokenizer
    extra = [*dict.fromkeys(["<image>", *family.named.values(), *family.others])]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    if family.named:
        tokenizer.init_kwargs["extra_special_tokens"] = family.named
        tokenizer._set_model_specific_special_tokens(special_tokens=family.named)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    images = family.images().to_dict()
    processor = {"processor_class": family.processor, "image_processor": images, **family.settings}
    if family.video is not None:
        processor["video_processor"] = {"video_processor_type": family.video, "num_frames": 3}
    (folder / "processor_config.json").write_text(json.dumps(processor, default=str))
    (folder / "chat_template.jinja").write_text(family.template.replace("PICTURE", repr(family.picture)))
    write_model(family, tokenizer, folder)


def write_model(family, tokenizer, folder):
    """A random model whose weights are so large that each of them matters."""
    size = len(tokenizer) + (1200 if family.processor == "PaliGemmaProcessor" else 0)  # its processor adds places
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = family.config(tokenizer.get_vocab(), {**TEXT, **special, "vocab_size": size})
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)


def can_be_read(name):
    """Whether the packages that the family's processor asks for are here; that of videos is not needed."""
    return name != "SmolVLM" or is_num2words_available()
