"""The lab's LLaVA without its training: configuration, word-level tokenizer, processor, random weights.

    python experiments/pretrain/architecture.py runs/architecture
    python experiments/pretrain/architecture.py runs/architecture-large --large

Its vision tower, projector and language model are then trained by scenes_parts.yaml or scenes_large.yaml beside it.
"""

import argparse
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from alignlab.data.scenes.lexicon import VOCABULARY

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
ROLES = ("user", "assistant", "system")
CHAT_TEMPLATE = (
    "<s>{% for message in messages %} {{ message['role'] }} :"
    "{% for part in message['content'] %} {{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes in pixels, widths and layers of the vision tower and the language model.

    Args:
        spread: Standard deviation of the random weights; the usual 0.02 is meant for widths of thousands.
    """

    image_size: int
    patch_size: int
    layers: int
    heads: int
    vision_dim: int
    vision_inner: int
    text_dim: int
    text_inner: int
    spread: float


SMALL = Shape(48, 8, 3, 4, 64, 128, 64, 160, spread=0.08)
LARGE = Shape(224, 16, 12, 8, 512, 2048, 640, 1728, spread=0.03)


def make_processor(shape: Shape) -> LlavaProcessor:
    words = {word: index for index, word in enumerate(dict.fromkeys((*SPECIAL, *ROLES, *VOCABULARY)))}
    model = Tokenizer(WordLevel(words, unk_token="<unk>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    )
    pictures = CLIPImageProcessorPil(
        size={"height": shape.image_size, "width": shape.image_size},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=shape.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy then drops
        chat_template=CHAT_TEMPLATE,
    )


def make_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_dim,
        intermediate_size=shape.vision_inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        projection_dim=shape.vision_dim,
        initializer_range=shape.spread,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.text_dim,
        intermediate_size=shape.text_inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=512,
        initializer_range=shape.spread,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=(shape.image_size // shape.patch_size) ** 2,
        tie_word_embeddings=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the lab's untrained model.")
    parser.add_argument("folder")
    parser.add_argument("--large", action="store_true", help="about 100 million parameters, for a GPU")
    arguments = parser.parse_args()
    shape = LARGE if arguments.large else SMALL
    processor = make_processor(shape)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(make_config(shape, processor.tokenizer))
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.folder}: {count:,} parameters, {len(processor.tokenizer)} words")


if __name__ == "__main__":
    main()
