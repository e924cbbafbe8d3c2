"""State of a cell: what its directory says, and nothing else remembers."""

import json
from pathlib import Path
from typing import Any, Literal

State = Literal["new", "interrupted", "failed", "finished"]

MANIFEST = "study.json"
FAILURE = "failure.json"
LAUNCH = "launch.json"
METRICS = "metrics.json"


def state(directory: Path, digest: str) -> State:
    """How far a cell has come.

    Args:
        directory: The cell's run directory, which need not exist.
        digest: Content hash of the cell's config; metrics of another config do not count.
    """
    metrics = read_json(directory / METRICS)
    if metrics is not None and metrics.get("config_hash") == digest:
        return "finished"
    if (directory / FAILURE).is_file():
        return "failed"
    return "interrupted" if directory.is_dir() and any(directory.iterdir()) else "new"


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None where there is no file or a broken one (a process was killed as it wrote)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return objects


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write all or nothing, so that a kill leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_failure(directory: Path, message: str, traceback: str = "") -> None:
    """Say in a cell's directory why it has no metrics."""
    write_json(directory / FAILURE, {"message": message, "traceback": traceback})
