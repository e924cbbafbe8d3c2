"""Losses of other libraries: what the README says of them, where they are installed."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from alignlab import certify

FOLDER = Path(__file__).parents[2] / "experiments" / "certificates"


@pytest.fixture
def others(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("others")


def test_the_mean_of_means_over_tokens_is_caught(others, examples):
    certificate = certify(others.TransformersLikelihood, examples, children=False)
    assert certificate["accumulation"].verdict == "fails" and certificate["accumulation"].deviation > 0.5
    rounded = [finding for finding in certificate.findings if "float32" in finding.note]  # as theirs does
    assert rounded and all(finding.deviation < 1e-5 for finding in rounded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "name", "equal_batches_hold"),
    [
        ("open_clip", "OpenClip", False), ("open_clip", "OpenClipExact", True),
        ("sentence_transformers", "SentenceTransformers", False),
        ("sentence_transformers", "SentenceTransformersGathered", True),
    ],
)  # fmt: skip
def test_contrastive_losses_in_several_processes(others, examples, package, name, equal_batches_hold):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    finding = certify(getattr(others, name), examples)["processes"]
    equal = float(finding.note.partition("3 + 3: ")[2].partition(";")[0])
    assert finding.verdict == "fails" and (equal < 1e-9) == equal_batches_hold


def test_what_is_not_installed_is_said(others, tiny_backbone, examples):
    if importlib.util.find_spec("open_clip") is not None:
        pytest.skip("open_clip is installed")
    certificate = certify(others.OpenClip, examples, children=False)
    assert "open_clip is not installed; pip install open_clip_torch" in certificate["order"].note
