"""A few records of the true formats, with drawn pictures, at the paths that the recipes name: for dry runs.

    python experiments/recipes/samples.py OUT && cd OUT
    alignlab fit --config .../recipes/llava_stage1.yaml --dry-run --backbone.path .../shapes/llava-1.5-7b

The texts have the lengths of the real ones, roughly; they are made of the lab's words and say nothing true.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from alignlab.batch import Example
from alignlab.data import LlavaPairs
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
        size = chance.choice([(640, 480), (480, 640), (500, 375), (336, 336)])
        noise = numpy.random.default_rng(chance.randrange(2**32)).integers(0, 256, (12, 16, 3), dtype="uint8")
        Image.fromarray(noise).resize(size).save(folder / name)


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


def embeddings(file: Path, data: LlavaPairs, width: int) -> None:
    """What ``alignlab embed`` would write, of a teacher that knows nothing."""
    examples: list[tuple[str, Example]] = [(split, each) for split in ("train", "val") for each in data.examples(split)]
    ids, targets = ([hashed(*each) for each in examples] for hashed in (id_hash, target_hash))
    start = head(ids, targets, width=width, fingerprint=fingerprint_of(targets), source="none", data="drawn samples")
    vectors = numpy.random.default_rng(0).standard_normal((len(examples), width), dtype="float32")
    file.write_bytes(start + vectors.tobytes())


def write_samples(folder: Path, *, num_records: int = 96, width: int = 4096) -> None:
    """Write everything.

    Args:
        num_records: In each file.
        width: Of the embeddings: 4096, as those of NV-Embed-v2 and Llama-3-8B.
    """
    chance, data = random.Random(0), folder / "data"
    captions(data / "llava" / "pretrain", "blip_laion_cc_sbu_558k.json", num_records, chance, low=6, high=18)
    instructions(data / "llava" / "finetune", "llava_v1_5_mix665k.json", num_records, chance)
    captions(data / "seva", "questions.json", num_records, chance, low=1, high=40)
    preferences(data / "seva", "pairs.jsonl", num_records, chance)
    captions(data / "unime", "texts.json", num_records, chance, low=8, high=24)
    captions(data / "unime", "mmeb.json", num_records, chance, low=1, high=24)
    captions(data / "llm2clip", "captions.json", num_records, chance, low=20, high=90)
    for name, file in (("unime", "texts"), ("llm2clip", "captions")):
        pairs = LlavaPairs(
            path=str(data / name / f"{file}.json"),
            image_folder=str(data / name / "pictures"),
            val_fraction=0.005,
            test_fraction=0.0,
        )
        embeddings(data / name / f"{file}.safetensors", pairs, width)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write samples of the data that the recipes name.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=96, help="in each file (default: 96)")
    parser.add_argument("--width", type=int, default=4096, help="of embeddings (default: 4096)")
    arguments = parser.parse_args()
    write_samples(arguments.folder, num_records=arguments.records, width=arguments.width)
    print(arguments.folder / "data")


if __name__ == "__main__":
    main()
