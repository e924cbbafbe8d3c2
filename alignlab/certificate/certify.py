"""certify: run every property on one objective."""

import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from alignlab.adapters import Adapter, Full
from alignlab.backbones import Backbone
from alignlab.batch import Example
from alignlab.certificate import alone, training
from alignlab.certificate.case import Case, make_case, packed
from alignlab.certificate.children import CannotStart, preload, side_by_side
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
    objective: Callable[[Backbone], Objective],
    examples: Sequence[Example],
    *,
    adapter: Adapter | None = None,
    children: bool = True,
    dual: bool = False,
) -> Certificate:
    """Show that an objective is equal to itself, on a tiny random model in float64.

    The properties: the ``order`` of the batch and ``padding`` change nothing; neither do ``accumulation``, ``chunks``
    (GradCache), several ``processes``, and ``recomputation`` (gradient checkpointing); what is ``frozen`` stays and the
    rest moves; ``loss`` is pure (``purity``); a killed run can ``resume`` and ``seeds`` decide everything, bit for bit;
    the gradient is the ``derivative`` of the loss; ``bfloat16`` comes close.

    Args:
        objective: A class, or a partial of one with its settings; a class that can be imported by its name.
        examples: At least 6, with what the objective requires, of unequal lengths.
        adapter: What trains of the model; None: all but the vision tower.
        dual: The tiny model is a dual encoder, of a vision tower and a language model, instead of a LLaVA.
        children: Also check what takes processes of their own: ``processes``, ``resume`` and ``seeds``.

    A script calls it under ``if __name__ == "__main__":``, as the processes import the script.

    Raises:
        InputError: The examples are too few or lack what the objective requires, or it cannot be sent to a process.
    """
    if len(examples) < NUM_EXAMPLES:
        raise InputError(f"certify needs at least {NUM_EXAMPLES} examples, got {len(examples)}")
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(), warnings.catch_warnings():
        quiet_libraries()
        warnings.simplefilter("ignore")
        if children:
            preload()
        torch.manual_seed(0)
        trained = adapter or Full(parts=("projector", "language_model"))
        case = make_case(objective, examples[:NUM_EXAMPLES], Path(folder), trained, dual=dual)
        case.batch()  # raises an InputError if the examples lack something
        if children:
            _check_sendable(case.objective)
        found = [_found(check, case) for check in IN_THIS_PROCESS]
        if children:
            found += side_by_side(*[lambda check=check: _found(check, case) for check in IN_CHILDREN])
    return Certificate(type(case.objective).__name__, tuple(found))


def _check_sendable(objective: Objective) -> None:
    try:
        pickle.loads(packed(objective))
    except Exception as error:  # pickle raises whatever a class does
        raise InputError(
            f"{type(objective).__name__} cannot be sent to another process ({error}): define it in a module, not in a "
            "function or a notebook, or leave these checks out with children=False"
        ) from None


def _found(check: Check, case: Case) -> Finding:
    try:
        return check(case)
    except CannotStart:
        raise
    except Exception as error:  # an objective may raise anything; that is a finding, and the others go on
        name = "bfloat16" if check is alone.half else check.__name__
        lines = str(error).strip().splitlines() or [""]
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Finding(
            name,
            "fails",
            note=f"raised {type(error).__name__}: {lines[0]} ({Path(where.filename).name}:{where.lineno})",
        )
