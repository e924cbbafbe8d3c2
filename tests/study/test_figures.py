"""A report's drawings as files: real colours, the numbers beside them, no more files than drawings."""

import csv
import json
import re

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from records import write_study
from rich.console import Console

from alignlab.study.figures import ARMS, CARD, DARK, INK, SETTINGS, Drawing, name_of, svg_for_page, write
from alignlab.study.report import report


def drawing(name: str = "effects-m", label: str = "scores of <arms>") -> Drawing:
    with rc_context(SETTINGS):
        figure = Figure(figsize=(2, 1))
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=ARMS[1])
        axes.text(0.5, 0.5, "plain")
    return Drawing(name, label, figure, ("arm", "score"), (("MLE", 0.25), ("a, b", None)))


def test_the_page_colours_a_drawing_and_files_have_real_colours(tmp_path):
    page = svg_for_page(drawing())
    assert "var(--arm1)" in page and "var(--ink)" in page and not re.search(r"#[0-9a-f]{6}\b", page)
    write([drawing()], tmp_path)
    file = (tmp_path / "effects-m.svg").read_text()
    assert ARMS[1] in file and INK in file and "var(" not in file and ">plain</text>" in file


def test_a_drawing_may_be_shown_again_once_it_is_written(tmp_path):
    drawn = drawing()
    before = svg_for_page(drawn)
    write([drawn], tmp_path)
    assert svg_for_page(drawn) == before


def test_a_written_picture_is_on_white(tmp_path):
    write([drawing()], tmp_path)
    with Image.open(tmp_path / "effects-m.png") as image:
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    assert CARD in (tmp_path / "effects-m.svg").read_text()


def test_a_file_says_what_it_shows_and_the_page_leaves_it_to_a_heading(tmp_path):
    drawn = drawing(label="own words")
    write([drawn], tmp_path)
    assert ">own words</text>" in (tmp_path / "effects-m.svg").read_text()
    assert ">own words</text>" not in svg_for_page(drawn)


def test_the_same_drawing_is_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        write([drawing()], tmp_path / folder)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_drawings_numbers_come_back_from_its_csv(tmp_path):
    write([drawing()], tmp_path)
    with open(tmp_path / "effects-m.csv", newline="") as file:
        assert list(csv.reader(file)) == [["arm", "score"], ["MLE", "0.25"], ["a, b", ""]]


def test_drawings_of_one_name_do_not_overwrite_each_other(tmp_path):
    shown = write([drawing(label="one"), drawing(label="two"), drawing("effects-m-x", "three"), drawing()], tmp_path)
    assert list(shown) == ["effects-m", "effects-m-2", "effects-m-x", "effects-m-3"]
    assert shown["effects-m-2"] == "two" and (tmp_path / "effects-m-3.png").is_file()


def test_only_files_of_earlier_drawings_are_removed(tmp_path):
    (tmp_path / "own.png").write_bytes(b"mine")
    write([drawing("old"), drawing()], tmp_path)
    write([drawing()], tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "effects-m.csv", "effects-m.png", "effects-m.svg", "figures.json", "own.png"
    ]  # fmt: skip
    assert json.loads((tmp_path / "figures.json").read_text()) == {"effects-m": "scores of <arms>"}


def test_colours_are_told_apart_when_the_page_replaces_them():
    assert len({*ARMS, INK, CARD}) == len(ARMS) + 2 and len(DARK) == len(ARMS)


def test_names_of_files_are_plain():
    assert name_of("effects", "caption/exact") == "effects-caption-exact"
    assert name_of("curves", "CLIP, two") == "curves-clip-two"


def test_a_report_leaves_its_drawings_and_tables_as_files(tmp_path):
    write_study(tmp_path, {"MLE": {"c/m": (0.1, 0.2, 0.3)}, "own": {"c/m": (0.2, 0.3, 0.43)}})
    report(tmp_path, console=Console(quiet=True))
    with open(tmp_path / "figures/effects-c-m.csv", newline="") as file:
        row = {line["arm"]: line for line in csv.DictReader(file)}["own"]
    assert float(row["difference"]) == pytest.approx(0.11)
    assert {"curves-mle.svg", "curves-own.png"} <= {file.name for file in (tmp_path / "figures").iterdir()}
    assert sorted(file.name for file in (tmp_path / "tables").iterdir()) == [
        f"{name}.{suffix}" for name in ("differences", "scores") for suffix in ("csv", "md", "tex")
    ]
