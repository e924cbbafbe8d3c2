import json
import re
import shutil
from pathlib import Path

import pytest
import skimage

from alignlab.errors import InputError
from alignlab.experiment.config import resolve
from alignlab.experiment.inspect import inspect

SCENES = {"class_path": "Scenes", "init_args": {"num_train": 40}}


def page(tmp_path: Path, **config: object) -> str:
    settings = {"backbone": {"path": "scenes-parts"}, "data": SCENES, "trainer": {"max_steps": 1}, **config}
    return inspect(resolve(settings), tmp_path / "pages" / "page.html", num_examples=3).read_text()


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
    shutil.copy(Path(skimage.__file__).parent / "data" / "chelsea.png", tmp_path)
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


def test_another_kind_of_file_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match="must end in .html"):
        inspect({}, tmp_path / "config.yaml")
