"""Properties that one forward and backward pass, or a few, can show."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F

from alignlab.batch import IGNORE, Batch, Tokens
from alignlab.certificate.case import EXACT, Case, Trace, relative, trace
from alignlab.certificate.findings import Finding, compare
from alignlab.functional import held_constants
from alignlab.objectives import Contrastive, Objective

DERIVATIVE = 1e-5
"""Bound on a gradient beside a central difference, whose own error is about 1e-8."""

HALF = 0.2
"""Bound on loss and gradient in bfloat16, which has 8 bits; 0.01 to 0.1 is usual, most where a softmax is sharp."""


def order(case: Case) -> Finding:
    """The samples' order in the batch changes nothing: noise belongs to a sample, not to its place."""
    expected = trace(case.replica(), case.batch())
    found: dict[str, float] = {}
    for examples in (case.examples[::-1], [*case.examples[2:], *case.examples[:2]]):
        _worse(found, expected.deviations(trace(case.replica(), case.batch(examples))))
    return compare("order", found, EXACT)


def padding(case: Case) -> Finding:
    """Neither the side nor the amount of padding changes anything."""
    batch = case.batch()
    expected = trace(case.replica(), batch)
    encoder = copy.copy(case.objective.backbone.encoder)
    encoder.padding_side = "left"
    left = encoder.batch(list(case.examples), tuple(case.objective.requires))
    found: dict[str, float] = {}
    for given, before, after in ((left, 0, 0), (left, 3, 0), (batch, 0, 5), (batch, 2, 1)):
        padded = _padded(given, before, after, encoder.pad_id)
        _worse(found, expected.deviations(trace(case.replica(), padded)))
    return compare("padding", found, EXACT)


def chunks(case: Case) -> Finding:
    """Embedding in chunks of any size (GradCache) gives the gradients of the whole batch."""
    if not any(isinstance(module, Contrastive) for module in case.objective.modules()):
        return Finding("chunks", "n/a", note="it embeds nothing in chunks (alignlab.objectives.Contrastive)")
    batch, found = case.batch(), {}
    expected = trace(case.replica(), batch)
    for size in (1, 2, 4):
        deviations = expected.deviations(trace(_in_chunks(case.replica(), size), batch))
        found |= {f"{what}, in chunks of {size}": value for what, value in deviations.items()}
    return compare("chunks", found, EXACT)


def recomputation(case: Case) -> Finding:
    """Gradient checkpointing changes nothing, whatever is drawn on the way."""
    found: dict[str, float] = {}
    batch = case.batch()
    for dropout in (0.0, 0.1):
        expected = trace(case.replica(dropout=dropout), batch)
        recomputing = case.replica(dropout=dropout)
        recomputing.backbone.model.gradient_checkpointing_enable()
        _worse(found, expected.deviations(trace(recomputing, batch)))
    return compare("recomputation", found, EXACT)


def purity(case: Case) -> Finding:
    """``loss`` leaves the batch as it is, logs nothing, and reports detached scalars."""
    objective, batch = case.replica(), case.batch()
    before, logged = copy.deepcopy(batch), []
    for module in objective.modules():
        if isinstance(module, LightningModule):
            module.log = module.log_dict = lambda *arguments, **settings: logged.append(arguments[0])
    loss = objective.loss(batch)
    wrong = [f"writes into the batch's {name}" for name in _changed(vars(before), vars(batch))]
    wrong += [f"logs {name}" for name in logged]
    for name, value in loss.report.items():
        value = torch.as_tensor(value)
        if value.requires_grad:
            wrong.append(f"reports {name} with its graph")
        elif value.ndim or not value.isfinite():
            wrong.append(f"reports {name}, which is no finite scalar")
    if torch.as_tensor(loss.weight).requires_grad:
        wrong.append("weighs with a graph")
    if wrong:
        return Finding("purity", "fails", note="; ".join(f"loss {what}" for what in wrong))
    return Finding("purity", "holds")


def derivative(case: Case) -> Finding:
    """The gradient is the derivative of the loss, with dropout held, in chunks, and with what is declared constant.

    A value that an objective takes as a constant is declared by ``alignlab.functional.stop_gradient``.
    """
    found: dict[str, float] = {}
    batch, constants = case.batch(), 0
    for dropout, size in ((0.0, None), (0.1, None), (0.1, 2)):
        objective = _in_chunks(case.replica(dropout=dropout), size)
        how = f", with dropout {dropout}" * bool(dropout) + f", in chunks of {size}" * bool(size)
        state = {name: buffer.clone() for name, buffer in objective.named_buffers()}
        with held_constants() as tape:
            seen = trace(objective, batch)
            constants = max(constants, len(tape.values))

            def again(objective=objective, state=state, tape=tape) -> None:
                """Back to where the gradient was taken, whatever has moved since."""
                for name, buffer in objective.named_buffers():
                    buffer.copy_(state[name])
                tape.rewind()
                torch.manual_seed(0)

            for where, parameters in _groups(objective).items():
                found[f"the derivative along {where}{how}"] = _off(objective, batch, seen, parameters, again)
    finding = compare("derivative", found, DERIVATIVE)
    declared = f"values declared constant: {constants}" if constants else ""
    return replace(finding, note="; ".join(filter(None, (finding.note, declared))))


def half(case: Case) -> Finding:
    """A forward and backward pass in bfloat16 is close to one in float32."""
    batch, found = case.batch(), {}
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        expected = trace(case.replica().float().to(device), batch.to(device))
        with torch.autocast(device, torch.bfloat16):
            seen = trace(case.replica().float().to(device), batch.to(device))
        # Relative to what it is for, a loss may be nothing: policy gradients have a mean of 0.
        size = expected.loss.abs().clamp(min=1e-3 * expected.norm())
        found[f"the loss on {device}"] = relative(seen.loss - expected.loss, size)
        off = [seen.gradients[name] - value for name, value in expected.gradients.items()]
        found[f"the gradient on {device}"] = relative(torch.cat([each.flatten() for each in off]), expected.norm())
    return compare("bfloat16", found, HALF)


def _in_chunks(objective: Objective, size: int | None) -> Objective:
    for part in objective.modules():
        if isinstance(part, Contrastive):
            part.chunk_size = size
    return objective


def _worse(found: dict[str, float], deviations: Mapping[str, float]) -> None:
    for what, value in deviations.items():
        found[what] = max(found.get(what, 0.0), value) if value == value else value


def _padded(batch: Batch, before: int, after: int, pad_id: int) -> Batch:
    """The batch with more padding on both sides of every sequence."""

    def widened(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (before, after), value=value)

    def pad(tokens: Tokens) -> Tokens:
        shape = tokens.input_ids.shape
        vision = {
            key: widened(value, 0) if isinstance(value, Tensor) and value.shape == shape else value
            for key, value in tokens.vision.items()
        }
        return replace(
            tokens,
            input_ids=widened(tokens.input_ids, pad_id),
            attention_mask=widened(tokens.attention_mask, 0),
            labels=widened(tokens.labels, IGNORE),
            image_mask=widened(tokens.image_mask, False),
            vision=vision,
        )

    changed: dict[str, Any] = {name: pad(value) for name, value in vars(batch).items() if isinstance(value, Tokens)}
    if batch.roles is not None:
        changed["roles"] = widened(batch.roles, -1)
    return replace(batch, **changed)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name, value in before.items():
        now = after[name]
        if isinstance(value, Tokens):
            value, now = vars(value), vars(now)
        if isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in now if inner not in value)
            yield from (f"{name}.{inner}" for inner in _changed(value, now))
        elif not (torch.equal(value, now) if isinstance(value, Tensor) else value == now):
            yield name


def _groups(objective: Objective) -> dict[str, list[torch.nn.Parameter]]:
    """What trains, part by part, as of a visual tokenizer; an objective's own parameters one by one."""
    part = {id(parameter): name for parameter, name in objective.backbone.part_of()}
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            if name.startswith("backbone.visual_tokenizer."):
                name = ".".join(name.split(".")[:3])
            groups.setdefault(f"the {part[id(parameter)]}" if id(parameter) in part else name, []).append(parameter)
    return groups


def _off(
    objective: Objective,
    batch: Batch,
    seen: Trace,
    parameters: Sequence[torch.nn.Parameter],
    again: Callable[[], None],
) -> float:
    """How far the gradient along a random direction is from the difference of the losses on either side."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) for parameter in parameters]
    size = torch.stack([each.norm() for each in drawn]).norm()
    direction = [each / size for each in drawn]
    gradient = [seen.gradients[names[id(parameter)]] for parameter in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    step, sides = 1e-4, []
    for sign in (1, -1):
        with _moved(parameters, direction, sign * step):
            again()
            sides.append(objective.loss(batch).mean.detach())  # an objective may take gradients of its own
    difference = (sides[0] - sides[1]) / (2 * step)
    # A random direction meets a gradient at a right angle, nearly: its slope is small beside the gradient.
    steepest = torch.stack([g.norm() for g in gradient]).norm() / max(sum(g.numel() for g in gradient), 1) ** 0.5
    return relative(difference - slope, max(slope.abs(), steepest, 1e-5 * seen.norm()))


@contextmanager
def _moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], step: float) -> Iterator[None]:
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, each in zip(parameters, direction, strict=True):
            parameter.add_(each, alpha=step)
    yield
    with torch.no_grad():
        for parameter, kept in zip(parameters, before, strict=True):
            parameter.copy_(kept)
