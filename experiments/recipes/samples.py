"""A few records of the true formats, with drawn pictures, at the paths that the recipes name: for dry runs.

    python experiments/recipes/samples.py OUT && cd OUT
    alignlab fit --config .../recipes/llava_stage1.yaml --dry-run --backbone.path .../shapes/llava-1.5-7b

The texts have the lengths of the real ones, roughly; they are made of the lab's words and say nothing true.
"""

import argparse
import csv
import json
import random
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
from datasets import Dataset, disable_progress_bars
from PIL import Image

from alignlab.batch import Example
from alignlab.data import AlignmentData, Table
from alignlab.data.embeddings import head
from alignlab.data.identity import fingerprint_of, id_hash, target_hash
from alignlab.data.scenes.lexicon import VOCABULARY

WORDS = [word for word in VOCABULARY if word.isalpha()]
NUM_PICTURES = 12
MIX = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K")
"""Where the pictures of llava_v1_5_mix665k.json are."""


def said(chance: random.Random, low: int, high: int) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(low, high)))


def draw(folder: Path, names: Sequence[str], chance: random.Random) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        drawn(chance).save(folder / name)


def drawn(chance: random.Random) -> Image.Image:
    size = chance.choice([(640, 480), (480, 640), (500, 375), (336, 336)])
    noise = numpy.random.default_rng(chance.randrange(2**32)).integers(0, 256, (12, 16, 3), dtype="uint8")
    return Image.fromarray(noise).resize(size)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


def write(file: Path, records: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(records))


def captions(folder: Path, file: str, count: int, chance: random.Random, *, low: int, high: int) -> None:
    """One picture and one answer a record, as in blip_laion_cc_sbu_558k.json."""
    names = [f"{index:05d}/{index:09d}.jpg" for index in range(NUM_PICTURES)]
    draw(folder / "pictures", names, chance)
    records = [
        {
            "id": f"{index:09d}",
            "image": names[index % NUM_PICTURES],
            "conversations": turns("Render a concise summary of the photo.\n<image>", said(chance, low, high)),
        }
        for index in range(count)
    ]
    write(folder / file, records)


def instructions(folder: Path, file: str, count: int, chance: random.Random) -> None:
    """Several turns about a picture of one of five data sets, and text alone, as in llava_v1_5_mix665k.json."""
    names = [f"{MIX[index % len(MIX)]}/{index:012d}.jpg" for index in range(NUM_PICTURES)]
    draw(folder / "pictures", names, chance)
    records = []
    for index in range(count):
        talk = [said(chance, 5, 25) for _ in range(2 * chance.randint(1, 4))]
        record = {"id": f"{index}", "conversations": turns(f"<image>\n{talk[0]}", *talk[1:])}
        if index % 16:
            record["image"] = names[index % NUM_PICTURES]
        else:  # ShareGPT's are text alone, and longer
            record["conversations"] = turns(*(said(chance, 30, 60) for _ in range(4)))
        records.append(record)
    write(folder / file, records)


def preferences(folder: Path, file: str, count: int, chance: random.Random) -> None:
    """A better and a worse answer, in the form of TRL; what SeVa's first stage would write, as JSON Lines."""
    names = [f"pictures/{path.name}/{each.name}" for path in (folder / "pictures").iterdir() for each in path.iterdir()]
    rows = []
    for index in range(count):
        sides = {"prompt": ("user", 15), "chosen": ("assistant", 40), "rejected": ("assistant", 40)}
        row = {side: [{"role": role, "content": said(chance, 1, most)}] for side, (role, most) in sides.items()}
        rows.append({"images": [names[index % len(names)]], **row})
    (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def nli(file: Path, count: int, chance: random.Random) -> None:
    """Three texts a row, as in nli_for_simcse.csv: a premise, what follows from it, and what contradicts it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as content:
        rows = csv.writer(content)
        rows.writerow(("sent0", "sent1", "hard_neg"))
        rows.writerows([said(chance, 8, 24), said(chance, 4, 12), said(chance, 4, 12)] for _ in range(count))


def mmeb(folder: Path, count: int, chance: random.Random) -> None:
    """Two of MMEB's training sets, half of the rows each: pictures with texts to find, and texts with pictures."""
    names = [f"images/{index:06d}.jpg" for index in range(NUM_PICTURES)]
    draw(folder, names, chance)
    shown = [names[index % NUM_PICTURES] for index in range(count // 2)]
    texts = [said(chance, 1, 24) for _ in shown]
    wrong = [said(chance, 1, 24) for _ in shown]
    picture, none = ["<|image_1|>\nRepresent the given image."] * len(shown), [""] * len(shown)
    sides = {
        "A-OKVQA": ((picture, shown), (texts, none), (wrong, none)),
        "VisDial": ((texts, none), (picture, shown), (picture, [*shown[1:], shown[0]])),
    }
    columns = (("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text", "neg_image_path"))
    for subset, contents in sides.items():
        pairs = zip(columns, contents, strict=True)
        table = {name: values for each in pairs for name, values in zip(*each, strict=True)}
        (folder / subset).mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(table).to_parquet(folder / subset / "original-00000-of-00001.parquet")


def shards(folder: Path, count: int, chance: random.Random) -> None:
    """Pictures with captions in two tar files, as img2dataset packs them."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [BytesIO() for _ in range(NUM_PICTURES)]
    for picture in pictures:
        drawn(chance).save(picture, "JPEG")
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for index in range(count // 2):
                picture = pictures[index % NUM_PICTURES].getvalue()
                for kind, content in (("jpg", picture), ("txt", said(chance, 20, 90).encode())):
                    member = tarfile.TarInfo(f"{shard:05d}{index:04d}.{kind}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))


def embeddings(file: Path, data: AlignmentData, width: int) -> None:
    """What ``alignlab embed`` would write, of a teacher that knows nothing."""
    examples: list[tuple[str, Example]] = [(split, each) for split in ("train", "val") for each in data.examples(split)]
    ids, targets = ([hashed(*each) for each in examples] for hashed in (id_hash, target_hash))
    start = head(ids, targets, width=width, fingerprint=fingerprint_of(targets), source="none", data="drawn samples")
    vectors = numpy.random.default_rng(0).standard_normal((len(examples), width), dtype="float32")
    file.write_bytes(start + vectors.tobytes())


def write_samples(folder: Path, *, num_records: int = 96, num_pairs: int = 4224, width: int = 4096) -> None:
    """Write everything.

    Args:
        num_records: In each file.
        num_pairs: In each file of pairs, of which batches have up to 4096.
        width: Of the embeddings: 4096, as those of NV-Embed-v2 and Llama-3-8B.
    """
    disable_progress_bars()
    chance, data = random.Random(0), folder / "data"
    captions(data / "llava" / "pretrain", "blip_laion_cc_sbu_558k.json", num_records, chance, low=6, high=18)
    instructions(data / "llava" / "finetune", "llava_v1_5_mix665k.json", num_records, chance)
    captions(data / "seva", "questions.json", num_records, chance, low=1, high=40)
    preferences(data / "seva", "pairs.jsonl", num_records, chance)
    nli(data / "unime" / "nli_for_simcse.csv", num_pairs, chance)
    mmeb(data / "unime" / "MMEB-train", num_pairs, chance)
    shards(data / "llm2clip" / "shards", num_pairs, chance)
    pictured = {"image": "jpg", "target": "txt", "id": "__key__"}
    for path, columns, file in (
        ("unime/nli_for_simcse.csv", {"query": "sent1", "target": "sent0"}, "unime/texts"),
        ("llm2clip/shards", pictured, "llm2clip/captions"),
    ):
        table = Table(path=str(data / path), columns=columns, splits={"train": "train", "val": 0.005})
        embeddings(data / f"{file}.safetensors", table, width)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write samples of the data that the recipes name.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=96, help="in each file but those of pairs (default: 96)")
    parser.add_argument("--pairs", type=int, default=4224, help="in each file of pairs (default: 4224)")
    parser.add_argument("--width", type=int, default=4096, help="of embeddings (default: 4096)")
    arguments = parser.parse_args()
    numbers = {"num_records": arguments.records, "num_pairs": arguments.pairs, "width": arguments.width}
    write_samples(arguments.folder, **numbers)
    print(arguments.folder / "data")


if __name__ == "__main__":
    main()
