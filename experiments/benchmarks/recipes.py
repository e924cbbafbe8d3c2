"""recipes: every objective of the recipes, and its kin, at the shape of LLaVA-1.5-7B: samples a second, peak memory.

    python experiments/recipes/shapes.py shapes
    python experiments/benchmarks/recipes.py --device cuda --shapes shapes --json recipes.json

Weights are random, data are drawn samples of the true formats; each objective trains 20 steps on one batch of them,
after one more that is not timed, in bfloat16 with float32 weights for what trains. Language models train through LoRA
of rank 64, so that one GPU of 80 GB holds each; the vision tower is frozen but for LLM2CLIP and CLIP. Peak memory is
what torch allocated on the GPU; on a CPU, weights and the most that lived beside them. LaVIT's stages are left out, the
second of which needs the first one's tokenizer.

Not measured yet on a GPU.
"""

import json
import runpy
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table
from timing import machine, quiet

from alignlab.backbones import PARTS, open_encoder
from alignlab.experiment.config import instantiate, resolve
from alignlab.experiment.probing import Probe, probe

SAMPLES = Path(__file__).parents[1] / "recipes" / "samples.py"
BRANCHES = {"class_path": "LoRA", "init_args": {"rank": 64, "train": ["projector"]}}
TOWER = {"class_path": "Full", "init_args": {"parts": ["vision_tower", "projector"]}}
PROJECTOR = {"class_path": "Full", "init_args": {"parts": ["projector"]}}

OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "MLE": ("finetune", BRANCHES),
    "CAL": ("finetune", BRANCHES),
    "PLoRA": ("finetune", PROJECTOR),
    "SeVa": ("pairs", BRANCHES),
    "InfoNCE": ("texts", BRANCHES),
    "UniME": ("texts", BRANCHES),
    "UniMEDistillation": ("texts", BRANCHES),
    "SigLIP": ("texts", BRANCHES),
    "LLM2CLIPText": ("texts", BRANCHES),
    "CLIP": ("towers", TOWER),
    "LLM2CLIP": ("towers", TOWER),
}
"""What of the samples each reads, and what trains."""


def data_of(kind: str, folder: Path, batch_size: int) -> dict[str, Any]:
    """Settings of the data; of ``towers`` and ``texts`` they are pairs with a teacher's embeddings."""
    fixed: dict[str, Any] = {"val_fraction": 0.005, "batch_size": batch_size}
    if kind == "pairs":
        path = folder / "data" / "seva" / "pairs.jsonl"
        return {"class_path": "Preferences", "init_args": {**fixed, "path": str(path)}}
    if kind == "finetune":
        where = folder / "data" / "llava" / "finetune"
        fixed |= {"test_fraction": 0.0, "image_folder": str(where / "pictures")}
        return {"class_path": "LlavaJson", "init_args": {**fixed, "path": str(where / "llava_v1_5_mix665k.json")}}
    where = folder / "data" / "llm2clip"
    files = {"path": str(where / "shards"), "embeddings": str(where / "captions.safetensors")}
    columns = {"image": "jpg", "captions": "txt", "id": "__key__"}
    settings = {"columns": columns, "splits": {"train": "train", "val": 0.005}, "batch_size": batch_size}
    return {"class_path": "Table", "init_args": {**settings, **files}}


def measure(name: str, folder: Path, arguments: Namespace) -> Probe:
    kind, adapter = OBJECTIVES[name]
    settings: dict[str, Any] = {"path": str(arguments.shapes / "llava-1.5-7b"), "fresh": list(PARTS)}
    if kind == "towers":
        settings["path"] = str(arguments.shapes / "clip-vit-large-336")
        settings["text_tower"] = str(arguments.shapes / "llama-3-8b")
    experiment = instantiate(
        resolve(
            {
                "objective": name,
                "backbone": settings,
                "adapter": adapter,
                "data": data_of(kind, folder, arguments.batch_size),
                "trainer": {
                    "accelerator": "gpu" if arguments.device == "cuda" else "cpu",
                    "max_steps": arguments.steps,
                    "precision": arguments.precision,
                },
            }
        )
    )
    examples = experiment.data.filled("train")
    encoder = open_encoder(settings["path"], text_tower=settings.get("text_tower"))
    batch = encoder.batch([examples[index] for index in range(arguments.batch_size)], experiment.requires)
    return probe(experiment, experiment.backbone, batch, steps=True, count=arguments.steps)


def rows(arguments: Namespace) -> Iterator[dict[str, Any]]:
    """Measure one objective after the other."""
    with TemporaryDirectory() as folder:
        write = runpy.run_path(str(SAMPLES))["write_samples"]
        write(Path(folder), num_records=max(4 * arguments.batch_size, 48))
        for name in arguments.objectives:
            found = measure(name, Path(folder), arguments)
            seconds = found.seconds + found.step_seconds
            memory = found.peak or 4 * found.parameters + found.live + 8 * found.trained
            yield {
                "objective": name,
                "samples_per_second": arguments.batch_size / seconds,
                "peak_gib": memory / 2**30,
                "trained": found.trained,
                "flops_per_second": found.flops / found.seconds,
            }


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shapes", type=Path, default=Path("shapes"), help="what recipes/shapes.py wrote")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--objectives", nargs="+", choices=tuple(OBJECTIVES), default=tuple(OBJECTIVES))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    quiet()
    table = Table("objective", "samples/s", "peak GiB", "trained", "FLOP/s")
    found = []
    for row in rows(arguments):
        found.append(row)
        cells = f"{row['samples_per_second']:.3g}", f"{row['peak_gib']:.3g}", f"{row['trained']:,}"
        table.add_row(row["objective"], *cells, f"{row['flops_per_second']:.3g}")
        print(json.dumps(row), flush=True)
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
