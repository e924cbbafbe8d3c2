"""certify: run every property on one objective."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.certificate import alone, training
from alignlab.certificate.case import Case, make_case
from alignlab.certificate.children import preload, side_by_side
from alignlab.certificate.findings import Certificate, Finding
from alignlab.errors import InputError
from alignlab.experiment.run import quiet_libraries
from alignlab.objectives import Objective

NUM_EXAMPLES = 6

Check = Callable[[Case], Finding]

IN_THIS_PROCESS: tuple[Check, ...] = (
    alone.order,
    alone.padding,
    training.accumulation,
    alone.chunks,
    alone.recomputation,
    training.frozen,
    alone.purity,
    alone.derivative,
    alone.half,
)
IN_CHILDREN: tuple[Check, ...] = (training.processes, training.resume, training.seeds)


def certify(
    objective: Callable[[Backbone], Objective], examples: Sequence[Example], *, children: bool = True
) -> Certificate:
    """Show that an objective is equal to itself, on a tiny random model in float64.

    The properties: the ``order`` of the batch and ``padding`` change nothing; neither do ``accumulation``, ``chunks``
    (GradCache), several ``processes``, and ``recomputation`` (gradient checkpointing); what is ``frozen`` stays and the
    rest moves; ``loss`` is pure (``purity``); a killed run can ``resume`` and ``seeds`` decide everything, bit for bit;
    the gradient is the ``derivative`` of the loss; ``bfloat16`` comes close.

    Args:
        objective: A class, or a partial of one with its settings; a class that can be imported by its name.
        examples: At least 6, with what the objective requires, of unequal lengths.
        children: Also check what takes processes of their own: ``processes``, ``resume`` and ``seeds``.

    Raises:
        InputError: The examples are too few, or lack what the objective requires.
    """
    if len(examples) < NUM_EXAMPLES:
        raise InputError(f"certify needs at least {NUM_EXAMPLES} examples, got {len(examples)}")
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if children:
            preload()
        torch.manual_seed(0)
        case = make_case(objective, examples[:NUM_EXAMPLES], Path(folder))
        case.batch()  # raises an InputError if the examples lack something
        found = [_found(check, case) for check in IN_THIS_PROCESS]
        if children:
            found += side_by_side(*[lambda check=check: _found(check, case) for check in IN_CHILDREN])
    return Certificate(type(case.objective).__name__, tuple(found))


def _found(check: Check, case: Case) -> Finding:
    try:
        return check(case)
    except InputError:
        raise
    except Exception as error:  # an objective may raise anything; that is a finding, and the others go on
        name = "bfloat16" if check is alone.half else check.__name__
        lines = str(error).strip().splitlines() or [""]
        return Finding(name, "fails", note=f"raised {type(error).__name__}: {lines[0]}")
