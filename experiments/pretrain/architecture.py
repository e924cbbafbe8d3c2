"""The lab's LLaVA without its training: configuration, word-level tokenizer, processor, random weights.

    python experiments/pretrain/architecture.py runs/architecture

Its vision tower, projector and language model are then trained by experiments/pretrain/scenes_parts.yaml.
"""

import sys

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

from alignlab.data.scenes.language import VOCABULARY

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
ROLES = ("user", "assistant", "system")
CHAT_TEMPLATE = (
    "<s>{% for message in messages %} {{ message['role'] }} :"
    "{% for part in message['content'] %} {{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)
IMAGE_SIZE, PATCH_SIZE = 48, 8


def make_processor() -> LlavaProcessor:
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
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy then drops
        chat_template=CHAT_TEMPLATE,
    )


def make_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=80,
        intermediate_size=240,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=80,
        initializer_range=0.08,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.08,  # 0.02 is meant for widths of thousands; at 96 it starts nearly blind
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
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        tie_word_embeddings=False,
    )


def main(folder: str) -> None:
    processor = make_processor()
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(make_config(processor.tokenizer))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} words")


if __name__ == "__main__":
    main(sys.argv[1])
