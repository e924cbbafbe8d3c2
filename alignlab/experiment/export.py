"""export: a run's backbone as a directory that plain transformers and peft load."""

import os
import shutil
import tempfile
from pathlib import Path

from alignlab.adapters.placing import adapters_of
from alignlab.adapters.quantizing import quantized_pattern
from alignlab.backbones import Backbone, DualEncoder, open_backbone
from alignlab.backbones.plain import write_plain
from alignlab.backbones.saving import ADAPTER, Base, is_adapted
from alignlab.errors import InputError
from alignlab.experiment import record
from alignlab.experiment.run import load
from alignlab.modules.parted import Dtype

README = """\
# A model, and its adapters beside it

The adapters are not merged: {reason}. They are put onto the model in front of them so:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from peft import PeftModel
{more}
folder = "."  # this directory
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
{lines}
model.eval()
```
"""

VISUAL = """\
# A model that reads and draws pictures through a visual tokenizer

Plain transformers reads the model (`AutoModelForImageTextToText.from_pretrained`) and its words, but not its pictures:
the projector expects the rows of `visual_tokenizer/`, of which plain transformers knows nothing. Both are read
together by alignlab, or by `alignlab.load` from the run directory:

```python
from alignlab import Backbone

backbone = Backbone(".").eval()  # this directory
```

`backbone.generate` answers questions about pictures, and `backbone.draw` draws some.
"""

DRAWN = """\
# A model that draws pictures

Plain transformers reads the model (`AutoModelForImageTextToText.from_pretrained`), words and pictures. What pictures
are drawn by is in `visual_tokenizer/`, which alignlab reads along, as does `alignlab.load` from the run directory:

```python
from alignlab import Backbone

backbone = Backbone(".").eval()  # this directory; backbone.draw draws pictures
```
"""

UNREAD = """\
# A model, and a visual tokenizer beside it

Plain transformers reads the model (`AutoModelForImageTextToText.from_pretrained`), words and pictures. The tokenizer in
`visual_tokenizer/` was trained on what its vision tower gives; the model does not read pictures through it. Both are
read together by alignlab, or by `alignlab.load` from the run directory:

```python
from alignlab import Backbone

tokenizer = Backbone(".").eval().visual_tokenizer  # this directory
```
"""

PARTIAL = "import alignlab.adapters.plora  # which tells peft of branches that only some tokens take\n"
QUANTIZED = "from alignlab.adapters.quantizing import quantize\n"


def export(source: Path, output: Path, *, dtype: Dtype | None = None) -> str | None:
    """Write a backbone, with its adapters merged where weights can hold them, and beside it where they cannot.

    What is merged computes the same to the precision of the weights' type: in float32 all but the last digits, in
    bfloat16 three digits.

    Args:
        source: A run directory, or a backbone's.
        output: A directory that is empty, or not there; it appears whole or not at all.
        dtype: Of the weights; None: as they are.

    Returns:
        Why the adapters are apart, in ``output/adapter``; None: there are plain weights alone.

    Raises:
        InputError: There is no such backbone, or something is in ``output``, or that lies in ``source``.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already, and no empty directory; nothing was written")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise InputError(
            f"{output} lies in {source}, which would be exported into itself; choose a directory elsewhere"
        )
    backbone = load(source) if (source / "config.yaml").is_file() else _opened(source)
    where = output.absolute()
    with record.writing(where):
        where.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{where.name}.", suffix=".partial", dir=where.parent))
        try:
            reason = write_plain(backbone, partial, dtype=dtype, place=where)
            if told := readme(backbone, reason):
                (partial / "README.md").write_text(told)
            partial.chmod(0o755)  # as other directories, not as temporary ones
            os.replace(partial, where)  # over an empty directory, too
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return reason


def _opened(source: Path) -> Backbone | DualEncoder:
    """A backbone's directory, in the type that its adapters were trained beside if it has some."""
    dtype = (Base.read(source).dtype if is_adapted(source) else None) or "float32"
    return open_backbone(str(source), dtype=dtype).eval()


def readme(backbone: Backbone | DualEncoder, reason: str | None) -> str:
    """How what is exported is loaded, where that is not plain."""
    texts = []
    if isinstance(backbone, Backbone) and (tokenizer := backbone.visual_tokenizer) is not None:
        texts = [VISUAL if tokenizer.is_read else UNREAD if tokenizer.writes_codes else DRAWN]
    return "\n".join(texts if reason is None else [*texts, _beside(backbone, reason)])


def _beside(backbone: Backbone, reason: str) -> str:
    """How the adapters beside a model are put onto it."""
    configs = adapters_of(backbone.model)
    more, lines = "", []
    if any(config.peft_type == "PLORA" for config in configs.values()):
        more += PARTIAL
    if (quantized := quantized_pattern(backbone.model)) is not None:
        more += QUANTIZED
        lines.append(f'quantize(model, r"{quantized}")  # as in training; without it the model is another one')
    first, *others = configs
    at = {name: f'folder + "/{ADAPTER}"' if not others else f'folder + "/{ADAPTER}/{name}"' for name in configs}
    lines.append(f'model = PeftModel.from_pretrained(model, {at[first]}, adapter_name="{first}")')
    lines += [f'model.load_adapter({at[name]}, adapter_name="{name}")' for name in others]
    if others:
        lines.append(f"model.base_model.set_adapter({list(configs)!r})  # all of them at once")
    return README.format(reason=reason, more=more, lines="\n".join(lines))
