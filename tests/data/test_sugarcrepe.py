"""SugarCrepe's files, for Composition."""

from pathlib import Path

import pytest
from drawing_files import draw, write_json

from alignlab.batch import Foil
from alignlab.data import SugarCrepe
from alignlab.errors import InputError
from alignlab.evaluation import Composition

RED = "a red circle"
ENTRIES = {str(n): {"filename": f"{n}.jpg", "caption": RED, "negative_caption": f"a blue circle {n}"} for n in range(3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw(tmp_path / "val2017", *(f"{n}.jpg" for n in range(3)))


def read(folder: Path, **files: object) -> SugarCrepe:
    for kind, content in files.items():
        write_json(folder.parent / "data" / f"{kind}.json", content)
    return SugarCrepe(path=str(folder.parent / "data"), image_folder=str(folder))


def test_every_entry_is_an_example_of_its_kind(folder):
    data = read(folder, add_att=ENTRIES, swap_obj=ENTRIES)
    examples = {example.id: example for example in data.examples("test")}
    assert set(examples) == {f"{kind}-{n}" for kind in ("add_att", "swap_obj") for n in range(3)}
    assert examples["swap_obj-2"].foils == (Foil(RED, "a blue circle 2", "swap_obj"),)
    assert examples["swap_obj-2"].query == (folder / "2.jpg",) and list(data.examples("train")) == []
    first = {example.id.split("-")[0] for example in data.examples("test")[:4]}
    assert first == {"add_att", "swap_obj"}  # the order mixes the kinds


@pytest.mark.parametrize("by", ["likelihood", "similarity"])
def test_composition_judges_each_kind(folder, tiny_backbone, by):
    scores = Composition(by=by)(tiny_backbone, read(folder, add_att=ENTRIES, swap_obj=ENTRIES)).scores
    assert {"add_att", "swap_obj", "accuracy"} <= set(scores)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has none of SugarCrepe's files, add_att.json, .*, swap_obj.json"),
        ({"add_att": [1]}, "holds a list; SugarCrepe's format is an object of entries"),
        (
            {"add_att": {"0": {**ENTRIES["0"], "caption": ""}}},
            "1 of 1 foils are malformed\n  foil 0: 'caption' must",
        ),
        ({"add_att": {"0": {**ENTRIES["0"], "negative_caption": RED}}}, "negative_caption are the same"),
        ({"add_att": {"0": {**ENTRIES["0"], "filename": "9.jpg"}}}, "1 of 1 pictures are missing"),
        ({"add_att": {"0": 1}}, "it is a int, not an object"),
    ],
)
def test_what_does_not_fit_is_named(folder, files, message):
    with pytest.raises(InputError, match=message):
        read(folder, **files)
