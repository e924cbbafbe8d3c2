import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import pytest
import skimage
from PIL import Image

from alignlab.batch import Box, Example, Foil, Question, Turn
from alignlab.data.base import AlignmentData
from alignlab.errors import InputError
from alignlab.experiment.annotations import places
from alignlab.experiment.config import resolve
from alignlab.experiment.inspect import inspect
from alignlab.objectives import MLE

SCENES = {"class_path": "Scenes", "init_args": {"num_train": 40}}


def page(tmp_path: Path, **config: object) -> str:
    settings = {"backbone": {"path": "scenes-parts"}, "data": SCENES, "trainer": {"max_steps": 1}, **config}
    return inspect(resolve(settings), tmp_path / "pages" / "page.html", num_examples=3).read_text()


PHOTOGRAPH = Path(skimage.__file__).parent / "data" / "chelsea.png"
RED, BLACK = Box("red square", 1 / 48, 1 / 48, 15 / 48, 15 / 48), Box("black cross", 20 / 48, 20 / 48, 28 / 48, 28 / 48)
KNOWN = Example.answering(
    "known",
    Image.new("RGB", (48, 48)),
    "describe the image .",
    "a red square above a green cross . nice",
    captions=("a red square above a black cross .", "a cross below a square ."),
    target=("a red square above a black cross .", "in one word :"),
    negatives=(("a blue square above a black cross .", "in one word :"),),
    foils=(
        Foil("a red square above a black cross .", "a black square above a red cross .", "swap_attribute"),
        Foil("a red disc .", "a red circle above a cross .", "add_object"),
    ),
    questions=(
        Question("what color is the cross ?", "black", "color"),
        Question("how many squares are there ?", "one", "count"),
        Question("what color is the square ?", "red", "color"),
    ),
    existence=(Question("is there a cross ?", "yes", "present"), Question("is there a <circle ?", "no", "adversarial")),
    text=(Turn("user", ("what is small ?",)), Turn("assistant", ("a dot .",))),
    rejected=("a red circle above a green cross .",),
    boxes=(RED, BLACK),
    roles=("visual",) * 5 + ("contradictory",) + ("visual",) * 2 + ("filler",),
    points=(None, (0.2, 0.2), (0.2, 0.2), None, None, (0.5, 0.5), (0.5, 0.5), None, (0.9, 0.95)),
    group="a square and a cross",
)
PLAIN = Example.answering("plain", PHOTOGRAPH, "what ?", "a cat")


class ReadsRoles(MLE):
    requires = ("conversation", "roles")


class Known(AlignmentData):
    """One example a split, made by hand."""

    supplies = ("conversation", "roles")
    splits = ("train", "val")
    canonical = {"disc": "circle"}
    held: ClassVar[dict[str, Sequence[Example]]] = {}

    def examples(self, split: str) -> Sequence[Example]:
        return self.held[split]


@pytest.fixture
def known(tmp_path, monkeypatch):
    """Writes the page of one example and gives its elements."""

    def known(example: Example, objective: str = "MLE", **options: object) -> "Elements":
        monkeypatch.setattr(Known, "held", {"train": [example], "val": [PLAIN]})
        data = {"class_path": f"{__name__}.Known", "init_args": {"batch_size": 1}}
        settings = {"backbone": {"path": "scenes-parts"}, "data": data, "objective": objective, "evaluators": []}
        config = resolve(settings | {"trainer": {"max_steps": 1}})
        return Elements(inspect(config, tmp_path / "page.html", **options).read_text())

    return known


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = ""

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    @property
    def edges(self) -> tuple[float, float, float, float]:
        x, y, width, height = (float(self.attributes[name]) for name in ("x", "y", "width", "height"))
        return x, y, x + width, y + height


class Elements(HTMLParser):
    """The elements of a page, in order, each with all the text inside it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.all: list[Element] = []
        self.open: list[Element] = []
        self.feed(html)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in ("meta", "img"):
            self.open.append(self.all[-1])

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str]]) -> None:
        self.all.append(Element(tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag
        self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def of(self, kind: str) -> list[Element]:
        """The elements of a tag or a class."""
        return [element for element in self.all if kind == element.tag or kind in element.classes]

    def texts(self, kind: str) -> list[str]:
        return [" ".join(element.text.split()) for element in self.of(kind)]


def chips(html: str) -> list[tuple[str, str]]:
    return re.findall(r'<span class="t ([a-z ]+)" title="[^"]*">([^<]*)</span>', html)


def test_every_sequence_that_the_objective_requires_is_shown(tmp_path):
    html = page(tmp_path, objective={"class_path": "Mixture", "init_args": {"parts": {"a": "MLE", "b": "InfoNCE"}}})
    for name in ("conversation", "query", "target"):
        assert html.count(f'<p class="name">{name}</p>') == 3
    found = chips(html)
    assert ("image", "image × 36") in found and ("trained", "&lt;/s&gt;") in found
    assert sum("read" in kind for kind, _ in found) == 6  # a query and a target in each of three examples
    assert "summarize the image" in re.sub(r"<[^>]*>", " ", html).replace("  ", " ")


def test_only_the_answer_is_shown_as_trained_on(tmp_path):
    html = page(tmp_path, objective="MLE")
    for row in re.findall(r'<div class="tokens">(.*?)</div>', html, re.S):
        kinds = [kind for kind, _ in chips(row)]
        first = kinds.index("trained")
        assert set(kinds[first:]) == {"trained"} and kinds[:first].count("image") == 1


def test_the_page_needs_nothing_else(tmp_path):
    html = page(tmp_path, objective="MLE")
    assert not re.search(r"https?://|<script|@import|<link|url\(", html)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))


def test_lengths_and_truncation_are_counted(tmp_path):
    html = page(tmp_path, objective="MLE", backbone={"path": "scenes-parts", "max_length": 52})
    cut = int(re.search(r"<b[^>]*>(\d+)</b>cut at 52", html)[1])
    over = sum(int(count) for count in re.findall(r'class="bar over".*?tokens: (\d+) of', html))
    assert 0 < cut == over < 40
    assert "no limit" in page(tmp_path, objective="MLE")


def test_real_pictures_are_shown_before_and_after_processing(tmp_path):
    records = [
        {"id": "<cat>", "image": "chelsea.png", "conversations": [("human", "<image>\nwhat ?"), ("gpt", "a <b> & c")]},
        {"id": "text", "conversations": [("human", "what ?"), ("gpt", "no")]},
    ]
    for record in records:
        record["conversations"] = [{"from": role, "value": value} for role, value in record["conversations"]]
    (tmp_path / "data.json").write_text(json.dumps(records))
    shutil.copy(PHOTOGRAPH, tmp_path)
    settings = {
        "path": str(tmp_path / "data.json"),
        "image_folder": str(tmp_path),
        "val_fraction": 0.0,
        "test_fraction": 0.0,
    }
    data = {"class_path": "LlavaJson", "init_args": {**settings, "batch_size": 1}}
    html = page(tmp_path, objective="MLE", data=data, evaluators=[])
    html = html.replace("\u00a0", " ")
    assert "as the model sees it, 48 × 48" in html and "before, 451 × 300" in html and "no picture" in html
    assert ("trained unknown", "&lt;unk&gt;") in chips(html) and "text tokens are unknown to the tokenizer" in html
    assert "&lt;cat&gt;" in html and "<cat>" not in html
    elements = Elements(html)
    assert set(elements.texts("name")) == {"conversation"}  # nothing is known of words, objects, questions
    assert not elements.of("w") and not elements.of("place") and not elements.of("said")


def test_objects_are_framed_in_their_places_and_named(known):
    elements = known(KNOWN)
    red, black = (frame.edges for frame in elements.of("box"))
    assert red == pytest.approx((4.33, 4.33, 65, 65), abs=0.02)  # 1/48 and 15/48 of a drawing 208 wide
    assert black == pytest.approx((86.67, 86.67, 121.33, 121.33), abs=0.02)
    assert elements.texts("objects") == ["1 red square 2 black cross"]
    assert elements.texts("title")[2:] == ["1 red square", "2 black cross", "3"]


def test_words_bear_the_number_of_the_place_that_they_name(known):
    elements = known(KNOWN)
    assert elements.texts("words") == ["a red1 square1 above a green2 cross2 . nice3"]  # nice: beside all boxes
    dots = [(float(dot.attributes["cx"]), float(dot.attributes["cy"])) for dot in elements.of("dot")]
    assert dots == [(41.6, 41.6), (104, 104)]  # a fifth and a half of 208
    left, top, right, bottom = elements.of("point")[0].edges
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((187.2, 197.6))
    assert "names place 1 of the picture" in elements.texts("legend")[0]


def test_points_that_share_a_box_are_numbered_by_themselves(known):
    whole = Box("all", 0, 0, 1, 1)
    points = (None, (0.2, 0.2), (0.3, 0.3), None, None, (0.5, 0.5), (0.9, 0.9), None, (0.6, 0.9))
    elements = known(replace(KNOWN, boxes=(whole, RED, BLACK), points=points))
    # The smallest box counts: two points are in the red square, 2, one is in the black cross, 3, two in neither.
    assert elements.texts("words") == ["a red4 square5 above a green3 cross6 . nice7"]
    assert elements.of("tag")[1].edges[1] == 65  # under the red square: what is around it does not count as covered


@pytest.mark.parametrize("side", [6, 14])
def test_numbers_cover_no_object(side):
    cells = [(column * 16 + (16 - side) / 2, row * 16 + (16 - side) / 2) for row in range(3) for column in range(3)]
    boxes = [Box("", x / 48, y / 48, (x + side) / 48, (y + side) / 48) for x, y in cells]
    for chosen in (boxes[:4], boxes[-4:], boxes[::2], boxes[1::2], boxes[2:6]):
        found = places(replace(KNOWN, boxes=tuple(chosen), points=()), 208)
        taken = [place.edges for place in found] + [place.tag for place in found]
        for place in found:
            left, top, right, bottom = place.tag
            assert 0 <= left < right <= 208 and 0 <= top < bottom <= 208
            apart = [right <= it[0] or it[2] <= left or bottom <= it[1] or it[3] <= top for it in taken]
            assert apart.count(False) == 1  # itself


def test_boxes_are_drawn_on_the_picture_that_they_are_shares_of(known):
    elements = known(replace(PLAIN, boxes=(RED,)))
    page = [it.attributes.get("alt", "box") for it in elements.all if it.tag == "img" or "box" in it.classes]
    assert page == ["The picture, as the model sees it", "The picture, before", "box"]
    assert elements.of("svg")[-1].attributes["viewbox"] == "0 0 208 138.36"  # 208 x 300 / 451
    assert not elements.of("w")


def test_the_role_of_each_word_is_shown_and_not_by_colour_alone(known):
    elements = known(KNOWN)
    roles = [it.classes[1:] for it in elements.of("w") if "title" in it.attributes]
    assert roles == [["visual"]] * 5 + [["contradictory"]] + [["visual"]] * 2 + [["filler"]]
    legend, styles = elements.texts("legend")[0], elements.texts("style")[0]
    assert all(f"word {role}:" in legend for role in ("visual", "filler", "contradictory"))
    assert re.search(r"\.w\.contradictory[^}]*underline wavy", styles)
    assert re.search(r"\.w\.filler[^}]*dashed", styles)
    calm = known(replace(KNOWN, roles=("visual",) * 9)).texts("legend")[0]
    assert "visual:" in calm and "filler" not in calm and "contradictory" not in calm


def test_what_an_objective_reads_beside_sequences_has_no_length(known):
    assert known(KNOWN, f"{__name__}.ReadsRoles").texts("h3") == ["conversation", "known"]


def test_as_many_roles_as_words_are_demanded(known):
    with pytest.raises(InputError, match="'known' needs .* last answer's 9 words, got 1 roles and 9 points"):
        known(replace(KNOWN, roles=("visual",)))


def test_words_that_make_a_foil_false_are_marked(known):
    elements = known(KNOWN)
    assert elements.texts("kind") == ["swap_attribute", "add_object"]
    assert elements.texts("right") == ["red", "black"]
    assert elements.texts("wrong") == ["black", "red", "above a cross"]  # a disc is a circle
    assert elements.texts("other") == ["blue", "circle"]  # in the negative, in the rejected answer
    sides = elements.texts("foils")[0]
    assert "true a red square above a black cross . false a black square above a red cross ." in sides


def test_all_that_is_known_is_shown(known):
    elements = known(KNOWN)
    color = "color what color is the cross ? black what color is the square ? red"
    asked = f"{color} count how many squares are there ? one"
    existence = "present is there a cross ? yes adversarial is there a <circle ? no"
    assert elements.texts("rows") == [asked, existence, "user what is small ? assistant a dot ."]
    assert elements.texts("li")[2:] == ["a blue square above a black cross .", *KNOWN.captions]
    assert "a red circle above a green cross ." in elements.texts("rest")[0]
    assert "group a square and a cross" in elements.texts("header")[1]


def test_what_is_not_known_leaves_no_trace(known):
    whole = known(KNOWN)
    for field in ("foils", "existence", "questions", "text", "captions", "negatives", "rejected"):
        without = known(replace(KNOWN, **{field: ()}))
        gone = set(whole.texts("name")) - set(without.texts("name"))
        assert len(gone) == 1 and gone.pop().startswith(field)
    bare = known(replace(KNOWN, roles=(), points=(), boxes=()))
    assert not bare.of("w") and not bare.of("place") and not bare.of("objects") and bare.of("foils")


def test_another_split_can_be_shown(known):
    assert known(KNOWN, split="val").texts("h3") == ["conversation", "plain"]
    with pytest.raises(InputError, match="Known has no 'test' split; it has train, val"):
        known(KNOWN, split="test")


def test_another_kind_of_file_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="must end in .html"):
        inspect({}, tmp_path / "config.yaml")
