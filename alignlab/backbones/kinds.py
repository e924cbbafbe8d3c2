"""kinds: what a model of transformers can do, by its config alone."""

from typing import Any

from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING


def is_generative(config: Any) -> bool:
    """Whether it writes texts about pictures: a vision-language model."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def is_dual(config: Any) -> bool:
    """Whether it embeds pictures and texts in towers of their own, and writes nothing: CLIP, SigLIP."""
    if is_generative(config) or type(config) not in MODEL_MAPPING:
        return False
    model = MODEL_MAPPING[type(config)]
    return hasattr(model, "get_image_features") and hasattr(model, "get_text_features")
