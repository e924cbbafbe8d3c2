"""dryrun: what ``alignlab fit --dry-run`` prints: parameters, sequences, memory and time of each stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.utils.data import Subset

from alignlab.batch import Example
from alignlab.errors import NoTokenizer
from alignlab.experiment.config import Experiment, instantiate
from alignlab.experiment.estimate import Estimate, estimate
from alignlab.experiment.preflight import makers_of, preflight
from alignlab.experiment.run import quiet_libraries
from alignlab.experiment.show import parameters_table
from alignlab.experiment.stages import STAGE, outlined
from alignlab.experiment.throughput import peak_of
from alignlab.experiment.units import count, duration, scaled, size
from alignlab.modules.parted import Part

WIDTH = 120
"""Columns where there is no terminal."""


def dry_run(config: Mapping[str, Any]) -> dict[str, Estimate]:
    """Check a resolved config as a run would, and print what each stage will take; nothing is written.

    A stage that starts from an earlier one is tried with the weights that this one starts from, in their place.

    Returns:
        What was printed, by stage, the last by the name ``main``; without those that build pairs, run a command
        or need the visual tokenizer of an earlier one.

    Raises:
        InputError: As of ``preflight``.
    """
    quiet_libraries()
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    stages, bits = config["stages"], in_4_bits(config)
    plain = _without_4_bits(config)
    preflight({**plain, "stages": {name: _without_4_bits(stage) for name, stage in stages.items()}})
    found = {}
    for name, part in (*stages.items(), ("main", config)):
        console.rule(f"stage {name}" if stages else "dry run", align="left")
        if part["objective"] is None:
            what = "builds pairs" if part["command"] is None else "lets a command train"
            console.print(f"It {what}, of which nothing is told beforehand.")
            continue
        experiment, examples, notes = prepared(part, stages)
        try:
            found[name] = told = estimate(experiment, examples, in_4_bits=bits[name])
        except NoTokenizer:
            if not part["backbone"]["path"].startswith(STAGE):
                raise
            console.print("It needs the visual tokenizer of an earlier stage, before which nothing is told of it.")
            continue
        _show(console, replace(told, notes=(*told.notes, *notes)))
    return found


def in_4_bits(config: Mapping[str, Any]) -> dict[str, tuple[Part, ...]]:
    """The parts that QLoRA will keep in 4 bits, by stage, the last by the name ``main``."""
    bits: dict[str, tuple[Part, ...]] = {}
    for name, part in (*config["stages"].items(), ("main", config)):
        before = part["backbone"]["path"].removeprefix(STAGE)
        bits[name] = _in_4_bits(part) or bits.get(before, ())  # a later stage goes on with such weights
    return bits


def _in_4_bits(part: Mapping[str, Any]) -> tuple[Part, ...]:
    adapter = part["adapter"]
    return tuple(adapter["init_args"]["parts"]) if adapter and adapter["class_path"] == "QLoRA" else ()


def _without_4_bits(part: Mapping[str, Any]) -> dict[str, Any]:
    """The config with LoRA in place of QLoRA, whose 4 bits need weights that are there, and bitsandbytes."""
    return {**part, "adapter": {**part["adapter"], "class_path": "LoRA"}} if _in_4_bits(part) else dict(part)


def prepared(
    part: Mapping[str, Any], stages: Mapping[str, Any]
) -> tuple[Experiment, Sequence[Example], tuple[str, ...]]:
    """A stage's objects without evaluators, its training examples, and what stands in for what is not there yet."""
    whole = {**_without_4_bits(part), "stages": {}, "evaluators": [], "backbone": outlined(part["backbone"], stages)}
    makers, notes = makers_of(part, stages), ()
    if part["backbone"]["path"] != whole["backbone"]["path"] or part["backbone"]["take"]:
        notes = (f"weights of earlier stages are not there yet: those of {whole['backbone']['path']} stand in",)
    if not makers:
        experiment = instantiate(whole)
        return experiment, experiment.data.filled("train"), notes
    maker = makers[-1]
    experiment = instantiate({**whole, "data": maker["data"]})
    data, settings = experiment.data, part["data"]["init_args"]
    data.batch_size = settings.get("batch_size", data.batch_size)
    data.supplies = (*data.supplies, "rejected")
    examples = data.filled("train")
    most = min((each["pairs"]["num_examples"] or len(examples) for each in makers), default=len(examples))
    stand = "the pairs are not there yet: answers of the data they will be made of stand in for both sides"
    return experiment, _Twice(Subset(examples, range(min(most, len(examples))))), (*notes, stand)


class _Twice(Sequence[Example]):
    """Examples whose last answer is also the rejected one."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        return replace(example, rejected=example.conversation[-1].content)


def _show(console: Console, told: Estimate) -> None:
    if told.parameters is not None:
        console.print(parameters_table(told.parameters))
    console.print(_makeup_table(told))
    for title, rows in (
        ("course", _course_rows(told)),
        (f"memory of one process ({told.device.type})", _memory_rows(told)),
        (f"time ({told.device.type})", _time_rows(told)),
    ):
        table = Table("", "", title=title, show_header=False)
        table.columns[1].justify = "right"
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in told.notes:
        console.print(f"- {note}", markup=False, highlight=False)


def _makeup_table(told: Estimate) -> Table:
    makeup = told.makeup
    table = Table(
        "sequence", "text", "visual", "supervised", "padding", title=f"tokens, mean (largest) of {makeup.num_examples}"
    )
    for row in makeup.rows:
        cells = [f"{mean:.1f} ({largest})" for mean, largest in (row.text, row.visual, row.supervised)]
        table.add_row(row.name, *cells, f"{100 * row.padding:.1f} %")
    return table


def _course_rows(told: Estimate) -> Iterator[tuple[str, str]]:
    course, makeup = told.course, told.makeup
    streamed = {} if "train" in course.splits else {"train": "a stream"}
    splits = {**streamed, **{split: f"{number:,}" for split, number in course.splits.items()}}
    yield "examples", ", ".join(f"{split} {number}" for split, number in splits.items())
    yield "pictures a sample, all sequences", f"{makeup.pictures:.2f}"
    each = course.samples // (course.processes * course.accumulate)
    a_step = f"{course.processes} process(es) x {course.accumulate} micro-batch(es) x {each}"
    yield "samples a step", f"{course.samples:,} = {a_step}"
    if course.steps is not None:
        samples = course.batches * course.samples // course.accumulate
        if course.epochs is None:
            yield "steps", f"{course.steps:,}"
        else:
            yield "steps, epochs", f"{course.steps:,}, {course.epochs:,.2f}"
        yield "samples, tokens", f"{samples:,}, {count(samples * makeup.tokens).strip()}"


def _memory_rows(told: Estimate) -> Iterator[tuple[str, str]]:
    memory = told.memory
    for kind, held in memory.weights.items():
        yield f"weights, {kind}", size(held)
    for what, held in memory.others.items():
        yield what, size(held)
    if told.parameters is not None:
        yield "trained weights, of all weights", f"{100 * told.parameters['trained'] / told.parameters['total']:.2f} %"
    yield "gradients", size(memory.gradients)
    yield "optimizer (AdamW)", size(memory.optimizer)
    if memory.activations is not None:
        yield "activations of the largest micro-batch", size(memory.activations)
        yield "predicted peak", size(memory.fixed + memory.activations)
    if told.probe is not None and told.probe.peak:
        yield "measured peak, of the micro-batch that was tried", size(told.probe.peak)


def _time_rows(told: Estimate) -> Iterator[tuple[str, str]]:
    yield "encoding a micro-batch, one worker", duration(told.makeup.encoding)
    if (found := told.probe) is None:
        return
    step = told.course.accumulate * found.seconds + found.step_seconds
    rate = found.flops / found.seconds
    yield "forward and backward, a micro-batch", duration(found.seconds)
    yield "optimizer", duration(found.step_seconds)
    yield "a step", duration(step)
    samples = told.course.samples / step
    yield "samples, tokens a second", f"{count(samples).strip()}, {count(samples * told.makeup.tokens).strip()}"
    if told.course.steps is not None:
        seconds = told.course.batches * found.seconds + told.course.steps * found.step_seconds
        yield "all steps", duration(seconds)
    yield "FLOPs a step, all processes", scaled(found.flops * told.course.accumulate * told.course.processes).strip()
    yield "FLOP/s of one process", scaled(rate).strip()
    peak, source = peak_of(told.device)
    yield (
        "MFU",
        "not known of this device" if peak is None else f"{100 * rate / peak:.1f} % of {scaled(peak)}({source})",
    )
