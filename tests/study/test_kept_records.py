"""A record holds what a study has found, small, and without its run directories."""

import json
import shutil

import pytest
from records import write_study

from alignlab import cli
from alignlab.errors import InputError
from alignlab.study.claims import Claim, register
from alignlab.study.comparison import compare
from alignlab.study.records import Record, read_records, record

VALUES = {"MLE": {"m": (0.1, 0.2, 0.3)}, "own": {"m": (0.2, 0.31, 0.42), "n": (1.0, 2.0, 3.0)}}
CLAIM = Claim("own", "MLE", "m", "higher", 0.01, "It helps.", "Own, arXiv:0000.00000")
COMMAND = "alignlab study run studies/mine.yaml --jobs 2"


@pytest.fixture
def study(tmp_path):
    """Its directory; two arms of three seeds, of which the first has one score fewer."""
    claims = register([CLAIM], [], {"own": 1}, {})
    results = write_study(tmp_path / "mine", VALUES, claims=claims, command=COMMAND, description="Does it? Perhaps.")
    return results.directory


def test_a_record_tells_the_study_when_its_directory_is_gone(study, tmp_path):
    path = record(study, tmp_path / "records", ["Seeds 3 and 4 were lost."])
    shutil.rmtree(study)
    (back,) = read_records(tmp_path / "records")
    assert path == tmp_path / "records" / "mine.json"
    assert (back.name, back.question, back.file) == ("mine", "Does it?", "studies/mine.yaml")
    assert back.extent == "2 arms × 1 start × 3 seeds; 6 of 6 cells finished"
    assert back.values("own", "m") == {("a", 0): 0.2, ("a", 1): 0.31, ("a", 2): 0.42}
    assert back.values("MLE", "n") == {}
    assert back.notes[-1] == "Seeds 3 and 4 were lost." and back.setup["packages"] == {"torch": "2.13.0"}
    (outcome,) = back.outcomes
    assert outcome.registered.claim == CLAIM and outcome.registered.seen == 1 and outcome.pairs == 3
    # differences 0.1, 0.11, 0.12: mean 0.11, standard deviation 0.01, half width 4.3027 * 0.01 / sqrt(3) = 0.02484
    assert outcome.difference == pytest.approx((0.11, 0.11 - 0.02484, 0.11 + 0.02484), abs=1e-5)
    assert outcome.verdict == "supported" and outcome.needed is None


def test_a_record_keeps_comparisons_as_they_were(study, tmp_path):
    content = json.loads(record(study, tmp_path).read_text())
    (line,) = [line for line in content["comparisons"] if line["arm"] == "own" and line["metric"] == "m"]
    from alignlab.study.results import Results

    entry = compare(Results.read(study), "own", "m")
    assert line["difference"] == pytest.approx(list(entry.difference), abs=1e-6) and line["p"] == entry.p == 0.25


def test_costs_count_stages_and_what_was_not_written_down_is_unknown(study, tmp_path):
    cells = [study / "cells" / "own" / f"own{seed}" for seed in (0, 1)]
    model = {"steps": 5, "samples": 50, "seconds": {"fit": 6.0, "evaluate": 1.0}, "parameters": {"trained": 1500}}
    model |= {"flops": {"forward": 1.0, "backward": 2.0}}
    for name, metrics in (
        ("model", model),
        ("pairs", {"pairs": {"splits": {}}, "seconds": {"pairs": 4.0}}),
    ):
        (study / "stages" / name).mkdir(parents=True)
        (study / "stages" / name / "metrics.json").write_text(json.dumps(metrics))
    for cell in cells:
        (cell / "stages.json").write_text('{"model": "../../../stages/model", "pairs": "../../../stages/pairs"}')
    back = Record.read(record(study, tmp_path))
    costs = {each["seed"]: each["costs"] for each in back.cells if each["arm"] == "own"}
    assert (costs[0]["steps"], costs[0]["samples"], costs[0]["seconds"]) == (25, 1330, 44.0)
    assert (costs[2]["steps"], costs[2]["seconds"], costs[2]["trained"]) == (20, 33.0, 1000)
    assert costs[0]["trained"] == 1500  # as the report has it
    assert costs[0]["flops"] is None  # of the stage alone they are known
    assert back.cost("own", "seconds") == pytest.approx((44 + 44 + 33) / 3)
    assert back.cost("own", "flops") is None and back.seconds == 6 * 33 + 11  # both cells share the stages


def test_a_later_record_takes_the_place_of_the_earlier_one(study, tmp_path, capsys):
    shutil.rmtree(study / "cells" / "own" / "own2")
    record(study, tmp_path / "records")
    assert len(read_records(tmp_path / "records")[0].cells) == 5
    (study / "cells" / "own" / "own1" / "metrics.json").unlink()
    assert cli.main(["study", "record", str(study), "--output", str(tmp_path / "records"), "--note", "less"]) == 0
    (back,) = read_records(tmp_path / "records")
    assert len(back.cells) == 4 and back.notes[-1] == "less" and "mine.json" in capsys.readouterr().out


def test_what_is_no_record_is_said(study, tmp_path):
    with pytest.raises(InputError, match=r"no such folder; `alignlab study record DIR"):
        read_records(tmp_path / "none")
    (tmp_path / "old.json").write_text('{"format": 0}')
    with pytest.raises(InputError, match=r"not the record of a study: format 0, not 1"):
        read_records(tmp_path)
    shutil.rmtree(study / "cells")
    with pytest.raises(InputError, match="none of its cells is finished"):
        record(study, tmp_path)
