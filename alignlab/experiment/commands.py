"""commands: another program that trains in alignlab's stead and leaves a model directory."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignlab.errors import InputError

PLACEHOLDERS = {
    "output": "the directory to write",
    "backbone": "the directory to start from",
    "seed": "the seed",
    "steps": "trainer.max_steps",
    "data": "data's path",
}
"""What ``{name}`` in a command stands for."""

SCRIPTS = (".py", ".sh")

NUM_LAST = 20
"""Lines of a failed command's output that are told."""

GRACE_SECONDS = 10


def words_of(command: str, folders: Sequence[str]) -> list[str]:
    """A command's words with its program and script in full, placeholders as they are; no shell ever sees them.

    ``python`` is the running interpreter. A script, and a file of settings, is looked for in the folders, then in the
    current directory; so a config that names one beside it works from anywhere.

    Raises:
        InputError: Quotes do not match, a placeholder is unknown or ``{output}`` missing, or there is no such program
            or script.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"{command!r} cannot be split into words as a shell does: {error}") from None
    known = ", ".join(f"{{{name}}} ({what})" for name, what in PLACEHOLDERS.items())
    named = set(re.findall(r"\{(\w+)\}", command))
    if unknown := sorted(named - set(PLACEHOLDERS)):
        raise InputError(f"there is no placeholder {{{unknown[0]}}}; there is {known}")
    if "output" not in named:
        raise InputError("it must say {output}, the directory that it has to leave the model in")
    found = files_of(words, folders)
    for place, file in found.items():
        words[place] = str(file)
    if not found and (scripts := [word for word in words if word.endswith(SCRIPTS)]):
        where = ", ".join(dict.fromkeys((*folders, str(Path.cwd()))))
        raise InputError(f"there is no file {scripts[0]} (looked for in {where})")
    words[0] = sys.executable if words[0] == "python" else words[0]
    if shutil.which(words[0]) is None:
        what = "may not be executed (chmod +x makes it a program)" if Path(words[0]).is_file() else "is no program"
        raise InputError(f"{words[0]} {what}")
    return words


def files_of(words: Sequence[str], folders: Sequence[str]) -> dict[int, Path]:
    """The words that are files in one of the folders or the current directory, by place: the script, its settings.

    A word without a suffix is none, but for the first.
    """
    found = {}
    for place, word in enumerate(words):
        if (word == "python" or shutil.which(word)) if place == 0 else not Path(word).suffix:
            continue
        files = (Path(folder, word) for folder in (*folders, Path.cwd()))
        if (file := next((file for file in files if file.is_file()), None)) is not None:
            found[place] = Path(os.path.normpath(file))
    return found


def folders_of_files(config: Mapping[str, Any], folders: Sequence[str]) -> list[str]:
    """Those folders, or the current directory, that files of the commands of a resolved config are found from."""
    used = []
    for command in _commands(config):
        words, places = shlex.split(command), (*folders, str(Path.cwd()))
        for place in files_of(words, folders):
            if not Path(words[place]).is_absolute():
                used.append(next(folder for folder in places if Path(folder, words[place]).is_file()))
    return used


def file_sources(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Hashes of the contents of the files that the commands of a resolved config name."""
    found = command_files(config)
    return {
        command: [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] for command, files in found.items()
    }


def command_files(config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files that each command of a resolved config names, without those that name none."""
    return {
        command: list(found.values())
        for command in _commands(config)
        if (found := files_of(shlex.split(command), config["python_path"]))
    }


def _commands(config: Mapping[str, Any]) -> list[str]:
    parts = (config, *config.get("stages", {}).values())
    return [part["command"] for part in parts if part.get("command") is not None]


def data_path(data: Mapping[str, Any]) -> str | None:
    """The setting ``path`` of resolved data."""
    return data["init_args"].get("path")


def train(words: Sequence[str], values: Mapping[str, str], log: Path) -> None:
    """Run a command to its end; what it prints is passed on and kept.

    Args:
        words: As ``words_of`` gives them.
        values: What the placeholders stand for.
        log: Gets its output.

    Raises:
        InputError: It failed.
    """
    from alignlab.experiment.record import writing

    filled = [re.sub(r"\{(\w+)\}", lambda found: values[found[1]], word) for word in words]
    last: deque[str] = deque(maxlen=NUM_LAST)
    with writing(log):
        file = log.open("w", encoding="utf-8")
    with file, _interrupted_by_sigterm():
        process = subprocess.Popen(
            filled,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
                file.flush()
                last.append(line.rstrip())
            process.wait()
        finally:
            _stop(process)
    if process.returncode:
        number = process.returncode
        how = f"exit code {number}" if number > 0 else f"the signal {signal.Signals(-number).name}"
        told = "\n".join(f"  {line}" for line in last if line)
        raise InputError(f"command: {shlex.join(filled)} ended with {how}; all it printed is in {log}\n{told}".strip())


def _stop(process: subprocess.Popen) -> None:
    """End a process that still runs: politely, then not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM stop the command first, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
