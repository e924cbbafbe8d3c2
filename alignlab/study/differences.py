"""differences: what sets one resolved config apart from another, as dotted keys."""

from collections.abc import Collection, Iterator
from typing import Any


def differences(config: dict[str, Any], reference: dict[str, Any], written: Collection[str]) -> dict[str, Any]:
    """Keys of one resolved config whose values are not the reference's; None for keys that only the reference has.

    Where a class was replaced, of its arguments only those that were written are given; where a part is gone, it alone.
    """
    ours, theirs = dict(leaves(config)), dict(leaves(reference))
    changed = {key: value for key, value in ours.items() if key not in theirs or theirs[key] != value}
    changed |= dict.fromkeys(key for key in theirs if key not in ours)
    return {
        key: value for key, value in changed.items() if (key in written and key in ours) or not _below(key, changed)
    }


def _below(key: str, changed: Collection[str]) -> bool:
    """Whether a key belongs to one that changed itself."""
    parts = key.split(".")
    return any(".".join(parts[:count]) in changed for count in range(1, len(parts)))


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; ``class_path`` gives its key the class's name, ``init_args`` is left out of the key."""
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, item in value.items():
        # A stage has what its experiment has.
        if (not key or (key.startswith("stages.") and key.count(".") == 1)) and name in (
            "wandb",
            "seed",
            "python_path",
        ):
            continue
        if name == "class_path":
            yield key, str(item).rpartition(".")[2]
        elif name == "init_args" and not item:
            continue
        else:
            yield from leaves(item, key if name == "init_args" else f"{key}.{name}".lstrip("."))
