"""Children: processes forked from one that has imported the heavy libraries, so that each starts in an instant."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

Work = Callable[..., Mapping[str, Any]]
"""What a child does: a function of a module, whose result holds tensors, numbers and texts."""


class ChildFailed(RuntimeError):
    """A child raised an error, or ended without a result."""


def preload() -> None:
    """Start the process that children are forked from; it imports while the caller goes on."""
    forkserver.set_forkserver_preload(["alignlab.certificate.preloaded"])
    forkserver.ensure_running()


def run_child(work: Work, *arguments: Any, killed: bool = False) -> Mapping[str, Any]:
    """Run a function in a process of its own.

    Args:
        killed: It is expected to be killed; then there is no result.
    """
    return run_children(work, [arguments], killed=killed)[0]


def run_children(work: Work, arguments: Sequence[Sequence[Any]], *, killed: bool = False) -> list[Mapping[str, Any]]:
    """Run a function in several processes at a time, which may talk to each other.

    Raises:
        ChildFailed: One of them did.
    """
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.pt" for index in range(len(arguments))]
        children = [
            context.Process(target=_child, args=(work, file, *each))
            for file, each in zip(files, arguments, strict=True)
        ]
        try:
            for child in children:
                child.start()
            _join(children)
            results = [torch.load(file, weights_only=True) if file.exists() else {} for file in files]
            if errors := [result["error"] for result in results if "error" in result]:
                raise ChildFailed(errors[0])
            for child in children:
                if child.exitcode != (-signal.SIGKILL if killed else 0):
                    raise ChildFailed(f"a process ended with code {child.exitcode}")
        finally:
            for child in children:
                if child.is_alive():
                    child.kill()
    return results


def side_by_side(*functions: Callable[[], Any]) -> list[Any]:
    """The results of functions that mostly wait for children, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def _join(children: Sequence[Any]) -> None:
    """Wait for all; when one fails, the others wait for it in vain, so they are ended."""
    waiting = list(children)
    while waiting:
        ready = multiprocessing.connection.wait([child.sentinel for child in waiting])
        waiting = [child for child in waiting if child.sentinel not in ready]
        if any(child.exitcode for child in children):
            for child in waiting:
                child.kill()


def _child(work: Work, file: Path, *arguments: Any) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch's C++ warns of what is meant; errors go the other way
    try:
        result = work(*arguments)
    except BaseException as error:  # whatever it is, the parent has to hear of it
        torch.save({"error": f"{type(error).__name__}: {error}"}, file)
        os._exit(1)
    torch.save(dict(result), file)
