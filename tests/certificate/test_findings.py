"""Findings: the arithmetic of verdicts, and what the command makes of them."""

import json
import math

import pytest
import torch

from alignlab import InputError, certify
from alignlab.certificate.case import Trace
from alignlab.certificate.findings import Certificate, Finding, compare
from alignlab.cli import main
from alignlab.objectives import MLE


@pytest.mark.parametrize(
    ("deviation", "verdict"), [(0.0, "holds"), (0.1, "holds"), (0.2, "fails"), (math.nan, "fails"), (math.inf, "fails")]
)
def test_a_property_holds_up_to_its_bound(deviation, verdict):
    finding = compare("order", {"the loss": 0.0, "a gradient": deviation}, 0.1)
    assert finding.verdict == verdict
    assert ("a gradient" in finding.note) == (verdict == "fails")


def test_a_gradient_is_measured_against_its_own_size_but_rounding_of_nothing_is_nothing():
    here = Trace(
        torch.tensor(2.0), {"large": torch.tensor([3.0, 4.0]), "small": torch.tensor(1e-3), "none": torch.zeros(2)}
    )
    there = Trace(
        torch.tensor(2.2),
        {"large": torch.tensor([3.0, 4.5]), "small": torch.tensor(2e-3), "none": torch.full((2,), 1e-16)},
    )
    off = here.deviations(there)
    assert off["the loss"] == pytest.approx(0.1)
    assert off["the gradient of large"] == pytest.approx(0.1)
    assert off["the gradient of small"] == pytest.approx(1)  # invisible beside the large one, and still seen
    assert off["the gradient of none"] < 1e-9


def test_a_certificate_holds_unless_a_property_fails():
    fine = [Finding("order", "holds"), Finding("accumulation", "n/a", note="why")]
    assert Certificate("A", fine).holds
    wrong = Certificate("A", [*fine, Finding("padding", "fails")])
    assert not wrong.holds and wrong["padding"].verdict == "fails"
    assert not json.loads(json.dumps(wrong.as_dict()))["holds"]


def test_too_few_examples_are_refused(examples):
    with pytest.raises(InputError, match="certify needs at least 6 examples, got 3"):
        certify(MLE, examples[:3])


def test_what_cannot_be_sent_to_a_process_is_refused_before_anything_runs(examples):
    class Local(MLE):
        """Nobody can import it."""

    with pytest.raises(InputError, match="Local cannot be sent to another process.*define it in a module"):
        certify(Local, examples)
    assert certify(Local, examples, children=False).holds


class Raises(MLE):
    def loss(self, batch):
        raise ZeroDivisionError("what a pity")


def test_what_an_objective_raises_is_a_finding(examples):
    certificate = certify(Raises, examples, children=False)
    note = certificate["order"].note
    assert certificate["order"].verdict == "fails" and note.startswith(
        "raised ZeroDivisionError: what a pity (test_find"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "certify needs an objective"),
        (["MLE", "--all"], "certify needs an objective"),
        (["Nothing"], "Nothing"),
        (["MLE", "--data", "LlavaPairs"], "data"),
        (["none.yaml"], "none.yaml"),
    ],
)
def test_what_cannot_be_certified_is_refused_in_a_line(arguments, message, capsys):
    assert main(["certify", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("alignlab: error:") and message in error and "Traceback" not in error


@pytest.mark.slow
def test_the_command_prints_a_table_or_json_and_exits_1_when_a_property_fails(capsys, monkeypatch, tmp_path):
    (tmp_path / "summed.py").write_text(
        "from alignlab import Loss\nfrom alignlab.objectives import MLE\n\n\nclass Summed(MLE):\n"
        "    def loss(self, batch):\n        return Loss(super().loss(batch).mean, 1.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["certify", "summed.Summed"]) == 1
    shown = capsys.readouterr().out
    assert "Summed: FAILS" in shown and "worst" in shown
    assert main(["certify", "InfoNCE", "--objective.scale", "20", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["objective"] == "InfoNCE" and found["holds"] and len(found["findings"]) == 12
