"""Properties of training: what one step, several processes, a kill and a seed make of an objective."""

import copy
import itertools
import math
import os
import pickle
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import distributed
from torch.utils.data import DataLoader

from alignlab.batch import Batch, Example
from alignlab.certificate.case import EXACT, Case, Trace, gradients, packed, relative, trace
from alignlab.certificate.children import ChildFailed, run_child, run_children
from alignlab.certificate.findings import Finding, compare
from alignlab.data import AlignmentData
from alignlab.experiment.fitting import fit
from alignlab.modules.parted import disable_dropout
from alignlab.objectives import Objective, Optimization

QUIET = {"accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 0}
OPTIMIZATION = Optimization(lr=1e-2, schedule="constant")


class Given(AlignmentData):
    """Given examples; or given batches, whose sizes are the caller's choice."""

    def __init__(self, examples: Sequence[Example], batches: Sequence[Batch] = (), *, batch_size: int = 2) -> None:
        super().__init__(batch_size=batch_size)
        self.given, self.batches = list(examples), list(batches)
        self.supplies = tuple(Example.__dataclass_fields__)

    def examples(self, split: str) -> Sequence[Example]:
        return self.given

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None) if self.batches else super().train_dataloader()


class Stepped(Callback):
    """Keeps the gradients of the last step, and the ids of every batch."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}
        self.ids: list[str] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self.gradients = gradients(module)  # what the optimizer saw stays until the next backward pass
        self.ids += batch.ids


class Killed(Callback):
    """Ends the process, as a scheduler would that has lost its patience, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def accumulation(case: Case) -> Finding:
    """Micro-batches of unequal numbers of samples and tokens, accumulated, are one batch."""
    coupled, found = case.objective.coupled, {}
    for sizes in ((1, 2, 3), (4, 2)):
        batches = [case.batch(part) for part in _cut(case.examples, sizes)]
        # What is coupled is no larger batch, but still has to be the weighted mean of its micro-batches.
        expected = _mean(case, batches) if coupled else trace(case.replica(), case.batch())
        seen = _one_step(case.replica(), batches, _folder(case, "accumulation", sizes))
        found |= {f"{what}, as {_sizes(sizes)}": value for what, value in _off(expected, seen).items()}
    finding = compare("accumulation", found, EXACT)
    return Finding("accumulation", "n/a", note=coupled) if coupled and finding.verdict == "holds" else finding


def _mean(case: Case, batches: Sequence[Batch]) -> Trace:
    """The weighted mean of what the micro-batches give, one after the other."""
    replica = case.replica()
    traces = [trace(replica, batch) for batch in batches]
    total = max(sum(each.weight for each in traces), 1e-30)
    loss = sum(each.weight / total * each.loss for each in traces)
    names = traces[0].gradients
    return Trace(loss, {name: sum(each.weight / total * each.gradients[name] for each in traces) for name in names})


def processes(case: Case) -> Finding:
    """Two and three processes with equal and unequal batches are one process with all of it."""
    if case.objective.per_process:
        return Finding("processes", "n/a", note=case.objective.per_process)
    still = copy.deepcopy(case.objective)  # in chunks where it is, and without dropout, which differs by process
    disable_dropout(still)
    expected, sent = trace(case.replica(), case.batch()), packed(still)
    found: dict[str, float] = {}
    each: list[str] = []
    for sizes in ((3, 3), (4, 2), (2, 2, 2), (1, 3, 2)):
        folder, world = _folder(case, "processes", sizes), len(sizes)
        batches = [case.batch(part) for part in _cut(case.examples, sizes)]
        try:
            seen = run_children(_rank, [(sent, batch, folder, rank, world) for rank, batch in enumerate(batches)])
        except ChildFailed as error:
            found[_sizes(sizes)] = math.inf
            each.append(f"{_sizes(sizes)}: {error}")
            continue
        off = [_off(expected, result) for result in seen]
        found[_sizes(sizes)] = max(value for deviations in off for value in deviations.values())
        each.append(f"{_sizes(sizes)}: {found[_sizes(sizes)]:.0e}")
    finding = compare("processes", found, EXACT)
    return replace(finding, note="; ".join(each)) if finding.verdict == "fails" else finding


def _rank(sent: bytes, batch: Batch, folder: Path, rank: int, world: int) -> dict[str, Any]:
    """One step in a group of processes."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    # The processes are ours, whatever a scheduler's variables say.
    settings = {"devices": world, "strategy": "ddp_find_unused_parameters_true", "plugins": [LightningEnvironment()]}
    return _one_step(pickle.loads(sent), [batch], folder, settings)


def frozen(case: Case) -> Finding:
    """A step leaves what is frozen where it is, and moves every part that trains."""
    objective, declared = case.replica(), dict(case.objective.named_parameters())
    # Three steps: what starts at zero, as adapters do, lets what stands before it move only then.
    _one_step(objective, [case.batch()], _folder(case, "frozen", ()), steps=3)
    part = {id(parameter): name for parameter, name in objective.backbone.part_of()}
    wrong, still = [], {}
    for name, parameter in objective.named_parameters():
        moved = not torch.equal(parameter, declared[name])
        if declared[name].requires_grad:
            # An embedding uses no LM head, so of a backbone's part it is enough that something moves.
            still.setdefault(part.get(id(parameter), name), []).append(not moved)
        elif parameter.requires_grad or parameter.grad is not None:
            wrong.append(f"{name} is frozen, but gets a gradient")
        elif moved:
            wrong.append(f"{name} is frozen, but moves; what is to follow the model belongs in a buffer")
    if not any(tokens.num_images.any() for tokens in case.batch()):  # what sees pictures has nothing to see
        still = {name: stays for name, stays in still.items() if name not in ("vision_tower", "projector")}
    wrong += [f"{name} is to be trained, but does not move" for name, stays in still.items() if all(stays)]
    return Finding("frozen", "fails" if wrong else "holds", note="; ".join(wrong[:3]))


def resume(case: Case) -> Finding:
    """A run that is killed between two steps and resumed ends bit for bit where it would have."""
    folder, sent = _folder(case, "resume", ()), packed(case.replica(dropout=0.1))
    run_child(_run, sent, case.examples, folder / "straight", 0, 0)
    run_child(_run, sent, case.examples, folder / "killed", 0, 5, killed=True)
    run_child(_run, sent, case.examples, folder / "killed", 99, 0)
    straight, killed = (_left(folder / name) for name in ("straight", "killed"))
    found = {what: _distance(value, killed.get(what)) for what, value in straight.items()}
    return compare("resume", found, 0.0)


def _run(sent: bytes, examples: Sequence[Example], folder: Path, seed: int, killed_after: int) -> dict[str, Any]:
    """Seven steps, an epoch ending after three, with a checkpoint every two."""
    seed_everything(seed, verbose=False)
    folder.mkdir(exist_ok=True)
    callbacks = [Killed(killed_after)] if killed_after else []
    settings = {**QUIET, "devices": 1, "max_steps": 7, "log_every_n_steps": 1, "limit_val_batches": 1}
    settings |= {"val_check_interval": 1}
    fit(_ready(pickle.loads(sent)), Given(examples), settings, folder, checkpoint_every=2, callbacks=callbacks)
    return {}


def seeds(case: Case) -> Finding:
    """The same seed gives the same run; another one gives other dropout, where there is some, and another order."""
    sent = packed(case.replica(dropout=0.1))
    runs = [(0, 0), (0, 0), (1, 0), (0, 1)]
    results = [
        run_child(_seeded, sent, case.examples, _folder(case, "seeds", (index, *each)), *each)
        for index, each in enumerate(runs)
    ]
    first, again, other_seed, other_order = results
    found = {name: _distance(value, again[name]) for name, value in first.items() if name not in ("ids", "draws")}
    finding = compare("seeds", found, 0.0)
    if finding.verdict == "holds" and first["ids"] == other_order["ids"]:
        return Finding("seeds", "fails", note="another seed gives the data in the same order")
    same = all(_distance(first[name], other_seed[name]) == 0 for name in found)
    if finding.verdict == "holds" and same and first["draws"]:
        return Finding("seeds", "fails", note="another seed gives the same dropout")
    return finding


def _seeded(sent: bytes, examples: Sequence[Example], folder: Path, seed: int, order: int) -> dict[str, Any]:
    seed_everything(seed, verbose=False)
    objective, stepped = _ready(pickle.loads(sent)), Stepped()
    data = Given(examples)
    data.order_seed = order
    before = torch.get_rng_state()
    fit(objective, data, {**QUIET, "devices": 1, "max_steps": 3}, folder, callbacks=[stepped])
    draws = not torch.equal(torch.get_rng_state(), before)
    weights = {name: parameter.detach() for name, parameter in objective.named_parameters()}
    return weights | {"ids": stepped.ids, "draws": draws}


def _one_step(
    objective: Objective,
    batches: Sequence[Batch],
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    steps: int = 1,
) -> dict[str, torch.Tensor]:
    """The gradients that the optimizer sees in a step over micro-batches, and the loss that is logged."""
    stepped = Stepped()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**QUIET, "devices": 1, **(settings or {}), "max_steps": steps, "accumulate_grad_batches": len(batches)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fit(_ready(objective), Given((), [*batches] * steps), settings, folder, callbacks=[stepped])
    return {**stepped.gradients, "loss": torch.tensor(objective.logged["train/loss"], dtype=torch.float64)}


def _ready(objective: Objective) -> Objective:
    objective.optimization = OPTIMIZATION
    return objective


def _off(expected: Trace, seen: Mapping[str, torch.Tensor]) -> dict[str, float]:
    gradients = {name: value for name, value in seen.items() if name != "loss"}
    return expected.deviations(Trace(seen["loss"], gradients))


def _left(folder: Path) -> dict[str, Any]:
    """What a run leaves: everything in its last checkpoint that it goes on from, and its curve."""
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    kept["curve"] = (folder / "curve.jsonl").read_text()
    return dict(_leaves(kept))


def _leaves(value: Any, name: str = "") -> Any:
    match value:
        case Mapping():
            for key, item in value.items():
                yield from _leaves(item, f"{name}.{key}" if name else str(key))
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _leaves(item, f"{name}.{index}")
        case _:
            yield name, value


def _distance(one: Any, other: Any) -> float:
    """0 for the same bits; the relative difference of tensors; else 1."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
        if torch.equal(one, other):
            return 0.0
        return relative(other.double() - one.double(), one.double().norm()) or 1.0
    return 0.0 if one == other else 1.0


def _cut(examples: Sequence[Example], sizes: Sequence[int]) -> list[Sequence[Example]]:
    starts = [0, *itertools.accumulate(sizes)]
    return [examples[start:end] for start, end in itertools.pairwise(starts)]


def _sizes(sizes: Sequence[int]) -> str:
    return " + ".join(map(str, sizes))


def _folder(case: Case, name: str, parts: Sequence[int]) -> Path:
    folder = case.folder / "-".join([name, *map(str, parts), f"{random.Random().getrandbits(32):08x}"])
    folder.mkdir(parents=True)
    return folder
