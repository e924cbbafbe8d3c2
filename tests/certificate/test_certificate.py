"""The certificate: right objectives pass it, wrong ones are caught by the property that they break."""

from functools import partial

import broken
import pytest

from alignlab import certify
from alignlab.modules import LFQ, VectorQuantizer
from alignlab.objectives import (
    CAL,
    CLIP,
    LLM2CLIP,
    MLE,
    Emu,
    Free,
    InfoNCE,
    LaVIT,
    LaVITTokenizer,
    LLM2CLIPText,
    MaskedPatches,
    MeanColor,
    Mixture,
    PLoRA,
    SeVa,
    SigLIP,
    UniME,
    UniMEDistillation,
)

TOKENIZER = partial(LaVITTokenizer, depth=1, num_heads=4, mlp_ratio=1.5, code_dim=4)
SHIPPED = {
    "MLE": MLE,
    "CAL": CAL,
    "CAL, each row by itself": partial(CAL, low=0.0, normalize="sample", contrast=MaskedPatches(0.5)),
    "CAL, another picture": partial(CAL, window=1, contrast=MeanColor()),
    "PLoRA": partial(PLoRA, rank=4),
    "SeVa": SeVa,
    "SeVa, no reference": partial(SeVa, loss="ipo", reference=Free(), likelihood=0.5),
    "InfoNCE": InfoNCE,
    "InfoNCE, one way": partial(InfoNCE, symmetric=False, learn_scale=False, label_smoothing=0.1),
    "UniME": partial(UniME, num_hard=3, margin=0.0),
    "UniME, own negatives": partial(UniME, num_hard=99, margin=2.0, negatives=True, groups=True),
    "InfoNCE, own negatives": partial(InfoNCE, negatives=True, groups=True),
    "UniMEDistillation": UniMEDistillation,
    "LLM2CLIPText": LLM2CLIPText,
    "CLIP": CLIP,
    "CLIP, two towers": CLIP,
    "SigLIP": SigLIP,
    "SigLIP, two towers": partial(SigLIP, init_bias=-2.0, max_scale=100.0),
    "LLM2CLIP, two towers": partial(LLM2CLIP, label_smoothing=0.1),
    "LaVITTokenizer": TOKENIZER,
    "LaVITTokenizer, quantized": partial(TOKENIZER, quantizer=partial(VectorQuantizer, num_codes=16)),
    "LaVITTokenizer, LFQ": partial(TOKENIZER, quantizer=partial(LFQ, bits=6)),
    "Emu": Emu,
    "Emu, 9 tokens": partial(Emu, num_tokens=9, captions_supervised=True, drop_text=0.5),
    "LaVIT": LaVIT,
    "LaVIT, all discrete": partial(
        LaVIT, discrete_input=True, read_images_supervised=True, captions_supervised=True, drop_text=0.5
    ),
    "Mixture": partial(Mixture, parts={"likelihood": MLE, "contrast": InfoNCE}, weights={"contrast": 0.5}),
}
IN_CHILDREN = ("processes", "resume", "seeds")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_objective_holds(name, examples):
    certificate = certify(SHIPPED[name], examples, children=False, dual="two towers" in name)
    assert certificate.holds, [finding for finding in certificate.findings if finding.verdict == "fails"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_objective_holds_in_processes_of_its_own(name, examples):
    certificate = certify(SHIPPED[name], examples, dual="two towers" in name)
    assert certificate.holds, [finding for finding in certificate.findings if finding.verdict == "fails"]
    assert {finding.property for finding in certificate.findings} > set(IN_CHILDREN)


@pytest.mark.parametrize("objective", [
    each if each.breaks not in IN_CHILDREN else pytest.param(each, marks=pytest.mark.slow) for each in broken.GALLERY
], ids=lambda each: each.__name__)  # fmt: skip
def test_a_broken_objective_is_caught(objective, examples):
    certificate = certify(objective, examples, children=objective.breaks in IN_CHILDREN)
    failed = {finding.property: finding.note for finding in certificate.findings if finding.verdict == "fails"}
    if objective.breaks:
        assert objective.breaks in failed, certificate
        assert "raised" not in failed[objective.breaks]  # caught, not crashed
    else:
        assert not failed
