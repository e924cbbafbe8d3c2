"""loading: how a model card says that what is exported is loaded and asked."""

from alignlab.adapters.placing import adapters_of
from alignlab.adapters.quantizing import quantized_pattern
from alignlab.backbones import Backbone, DualEncoder, Encoder
from alignlab.backbones.composed import ComposedTowers
from alignlab.backbones.saving import ADAPTER

PLAIN = """\
```python
from transformers import {auto}, AutoProcessor

folder = "."  # this directory
model = {auto}.from_pretrained(folder).eval()
processor = AutoProcessor.from_pretrained(folder)
```
"""

COMPOSED = """\
Its towers come from two models, side by side, which alignlab reads together:

```python
from alignlab.backbones import open_backbone

backbone = open_backbone(".").eval()  # this directory
```
"""

BESIDE = """\
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
The model reads and draws pictures through a visual tokenizer. Plain transformers reads the model
(`AutoModelForImageTextToText.from_pretrained`) and its words, but not its pictures: the projector expects the rows of
`visual_tokenizer/`, of which plain transformers knows nothing. Both are read together by alignlab, or by
`alignlab.load` from the run directory:

```python
from alignlab import Backbone

backbone = Backbone(".").eval()  # this directory
```

`backbone.generate` answers questions about pictures, and `backbone.draw` draws some.
"""

DRAWN = """\
Plain transformers reads the model (`AutoModelForImageTextToText.from_pretrained`), words and pictures. What pictures
are drawn by is in `visual_tokenizer/`, which alignlab reads along, as does `alignlab.load` from the run directory:

```python
from alignlab import Backbone

backbone = Backbone(".").eval()  # this directory; backbone.draw draws pictures
```
"""

UNREAD = """\
Plain transformers reads the model (`AutoModelForImageTextToText.from_pretrained`), words and pictures. The tokenizer in
`visual_tokenizer/` was trained on what its vision tower gives; the model does not read pictures through it. Both are
read together by alignlab, or by `alignlab.load` from the run directory:

```python
from alignlab import Backbone

tokenizer = Backbone(".").eval().visual_tokenizer  # this directory
```
"""

USE = """\
```python
from PIL import Image

picture = Image.new("RGB", (224, 224), "red")  # yours: Image.open(file)
messages = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": {question!r}}}]}}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
inputs = processor(text=prompt, images=picture, add_special_tokens={special}, return_tensors="pt")
inputs = inputs.to(model.device, model.dtype)
answer = model.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0].strip())
```
"""

PARTIAL = "import alignlab.adapters.plora  # which tells peft of branches that only some tokens take\n"
QUANTIZED = "from alignlab.adapters.quantizing import quantize\n"


def how_to_load(backbone: Backbone | DualEncoder, reason: str | None) -> str:
    """How what is exported is loaded: a line or two, and code.

    Args:
        reason: Why its adapters are apart; None: they are not.
    """
    if isinstance(backbone, DualEncoder):
        return COMPOSED if isinstance(backbone.model, ComposedTowers) else PLAIN.format(auto="AutoModel")
    texts = []
    if (tokenizer := backbone.visual_tokenizer) is not None:
        texts = [VISUAL if tokenizer.is_read else UNREAD if tokenizer.writes_codes else DRAWN]
    if reason is not None:
        texts.append(_beside(backbone, reason))
    return "\n".join(texts or [PLAIN.format(auto="AutoModelForImageTextToText")])


def how_to_ask(encoder: Encoder, question: str) -> str:
    """Code that asks plain transformers about a picture, with the tokens that alignlab would give it."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = encoder.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    special = bool(encoder.first_token) and not prompt.startswith(encoder.first_token)
    return USE.format(question=question, special=special)


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
    return BESIDE.format(reason=reason, more=more, lines="\n".join(lines))
