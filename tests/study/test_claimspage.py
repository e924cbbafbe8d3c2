"""The page of claims says what papers and records say, and no more."""

from pathlib import Path

import pytest
from records import write_study

from alignlab import cli
from alignlab.errors import InputError
from alignlab.study.ablations import agreements, read_published
from alignlab.study.claims import Claim, register
from alignlab.study.claimspage import claims_page
from alignlab.study.records import Record, record

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"

PUBLISHED = """
about: The lab is small.
ablations:
  - method: Own
    asks: the margin
    source: Own, Table 3
    scale: recall
    study: mine
    metric: m
    rows: [{arm: low, published: 60}, {arm: middle, published: 64}, {arm: high, published: 61}]
"""
STUDY = """
base: base.yaml
arms: {low: {}, %s: {}}
claims: [{arm: %s, metric: m, direction: higher, smallest: 0.01, source: Own}]
"""
ARMS = {
    "low": {"m": (0.10, 0.21, 0.30), "chair/instance": (0.3, 0.31, 0.3)},
    "middle": {"m": (0.25, 0.34, 0.46), "chair/instance": (0.1, 0.12, 0.1)},
    "high": {"m": (0.50, 0.61, 0.71), "chair/instance": (0.2, 0.2, 0.21)},
    "noisy": {"m": (0.10, 0.90, 0.20), "chair/instance": (0.2, 0.2, 0.21)},
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Of the record of one study, with a claim that holds and one that fails."""
    claims = [
        Claim("middle", "low", "m", "higher", 0.01, "The middle is best.", "Own, arXiv:0000.00000"),
        Claim("middle", "high", "m", "higher", 0.01, "The middle is best.", "Own, Table 3"),
    ]
    lines = register(claims, [], {"high": 2}, {})
    results = write_study(tmp_path / "mine", ARMS, claims=lines, command="alignlab study run mine.yaml")
    record(results.directory, tmp_path / "records")
    return tmp_path / "records"


@pytest.fixture
def published(tmp_path):
    def published(text: str) -> Path:
        (tmp_path / "published.yaml").write_text(text)
        return tmp_path / "published.yaml"

    return published


def rows(page: str, start: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith(f"| {start} ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_a_claim_stands_with_effect_verdict_registration_and_cost(folder):
    page = claims_page(folder, folder / "claims.md")
    assert (
        "## Own\n\n> The middle is best. (Own, [arXiv:0000.00000](https://arxiv.org/abs/0000.00000); Own, Table 3)\n"
        in page
    )
    helps, fails = rows(page, "mine")[:2]
    # differences 0.15, 0.13, 0.16: standard deviation 0.01528, half width 4.3027 * 0.01528 / sqrt(3) = 0.038
    assert helps[1:4] == ["*middle* against *low*", "m higher, by 0.01", "0.203 → 0.350: +0.147 [+0.109, +0.185]"]
    assert helps[4].startswith("**supported**: ") and helps[5].startswith("before the results, 2")
    assert helps[6] == "33 s, 1.00 × the time"
    assert fails[4].startswith("**not supported**: ") and fails[5].startswith("after 2 cells of the results, 2")
    assert rows(page, "Own") == [["Own", "1", "1", "–", "–"]]


def test_scores_beside_a_difference_are_of_the_cells_that_it_is_made_of(tmp_path):
    arms = {"low": {"m": (0.1, 0.2)}, "high": {"m": (0.3, 0.5, 0.9)}}
    lines = register([Claim("high", "low", "m", "higher", 0.01)], [], {}, {})
    record(write_study(tmp_path / "mine", arms, claims=lines).directory, tmp_path / "records")
    assert "0.150 → 0.400: +0.250" in claims_page(tmp_path / "records", tmp_path / "page.md")


def test_claims_without_a_record_have_no_numbers_but_a_command(folder, tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()
    (studies / "other.yaml").write_text(STUDY % ("new", "new"))
    (studies / "mine.yaml").write_text(STUDY % ("middle", "middle"))  # is answered
    command = ["study", "claims", str(folder), "--studies", str(studies), "--output", str(tmp_path / "claims.md")]
    assert cli.main(command) == 0
    page = (tmp_path / "claims.md").read_text()
    assert f"`alignlab {' '.join(command)}`" in page
    assert rows(page, "[other](studies/other.yaml)") == [
        ["[other](studies/other.yaml)", "*new* against *low*", "m higher, by 0.01", "–", "no record yet", "–", "–"]
    ]
    assert f"- [other](studies/other.yaml): `alignlab study run {studies}/other.yaml`" in page
    assert "[mine](studies/mine.yaml): `" not in page
    assert rows(page, "Own") == [["Own", "1", "1", "–", "1"]]


def test_published_ablations_are_compared_by_sign_and_order(folder, published):
    page = claims_page(folder, folder / "claims.md", published=published(PUBLISHED))
    assert "The lab is small." in page and "Published: Own, Table 3. Its scale: recall." in page
    assert [row[:2] for row in (rows(page, "low"), rows(page, "middle"), rows(page, "high"))[1]] == [["middle", "64"]]
    # In the paper middle > high > low, on the lab high > middle > low.
    assert (
        "Of 3 pairs of settings, 2 stand on the lab in the paper's order, 1 in the opposite one, and 0 cannot be told "
        "apart.\n- The opposite: middle is the better one in the paper; against high the lab has −0.257"
    ) in page


def test_less_hallucination_is_better_in_paper_and_lab(folder, published):
    text = PUBLISHED.replace("metric: m", "metric: chair/instance")
    (ablation,) = read_published(published(text)).ablations
    found = agreements(ablation, {"mine": Record.read(folder / "mine.json")})
    # Published 60 < 61 < 64, so low is best there; on the lab it is worst, and middle is best.
    assert [(pair.better.arm, pair.worse.arm, pair.sign) for pair in found] == [
        ("low", "middle", "the opposite"),
        ("low", "high", "the opposite"),
        ("high", "middle", "the opposite"),
    ]


def test_what_scatters_is_not_told_apart_and_what_has_no_record_is_said(folder, published):
    text = PUBLISHED.replace("arm: high", "arm: noisy").replace("study: mine", "study: mine\n    note: Small.")
    page = claims_page(folder, folder / "claims.md", published=published(text))
    assert "Of 3 pairs of settings, 1 stand on the lab in the paper's order, 0 in the opposite one, and 2 " in page
    page = claims_page(folder, folder / "claims.md", published=published(text.replace("study: mine", "study: other")))
    assert rows(page, "low") == [["low", "60", "no record yet"]] and "No two settings that differ in the pap" in page
    page = claims_page(folder, folder / "claims.md", published=published(text.replace("noisy", "gone")))
    assert rows(page, "gone") == [["gone", "61", "no record yet"]]


def test_gains_of_two_studies_are_compared_by_rank(folder, published, tmp_path):
    results = write_study(
        tmp_path / "second", {"low": {"m": (0.1, 0.2, 0.3)}, "high": {"m": (0.1, 0.21, 0.3)}}, name="second"
    )
    record(results.directory, folder)
    text = PUBLISHED.partition("    scale")[0] + (
        "    study: mine\n    metric: m\n"
        "    rows: [{arm: high, against: low, rank: 1}, {study: second, arm: high, against: low, rank: 2}]\n"
    )
    page = claims_page(folder, folder / "claims.md", published=published(text))
    assert "Of the one pair of settings, 1 stand on the lab in the paper's order" in page
    assert rows(page, "high − low (second)")[0][1] == "2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("asks", "ask"), "number 1: unknown key 'ask'"),
        (("published: 60", "rank: 1"), "either all with a published number or all with a rank"),
        (("arm: low, ", ""), "number 1: rows: expected {arm"),
        (("about", "abuot"), "unknown key 'abuot'; there is about, ablations"),
    ],
)
def test_what_is_wrong_with_published_ablations_is_said(published, change, said):
    with pytest.raises(InputError) as caught:
        read_published(published(PUBLISHED.replace(*change)))
    assert said in str(caught.value)


def test_the_page_in_the_repository_is_what_its_records_give(monkeypatch):
    monkeypatch.chdir(ROOT)
    told = {"studies": Path("experiments/studies"), "published": Path("experiments/published.yaml")}
    page = Path("experiments/claims.md")
    assert page.read_text() == claims_page(Path("experiments/records"), page, **told)


def test_every_setting_of_the_published_ablations_is_an_arm_of_its_study():
    from alignlab.study.file import read

    for ablation in read_published(EXPERIMENTS / "published.yaml").ablations:
        for row in ablation.rows:
            arms = read(EXPERIMENTS / "studies" / f"{row.study}.yaml", (), []).arms
            assert {row.arm, row.against or row.arm} <= arms.keys(), ablation.asks
