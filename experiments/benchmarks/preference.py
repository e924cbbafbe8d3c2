"""preference: a step of SeVa against one of TRL's DPOTrainer, on the same model and pairs.

    python experiments/benchmarks/preference.py --json preference.json

Both train the same random LLaVA whole (a Llama of 4 layers of width 192; a vision tower of 3 layers of width 128 that
makes 64 visual tokens), with AdamW, a fresh batch of 8 pairs a step, a prompt of 8 words and answers of up to 24.
Both are the real trainers: their loops, loaders and collators are in the time, logging is off. First the losses of
three steps must agree to 1e-5. Then steps take turns, on a CPU in the one thread's own time: the trainers run in
threads of one process, of which all but one sleep. Peak memory is that of a process of its own, less what it has after
its imports. On a GPU, the shape of LLaVA-1.5-7B with LoRA in bfloat16 (two models take turns, so 40 GiB of weights):

    python experiments/benchmarks/preference.py --device cuda --shape 7b

Measured, 21 repeats (2 shared cores, 1 thread, Linux, Python 3.11.7, torch 2.13.0+cpu, transformers 5.23.0, trl 1.16.0;
load 1.5), milliseconds a step and MiB; steps are those in the time of one of TRL's, with their 95 % interval:

                     TRL   live                             cached                            target
    time             582    343                                270
    steps              1   1.71 [1.67, 1.75]              2.16 [2.12, 2.31]         1.5, 2: met
    memory in use    264    187   0.711                    178   0.674                 0.8: met
    of the process   312    231   0.741                    224   0.717

No run on a GPU has been made.
"""

import gc
import random
import string
import threading
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List, load_dataset
from datasets import Image as Picture
from lightning.pytorch import Callback, Trainer
from peft import LoraConfig
from PIL import Image
from timing import finish, machine, options, peak, quiet, ratio
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PrinterCallback, TrainerCallback
from transformers.models.llava import modeling_llava  # noqa: F401  # loaded late by itself, so in the peak
from trl import DPOConfig, DPOTrainer

from alignlab.backbones import Backbone, locate
from alignlab.data import Preferences
from alignlab.objectives import AdaptersOff, Cached, FrozenCopy, Optimization, Reference, SeVa

TOLERANCE = 1e-5
TARGETS = {"live": 1.5, "cached": 2.0}
"""Steps in the time of one of TRL's."""
TARGET_MEMORY = 0.8
BATCH, LR, BETA = 8, 1e-4, 0.1
LORA = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

# vision: width, layers, heads, side, patch; text: width, layers, heads, intermediate; words; words of prompt and answer
SHAPES = {
    "tiny": (64, 2, 4, 32, 8, 96, 2, 4, 256, 256, 8, 24),
    "small": (128, 3, 4, 64, 8, 192, 4, 4, 512, 512, 8, 24),
    "medium": (192, 4, 4, 64, 8, 320, 6, 5, 864, 2048, 8, 24),
    "7b": (1024, 24, 16, 336, 14, 4096, 32, 32, 11008, 32000, 40, 60),
}


def write_model(folder: Path, shape: str) -> None:
    """Write a random LLaVA with the lab's processor, for pictures of the shape's size."""
    wide, deep, heads, side, patch, width, layers, text_heads, inner, words, *_ = SHAPES[shape]
    start = locate("scenes-parts")
    config, processor = AutoConfig.from_pretrained(start), AutoProcessor.from_pretrained(start)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.hidden_size, text.intermediate_size = layers, width, inner
    text.num_attention_heads = text.num_key_value_heads = text_heads
    text.head_dim, text.vocab_size, text.max_position_embeddings = width // text_heads, words, 2048
    vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = wide, deep, heads
    vision.intermediate_size, vision.image_size, vision.patch_size = 4 * wide, side, patch
    processor.patch_size, processor.image_processor.size = patch, {"height": side, "width": side}
    torch.manual_seed(0)
    dtype = torch.bfloat16 if shape == "7b" else torch.float32
    AutoModelForImageTextToText.from_config(config, dtype=dtype).save_pretrained(folder)
    processor.save_pretrained(folder)


def write_pairs(folder: Path, shape: str, count: int) -> None:
    """Write pairs of random words about random pictures, in the format that both read."""
    side, asked, said = SHAPES[shape][3], *SHAPES[shape][-2:]
    vocabulary = sorted(AutoProcessor.from_pretrained(locate("scenes-parts")).tokenizer.get_vocab())
    vocabulary = [word for word in vocabulary if word[0] in string.ascii_lowercase]
    chance, pixels = random.Random(0), np.random.default_rng(0)

    def turn(role: str, words: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(chance.choices(vocabulary, k=words))}]

    def row() -> dict[str, Any]:
        return {
            "images": [Image.fromarray(pixels.integers(0, 255, (side, side, 3), dtype=np.uint8))],
            "prompt": turn("user", asked),
            "chosen": turn("assistant", said),
            "rejected": turn("assistant", chance.randint(said // 2, said)),
        }

    folder.mkdir(exist_ok=True)
    rows = Dataset.from_list([row() for _ in range(count)]).cast_column("images", List(Picture()))
    rows.to_parquet(folder / "train.parquet")
    rows.select(range(1)).to_parquet(folder / "val.parquet")


class Turns:
    """Lets several threads go on one at a time, a step each, and notes how long each step took its thread."""

    def __init__(self, device: str) -> None:
        self.device, self.times = device, {}
        self.started: dict[str, float] = {}
        self.turn, self.idle = {}, threading.Event()

    def step_done(self, side: str) -> None:
        """Called by a side's thread after each of its steps; returns when it is its turn again."""
        now = self.now()
        if side in self.started:
            self.times.setdefault(side, []).append(now - self.started[side])
        self.idle.set()
        self.turn[side].acquire()
        self.started[side] = self.now()

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.thread_time()  # whatever else the machine does

    def run(self, sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
        """Milliseconds of each step of each side, all of whose steps have a place in every round."""
        threads = []
        for side, work in sides.items():
            self.turn[side] = threading.Semaphore(0)
            self.idle.clear()
            threads.append(threading.Thread(target=work, daemon=True))
            threads[-1].start()
            self.idle.wait()  # its first step, which warms up
        for number in range(rounds):
            for side in sides if number % 2 else reversed(sides):
                self.idle.clear()
                self.turn[side].release()
                self.idle.wait()
        return {side: [1e3 * each for each in times] for side, times in self.times.items()}


class TRLSteps(TrainerCallback):
    """Calls after each step."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        self.done()


class Steps(Callback):
    """Calls after each step."""

    def __init__(self, done: Callable[[], None]) -> None:
        self.done = done

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.done()


def trl(model: Path, pairs: Path, settings: Namespace, steps: int, done: Callable[[], None]) -> list[float]:
    """Train with TRL; the losses of the steps, if they are few."""
    lora, dtype = settings.shape == "7b", torch.bfloat16 if settings.shape == "7b" else torch.float32
    policy, reference = (
        AutoModelForImageTextToText.from_pretrained(model, dtype=dtype).to(settings.device) if each else None
        for each in (True, not lora)
    )
    policy.model.vision_tower.requires_grad_(not lora)
    arguments = DPOConfig(
        output_dir=str(model.parent / "trl"), use_cpu=settings.device == "cpu", bf16=lora, gradient_checkpointing=False,
        per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=LR, lr_scheduler_type="constant",
        report_to="none", save_strategy="no", logging_steps=1 if steps < 10 else 10**6, max_length=None, beta=BETA,
        disable_tqdm=True, dataloader_pin_memory=False, optim="adamw_torch", weight_decay=0.0, seed=0,
    )  # fmt: skip
    rows = load_dataset("parquet", data_files=str(pairs / "train.parquet"), split="train", cache_dir=str(model.parent))
    trainer = DPOTrainer(
        model=policy, ref_model=reference, args=arguments, train_dataset=rows, callbacks=[TRLSteps(done)],
        processing_class=AutoProcessor.from_pretrained(model),
        peft_config=LoraConfig(r=128, lora_alpha=256, target_modules=LORA) if lora else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def ours(
    model: Path, pairs: Path, settings: Namespace, steps: int, done: Callable[[], None], *, cached: bool = False
) -> list[float]:
    """Train with SeVa; the losses of the steps."""
    lora = settings.shape == "7b"
    backbone = Backbone(str(model), dtype="bfloat16" if lora else "float32").to(settings.device)
    if lora:
        backbone.model.requires_grad_(False)
        backbone.model.add_adapter(LoraConfig(r=128, lora_alpha=256, target_modules=LORA))
    live: Reference = AdaptersOff() if lora else FrozenCopy()
    objective = SeVa(backbone, beta=BETA, reference=Cached(str(model.parent / "references")) if cached else live)
    objective.optimization = Optimization(lr=LR, schedule="constant")
    losses: list[float] = []
    loss = objective.loss
    if steps < 10:
        objective.loss = lambda batch: noting(losses, loss(batch))
    trainer = Trainer(
        accelerator="gpu" if settings.device == "cuda" else "cpu", devices=1, max_steps=steps, logger=False,
        limit_val_batches=0, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=1.0, log_every_n_steps=10**6, callbacks=[Steps(done)],
    )  # fmt: skip
    trainer.fit(objective, datamodule=Preferences(path=str(pairs), batch_size=BATCH))
    return losses


def noting(losses: list[float], loss: Any) -> Any:
    losses.append(loss.mean.item())
    return loss


def cached(model: Path, pairs: Path, settings: Namespace, steps: int, done: Callable[[], None]) -> list[float]:
    return ours(model, pairs, settings, steps, done, cached=True)


SIDES = {"TRL": trl, "live": ours, "cached": cached}


def check(folder: Path, settings: Namespace) -> dict[str, list[float]]:
    """The losses of three steps on one batch.

    Raises:
        SystemExit: They differ by so much that comparing times would mean nothing.
    """
    write_pairs(folder / "few", settings.shape, BATCH)
    found = {side: work(folder / "model", folder / "few", settings, 3, lambda: None) for side, work in SIDES.items()}
    tolerance = TOLERANCE if settings.shape != "7b" else 2e-2  # half precision rounds more
    off = max(abs(one - other) for side in found for one, other in zip(found[side], found["TRL"], strict=True))
    print(f"losses of three steps: {', '.join(f'{each:.6f}' for each in found['TRL'])}; largest difference {off:.0e}")
    if off > tolerance or found["TRL"][0] == found["TRL"][2]:
        raise SystemExit(f"losses differ by more than {tolerance}: {found}")
    return found


def bounds(shape: str) -> dict[str, float]:
    """How much less the language model computes, at most: prompts once, not twice; a backward pass counts as two."""
    _, _, _, side, patch, *_, asked, said = SHAPES[shape]
    prompt = (side // patch) ** 2 + asked
    shared = 2 * (prompt + said) / (prompt + 2 * said)
    return {"live": shared, "cached": 4 / 3 * shared}


def compare_times(folder: Path, settings: Namespace) -> dict[str, Any]:
    turns, steps = Turns(settings.device), settings.repeats + 10
    write_pairs(folder / "many", settings.shape, BATCH * steps)

    def working(side: str) -> Callable[[], None]:
        done = lambda: turns.step_done(side)  # noqa: E731
        return lambda: SIDES[side](folder / "model", folder / "many", settings, steps, done)

    times = turns.run({side: working(side) for side in SIDES}, settings.repeats + 2)
    times = {side: each[2:] for side, each in times.items()}
    print("milliseconds: " + ", ".join(f"{side} {median(each):.0f}" for side, each in times.items()))
    ratios = {side: ratio(times["TRL"], times[side]) for side in ("live", "cached")}
    for side, found in ratios.items():
        verdict = "met" if found["median"] >= TARGETS[side] else "MISSED"
        print(f"steps of SeVa, {side} reference, in the time of one of TRL's: {found['median']:.2f} "
              f"[{found['low']:.2f}, {found['high']:.2f}]   target >= {TARGETS[side]}: {verdict}; "
              f"the arithmetic of the language model allows {bounds(settings.shape)[side]:.2f}")  # fmt: skip
    return {"milliseconds": times, "ratios": ratios}


def train(folder: str, side: str, settings: Namespace) -> None:
    """Four steps; the optimizer's states are there from the second on."""
    SIDES[side](Path(folder) / "model", Path(folder) / "many", settings, 4, lambda: None)


def compare_memory(folder: Path, settings: Namespace) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for heap in (False, True) if settings.device == "cpu" else (False,):
        name = "of the process" if heap else "in use"
        found[name] = {side: memory(folder, side, settings, heap) for side in SIDES}
        print(f"MiB {name}: " + ", ".join(f"{side} {value:.0f}" for side, value in found[name].items()))
        for side in ("live", "cached"):
            value = found[name][side] / found[name]["TRL"]
            verdict = "met" if value <= TARGET_MEMORY else "MISSED"
            print(f"memory {name}, {side} / TRL: {value:.3f}   target <= {TARGET_MEMORY}: {verdict}")
    return found


def memory(folder: Path, side: str, settings: Namespace, heap: bool) -> float:
    if settings.device == "cpu":
        return peak(train, str(folder), side, settings, prepare=prepare, heap=heap)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()  # by the threads that sleep
    train(str(folder), side, settings)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def prepare() -> None:
    torch.set_num_threads(1)
    quiet()


def main() -> None:
    parser = options(__doc__, repeats=21)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="small", choices=SHAPES)
    settings = parser.parse_args()
    prepare()
    result: dict[str, Any] = {"machine": machine() | {"threads": torch.get_num_threads()}}
    result["settings"] = {key: getattr(settings, key) for key in ("device", "shape", "repeats")}
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", settings.shape)
        result["losses"] = check(folder, settings)
        result["times"] = compare_times(folder, settings)
        result["memory"] = compare_memory(folder, settings)
    finish(result, settings.json)


if __name__ == "__main__":
    main()
