"""Every reader trains two steps of what it is for, on files of its format, and is shown."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from datasets import Dataset
from drawing_files import draw, encoded, write_json, write_lines

from alignlab.experiment.config import resolve
from alignlab.experiment.inspect import inspect
from alignlab.experiment.run import run

NAMES = [f"{n}.jpg" for n in range(8)]
SAID = "a red circle above a blue square ."


def karpathy(folder: Path) -> dict:
    entries = [
        {
            "filename": name,
            "split": "val" if n > 5 else "train",
            "sentences": [{"raw": SAID}, {"raw": f"a circle . {n}"}],
        }
        for n, name in enumerate(NAMES)
    ]
    path = write_json(folder / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})
    return {"class_path": "Karpathy", "init_args": {"path": str(path), "image_folder": str(folder)}}


def narratives(folder: Path) -> dict:
    timed = [{"utterance": word, "start_time": n, "end_time": n + 1} for n, word in enumerate(SAID.split())]
    trace = [{"x": 0.1 * n, "y": 0.5, "t": n} for n in range(8)]
    records = [
        {"dataset_id": "flickr30k_train", "image_id": name[:-4], "annotator_id": 1, "caption": SAID,
         "timed_caption": timed, "traces": [trace]}
        for name in NAMES
    ]  # fmt: skip
    path = write_lines(folder / "narratives.jsonl", records)
    return {"class_path": "LocalizedNarratives", "init_args": {"path": str(path), "image_folder": str(folder)}}


def refcoco(folder: Path) -> dict:
    images = [{"id": n, "file_name": name, "width": 24, "height": 16, "caption": SAID} for n, name in enumerate(NAMES)]
    boxes = [{"image_id": n, "bbox": [n, 2, 10, 10]} for n in range(8)]
    path = write_json(folder / "finetune_refcoco_train.json", {"images": images, "annotations": boxes})
    files = {"train": str(path), "val": str(path)}
    return {"class_path": "RefCOCO", "init_args": {**files, "image_folder": str(folder), "task": "describe"}}


def mmeb(folder: Path) -> dict:
    (folder / "mmeb" / "VisDial").mkdir(parents=True)
    ask = "<|image_1|>\nwhat is there ?"
    rows = [
        {"qry": ask, "qry_image_path": name, "pos_text": f"{SAID} {n}", "pos_image_path": "", "neg_text": "a cross .",
         "neg_image_path": ""}
        for n, name in enumerate(NAMES)
    ]  # fmt: skip
    Dataset.from_list(rows).to_parquet(str(folder / "mmeb" / "VisDial" / "original-00000-of-00001.parquet"))
    return {"class_path": "MMEB", "init_args": {"path": str(folder / "mmeb"), "image_folder": str(folder)}}


def table(folder: Path) -> dict:
    rows = [{"img": name, "q": "what is there ?", "a": SAID} for name in NAMES]
    settings = {"path": str(write_lines(folder / "rows.jsonl", rows)), "splits": {"train": "train", "val": 0.2}}
    return {
        "class_path": "Table",
        "init_args": {**settings, "columns": {"image": "img", "question": "q", "answer": "a"}},
    }


def streamed(folder: Path) -> dict:
    (folder / "parts").mkdir()
    for number in range(2):
        rows = [{"img": {"bytes": encoded(n), "path": None}, "q": "what is there ?", "a": SAID} for n in range(4)]
        Dataset.from_list(rows).to_parquet(str(folder / "parts" / f"train-{number}.parquet"))
        Dataset.from_list(rows).to_parquet(str(folder / "parts" / f"validation-{number}.parquet"))
    columns = {"image": "img", "question": "q", "answer": "a"}
    settings = {"path": str(folder / "parts"), "streaming": True, "shuffle_buffer": 3}
    return {"class_path": "Table", "init_args": {**settings, "columns": columns}}


def shards(folder: Path) -> dict:
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            members = [
                (f"{n}.{kind}", content) for n in range(4) for kind, content in (("png", encoded(n)), ("txt", SAID))
            ]
            for name, content in members:
                content = content.encode() if isinstance(content, str) else content
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    paths = {"path": str(folder / "[01].tar"), "val": str(folder / "2.tar")}
    return {"class_path": "WebDataset", "init_args": {**paths, "shuffle_buffer": 3}}


CASES = [
    (karpathy, {"class_path": "InfoNCE", "init_args": {"groups": True}}),
    (narratives, "MLE"),
    (refcoco, "MLE"),
    (mmeb, {"class_path": "InfoNCE", "init_args": {"negatives": True}}),
    (table, "MLE"),
    (streamed, "MLE"),
    (shards, "InfoNCE"),
]


@pytest.mark.parametrize(("make", "objective"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_reader_trains_two_steps_and_is_shown(tmp_path, tiny_path, monkeypatch, make, objective):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    data = make(draw(tmp_path / "files", *NAMES))
    data["init_args"] |= {"batch_size": 2}
    config = resolve({
        "objective": objective,
        "backbone": {"path": str(tiny_path)},
        "data": data,
        "evaluators": [],
        "wandb": {"mode": "disabled"},
        "trainer": {"max_steps": 2, "limit_val_batches": 1},
    })  # fmt: skip
    assert run(config, tmp_path / "run")["steps"] == 2
    losses = [json.loads(line) for line in (tmp_path / "run" / "curve.jsonl").read_text().splitlines()]
    assert any("train/loss" in line for line in losses)
    page = inspect(config, tmp_path / "page.html", num_examples=2).read_text()
    assert page.count("data:image/") >= 2
