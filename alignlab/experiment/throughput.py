"""throughput: samples, tokens and floating-point operations a second, and their share of what the device could do."""

import time
from typing import Any, TypedDict

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from alignlab.batch import Batch
from alignlab.experiment.units import scaled

PEAKS = {
    "H200": (989e12, "NVIDIA H200 data sheet"),
    "H100 PCIe": (756e12, "NVIDIA H100 data sheet, PCIe"),
    "H100 NVL": (835e12, "NVIDIA H100 NVL data sheet"),
    "H100": (989e12, "NVIDIA H100 data sheet, SXM"),
    "A100": (312e12, "NVIDIA A100 data sheet"),
    "L40S": (362e12, "NVIDIA L40S data sheet"),
    "RTX 4090": (165.2e12, "NVIDIA Ada GPU architecture paper, float32 accumulation"),
    "RTX 3090": (71e12, "NVIDIA Ampere GA102 paper, float32 accumulation"),
    "V100": (125e12, "NVIDIA V100 data sheet, float16"),
}
"""Dense bfloat16 (or float16) operations a second by a part of the device's name, the longer name first, and whence."""

WARM_UP = 3
"""Micro-batches of a session that are not timed; their operations are counted instead."""


class Throughput(TypedDict):
    """What ``metrics.json`` says of a training's speed; None where it is not known.

    Args:
        samples_per_second: Of all processes, as are the next two.
        mfu: flops_per_second by the peak of all devices, in [0, 1].
        peak_flops: Of one device, dense and in 16 bits.
        peak_source: Where that number is from.
    """

    samples_per_second: float | None
    tokens_per_second: float | None
    flops_per_second: float | None
    mfu: float | None
    peak_flops: float | None
    peak_source: str | None


class Work(TypedDict):
    """Floating-point operations of a training's micro-batches, of all processes.

    Validation, evaluation, pairs, and features and log-probabilities that are computed before are not in it.
    """

    forward: float
    backward: float


def peak_of(device: torch.device) -> tuple[float | None, str | None]:
    """The device's published operations a second, and the source; None where none is known, as of CPUs."""
    if device.type != "cuda":
        return None, None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), (None, None))


class FlopCount(TorchDispatchMode):
    """Counts the operations of matrix products, convolutions and attentions, by torch's own formulas.

    Two a multiplication with its addition, backward passes and recomputation included; what is counted runs as ever.
    ``backward`` are those of ``total`` that run while gradients are computed: what is recomputed then is one of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := _FORMULAS.get(func._overloadpacket)) is not None:
            flops = formula(*args, **kwargs, out_val=result)
            self.total += flops
            if torch._C._current_graph_task_id() != -1:  # there is no public word for it
                self.backward += flops
        return result


_ATEN = torch.ops.aten
_FORMULAS = {  # torch has none for what its attention is called on CPUs
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class Pace(Callback):
    """Times the micro-batches of training after the first few; those with a validation or checkpoint between are not.

    Waiting for data belongs to it. The operations are counted while the first few run, of which no bit changes, and
    taken to be as many for each sample later on; but not those of the very first, which looks around as well (whether
    two answers may share their prompt, say), unless it is all there is. Compiled modules are not counted: a counter
    would have them run otherwise.
    """

    def __init__(self) -> None:
        self.samples = self.counted_samples = self.flops = self.backward = 0
        self.only_first = False
        """Whether no more than the first micro-batch of a session has been counted."""
        self.seconds = 0.0
        self._left = WARM_UP
        self._end: float | None = None
        """When the last micro-batch ended; None: what comes next is not timed."""
        self._counter: FlopCount | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._left, self._end = WARM_UP, None
        self._counts = all(part._compiled_call_impl is None for part in module.modules())

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if self._left and self._counts:
            self._counter = FlopCount()
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        size = len(batch) * trainer.world_size
        if self._left:
            self._left -= 1
            if self._counter is not None:
                self._counter.__exit__(None, None, None)
                self._keep(self._counter, len(batch), first=self._left == WARM_UP - 1)
                self._counter = None
            if self._left == 0 and module.device.type == "cuda":
                torch.cuda.synchronize(module.device)  # once, so that the clock starts with nothing under way
        now = time.perf_counter()
        if self._end is not None:
            self.samples, self.seconds = self.samples + size, self.seconds + now - self._end
        self._end = now if self._left == 0 else None

    def _keep(self, counter: FlopCount, samples: int, *, first: bool) -> None:
        """Add a micro-batch's count to the others; that of a session's first one has to do until there is another."""
        if first and self.counted_samples:
            return
        if self.only_first:
            self.flops = self.backward = self.counted_samples = 0
        self.only_first = first
        self.flops, self.backward = self.flops + counter.total, self.backward + counter.backward
        self.counted_samples += samples

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._counter = None

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._end = None

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._end = None

    def state_dict(self) -> dict[str, float]:
        names = ("samples", "seconds", "flops", "backward", "counted_samples", "only_first")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.samples, self.seconds = int(state["samples"]), state["seconds"]
        self.flops, self.counted_samples = int(state["flops"]), int(state["counted_samples"])
        self.backward, self.only_first = int(state.get("backward", 0)), bool(state.get("only_first", False))

    def work(self, samples: int) -> Work | None:
        """The operations of a training on so many samples, as many for each as were counted; None if none were."""
        if not self.counted_samples:
            return None
        scale = samples / self.counted_samples
        return {"forward": (self.flops - self.backward) * scale, "backward": self.backward * scale}

    def summary(self, device: torch.device, *, devices: int, tokens_per_sample: float) -> Throughput:
        """What was found, on so many devices."""
        rate = self.samples / self.seconds if self.seconds else None
        work = self.flops / self.counted_samples if self.counted_samples else None
        flops = None if rate is None or work is None else rate * work
        peak, source = peak_of(device)
        return {
            "samples_per_second": rate,
            "tokens_per_second": None if rate is None else rate * tokens_per_sample,
            "flops_per_second": flops,
            "mfu": None if flops is None or peak is None else flops / (peak * devices),
            "peak_flops": peak,
            "peak_source": source,
        }


def in_words(throughput: Throughput | None) -> str:
    """One line for the terminal; empty where nothing is known, as of a training of a few steps."""
    if throughput is None or throughput["samples_per_second"] is None:
        return ""
    words = [f"{scaled(throughput[f'{what}_per_second'])}{what}/s" for what in ("samples", "tokens")]
    if throughput["flops_per_second"] is not None:
        words.append(f"{scaled(throughput['flops_per_second'])}FLOP/s")
    if throughput["mfu"] is not None:
        words.append(f"MFU {100 * throughput['mfu']:.1f} %")
    return ", ".join(words)
