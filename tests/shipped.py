"""How each shipped objective is made on a tiny backbone; a new one is added here."""

from functools import partial

from alignlab.modules import VectorQuantizer
from alignlab.objectives import (
    CAL,
    CLIP,
    LLM2CLIP,
    MLE,
    Emu,
    InfoNCE,
    LaVIT,
    LaVITTokenizer,
    LLM2CLIPText,
    Mixture,
    PLoRA,
    SeVa,
    SigLIP,
    UniME,
    UniMEDistillation,
)

MAKERS = {
    "MLE": MLE,
    "CAL": CAL,
    "PLoRA": partial(PLoRA, rank=4, dropout=0.0),
    "SeVa": SeVa,
    "InfoNCE": InfoNCE,
    "UniME": UniME,
    "UniMEDistillation": UniMEDistillation,
    "LLM2CLIPText": LLM2CLIPText,
    "CLIP": CLIP,
    "SigLIP": SigLIP,
    "LLM2CLIP": LLM2CLIP,
    "LaVITTokenizer": partial(
        LaVITTokenizer,
        quantizer=partial(VectorQuantizer, num_codes=16),
        depth=1,
        num_heads=4,
        mlp_ratio=1.5,
        code_dim=4,
    ),
    "LaVIT": LaVIT,
    "Emu": partial(Emu, num_tokens=9),
    "Mixture": partial(Mixture, parts={"likelihood": MLE, "contrast": InfoNCE}),
}
