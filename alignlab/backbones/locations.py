"""Where a backbone's directory is: shipped with the package, on disk, or on the hub."""

import difflib
from pathlib import Path

from alignlab.errors import InputError

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def packaged() -> tuple[str, ...]:
    """Names of the checkpoints shipped with the package."""
    return tuple(sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir()))


def locate(path: str, *, key: str = "path") -> str:
    """Turn a packaged name, a directory or a hub name (``organisation/name``) into what transformers loads.

    Args:
        key: The setting that it was given in, for messages.

    Raises:
        InputError: Nothing of that name exists.
    """
    if path in packaged():
        return str(CHECKPOINTS / path)
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise InputError(f"backbone.{key}: {path} is a directory without config.json, not a Hugging Face model")
        return path
    if path.count("/") == 1 and not path.startswith((".", "/", "~")):
        return path
    near = difflib.get_close_matches(path, packaged(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"backbone.{key}: there is no directory {path!r}, and the packaged checkpoints are "
        f"{', '.join(packaged())}{hint}"
    )
