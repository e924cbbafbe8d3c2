"""Tables for papers say what the report says, and LaTeX and Markdown take any name."""

import csv
import re
from dataclasses import replace

import pytest
from records import write_study

from alignlab.study import papers
from alignlab.study.entries import Finding
from alignlab.study.page import rows

ARMS = {
    "MLE": {"caption/exact_r1": (0.1, 0.2, 0.3), "text/perplexity": (2.0, 2.0, 2.0)},
    "50 % & {own}_~": {"caption/exact_r1": (0.2, 0.3, 0.43), "text/perplexity": (3.0, 2.0, 1.0)},
    "none": {"caption/exact_r1": ()},
}


@pytest.fixture
def written(tmp_path):
    results = write_study(tmp_path, ARMS)
    papers.write(results, rows(results, results.metrics), tmp_path / "tables")
    return tmp_path / "tables"


def body(text: str) -> list[list[str]]:
    """The cells between the rules."""
    inner = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    return [line.removesuffix(" \\\\").split(" & ") for line in inner.splitlines()]


def test_the_numbers_are_the_reports(written):
    # 0.2, 0.3, 0.43: mean 0.31, standard deviation 0.11533, half width 4.3027 * 0.11533 / sqrt(3) = 0.2865
    lines = body((written / "scores.tex").read_text())
    assert lines[0] == ["MLE", "$3$", r"$0.200 \pm 0.248$", r"$2.000 \pm 0.000$"]
    assert lines[1][1:3] == ["$3$", r"$0.310 \pm 0.286^{*}$"]
    assert lines[2][2:] == ["n/a", "n/a"]
    first = body((written / "differences.tex").read_text())[0]
    assert first[1:] == ["$3$", "$+0.110 [+0.067, +0.153]^{*}$", "$0.000 [-2.484, +2.484]$"]


def test_a_table_is_whole(written):
    for name in ("scores", "differences"):
        text = (written / f"{name}.tex").read_text()
        assert [line for line in text.splitlines() if line.startswith(("\\begin", "\\end"))] == [
            r"\begin{table}", r"\begin{tabular}{lrrr}", r"\end{tabular}", r"\end{table}"
        ]  # fmt: skip
        assert all(len(line) == 4 for line in body(text))
        assert text.replace(r"\{", "").replace(r"\}", "").count("{") == text.replace(r"\}", "").replace(
            r"\{", ""
        ).count("}")
        assert text.count(r"\caption{") == text.count(r"\label{tab:mine-") == 1


def test_better_is_upward_but_for_errors(written):
    head = (written / "scores.tex").read_text().partition("\\toprule\n")[2].splitlines()[0]
    assert head.startswith(r"arm & $n$ & \shortstack[r]{caption \\ exact\_r1 $\uparrow$} & ")
    assert head.endswith(r" & \shortstack[r]{text \\ perplexity $\downarrow$} \\")


def test_latex_takes_any_name(written):
    arm = body((written / "scores.tex").read_text().replace(r"\&", "AND"))[1][0]
    assert arm == r"50 \% AND \{own\}\_\textasciitilde{}"
    assert papers.escaped("\\a^b #1 $2\n[x] <|") == (
        r"\textbackslash{}a\textasciicircum{}b \#1 \$2 {[}x{]} \textless{}\textbar{}"
    )


def test_markdown_takes_any_name(written):
    lines = (written / "scores.md").read_text().splitlines()[2:]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1 and len(lines) == 5
    assert r"50 % & {own}\_\~" in lines[3] and r"0.310 ± 0.286\*" in lines[3]


def test_the_csv_has_all_digits_and_a_row_for_each_arm_and_metric(written):
    with open(written / "differences.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["metric"], line["arm"]) for line in lines] == [(m, a) for m in ARMS["MLE"] for a in list(ARMS)[1:]]
    assert float(lines[0]["mean"]) == pytest.approx(0.11, abs=1e-12) and lines[1]["mean"] == ""


def test_the_mark_follows_the_verdict_and_the_caption_says_so(tmp_path):
    results = write_study(tmp_path, ARMS)
    entries = {
        metric: [replace(entry, finding=finding) for entry in row]
        for finding in [Finding("inconclusive", "not matched")]
        for metric, row in rows(results, ["caption/exact_r1"]).items()
    }
    paper = papers.differences(results, entries)
    assert "supported" in paper.title and not any(text.endswith("*") for row in paper.rows.values() for text in row)
    plain = {metric: [replace(entry, finding=None) for entry in row] for metric, row in entries.items()}
    paper = papers.differences(results, plain)
    assert "excludes 0" in paper.title and paper.rows["50 % & {own}_~"][1].endswith("*")


def test_many_metrics_take_the_width_of_the_page(tmp_path):
    metrics = {f"m{number}": (0.1, 0.2) for number in range(4)}
    results = write_study(tmp_path, {"MLE": metrics, "own": metrics})
    assert r"\begin{table*}" in papers.latex(papers.scores(results, rows(results, results.metrics)), "mine")


def test_an_empty_study_has_no_tables(tmp_path):
    results = write_study(tmp_path, {"MLE": {"m": (0.1,)}})
    papers.write(replace(results, cells=()), {}, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()
