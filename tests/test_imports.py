"""Imports point down only, and third parties have one door each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "alignlab"
FLOORS = (
    "errors", "batch", "functional", "modules", "adapters", "backbones", "data", "objectives", "evaluation",
    "experiment", "certificate", "study", "cli",
)  # fmt: skip
DOORS = {
    "wandb": {"experiment/wandb.py"},
    "torchmetrics": {"evaluation"},
    "peft": {"adapters"},
    "datasets": {"data"},
    "pyarrow": {"data"},
    "pandas": {"study/frames.py"},  # half a second that nothing but data frames needs
    "trl": {"data/preferences.py"},
    "transformers": {"backbones", "experiment/run.py"},
    "sentence_transformers": {"data/teachers.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down_and_through_the_doors(file):
    place = file.relative_to(PACKAGE)
    if place == Path("__init__.py"):
        return  # names the public things lazily; see below
    floor = FLOORS.index(place.parts[0].removesuffix(".py"))
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "alignlab" and rest:
            assert FLOORS.index(rest[0]) <= floor, f"{place} imports {name} from above"
        if top in DOORS:
            allowed = str(place) in DOORS[top] or place.parts[0] in DOORS[top]
            assert allowed, f"{place} imports {name}, which belongs to {DOORS[top]}"


def test_importing_alignlab_and_its_help_loads_no_torch():
    code = "import sys, alignlab, alignlab.cli; assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves():
    import alignlab

    for name in alignlab.__all__:
        assert getattr(alignlab, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = alignlab.nothing
