"""Children: processes forked from one that has imported the heavy libraries, so that each starts in an instant."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from alignlab.errors import InputError

PATIENCE = 120.0
"""Seconds after which children are taken to wait for each other for ever; they need a few."""

Work = Callable[..., Mapping[str, Any]]
"""What a child does: a function of a module, whose result holds tensors, numbers and texts."""


class CannotStart(InputError):
    """The program that asks for children does not let them be started."""


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
            _start(children)
            if not _join(children):
                raise ChildFailed(f"the processes still waited for each other after {PATIENCE:.0f} s")
            results = [torch.load(file, weights_only=True) if file.exists() else {} for file in files]
            if errors := [result["error"] for result in results if "error" in result]:
                raise ChildFailed(errors[0])
            for child in children:
                if child.exitcode != (-signal.SIGKILL if killed else 0):
                    raise ChildFailed(
                        f"a process ended with code {child.exitcode}; where they talk, do all of them call the same "
                        "collectives?"
                    )
        finally:
            for child in children:
                if child.is_alive():
                    child.kill()
    return results


def side_by_side(*functions: Callable[[], Any]) -> list[Any]:
    """The results of functions that mostly wait for children, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def _start(children: Sequence[Any]) -> None:
    try:
        for child in children:
            child.start()
    except OSError as error:
        raise CannotStart(
            f"certify cannot start processes ({type(error).__name__}): a script that calls it needs to do so under "
            'if __name__ == "__main__":, as its processes import it; or leave them out with children=False'
        ) from None


def _join(children: Sequence[Any]) -> bool:
    """Wait for all, and say whether they ended; when one fails, the others wait for it in vain, so they are ended."""
    waiting, end = list(children), time.monotonic() + PATIENCE
    while waiting:
        ready = multiprocessing.connection.wait([child.sentinel for child in waiting], end - time.monotonic())
        if not ready:
            return False
        waiting = [child for child in waiting if child.sentinel not in ready]
        for child in children:
            child.join(0)  # else its exit code is not known yet
        if any(child.exitcode for child in children):
            for child in waiting:
                child.kill()
    return True


def _child(work: Work, file: Path, *arguments: Any) -> None:
    import alignlab.certificate.preloaded  # noqa: F401  (already there, unless the server was started by somebody else)

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch's C++ warns of what is meant; errors go the other way
    try:
        result = dict(work(*arguments))
    except BaseException as error:  # whatever it is, the parent has to hear of it
        result = {"error": f"{type(error).__name__}: {error}"}
    torch.save(result, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)  # a child that is ended while it writes leaves no half of a file
    if "error" in result:
        os._exit(1)
