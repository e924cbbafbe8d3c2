"""Directories in the shape of released models, without weights: for counting and timing, not for training.

    python experiments/recipes/shapes.py shapes
    alignlab fit --config experiments/recipes/llava_stage2.yaml --dry-run --backbone.path shapes/llava-1.5-7b

The configs have the released models' numbers. The tokenizer is a stand-in, the lab's words with one token for each
other word, where the real ones need about 1.3 tokens a word; pictures are processed as CLIP does, at 336 pixels.
"""

import argparse
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from alignlab.data.scenes.lexicon import VOCABULARY

TOWER = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
"""openai/clip-vit-large-patch14-336."""

VICUNA = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip
"""lmsys/vicuna-7b-v1.5, with the words that llava-hf/llava-1.5-7b-hf adds."""

LLAMA3 = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
"""meta-llama/Meta-Llama-3-8B-Instruct."""

IMAGE, PAD = 32000, 32001
"""Ids of llava-hf/llava-1.5-7b-hf."""

PARTS = (
    "<s>{% for message in messages %}{{ ' USER: ' if message['role'] == 'user' else ' ASSISTANT: ' }}"
    "{% for part in message['content'] %}{{ '<image> ' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% if message['role'] == 'assistant' %} </s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT: {% endif %}"
)
TEXTS = (
    "<s>{% for message in messages %} user : {{ message['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %} assistant : {% endif %}"
)


def tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    words = {word: index for index, word in enumerate(dict.fromkeys(("<unk>", "<s>", "</s>", *VOCABULARY)))}
    model = Tokenizer(WordLevel({**words, "<image>": IMAGE, "<pad>": PAD}, unk_token="<unk>"))
    model.normalizer, model.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        chat_template=template,
    )


def pictures() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})


def llava(folder: Path) -> None:
    """LLaVA-1.5-7B: Vicuna-7B, CLIP ViT-L/14 at 336 pixels, 576 patches of its last layer but one."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER),
        text_config=LlamaConfig(**VICUNA, pad_token_id=PAD),
        image_token_index=IMAGE,
        image_seq_length=576,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    processor = LlavaProcessor(
        pictures(),
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=PARTS,
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)


def clip(folder: Path) -> None:
    """CLIP ViT-L/14 at 336 pixels with its text tower."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
    CLIPConfig(vision_config=TOWER, text_config=text, projection_dim=768).save_pretrained(folder)
    CLIPProcessor(pictures(), tokenizer()).save_pretrained(folder)


def llama3(folder: Path) -> None:
    """Llama-3-8B, a text tower."""
    LlamaConfig(**LLAMA3, architectures=["LlamaForCausalLM"], pad_token_id=PAD).save_pretrained(folder)
    tokenizer(TEXTS).save_pretrained(folder)


SHAPES = {"llava-1.5-7b": llava, "clip-vit-large-336": clip, "llama-3-8b": llama3}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the shapes that the recipes are tried with.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, write in SHAPES.items():
        write(folder / name)
        print(folder / name)


if __name__ == "__main__":
    main()
