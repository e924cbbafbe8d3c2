"""inspect: a page with training examples as the model will see them; reads the processor, no weights."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

import jinja2
import torch
from PIL import Image
from torch import Tensor

from alignlab.backbones import open_encoder
from alignlab.backbones.batching import Batching
from alignlab.backbones.pictures import open_image
from alignlab.batch import IGNORE, Example, Tokens
from alignlab.data.base import AlignmentData, Split
from alignlab.errors import InputError
from alignlab.experiment.annotations import WIDTH, annotations, places
from alignlab.experiment.config import instantiate
from alignlab.experiment.stages import outlined

NUM_MEASURED = 200
"""Training examples whose lengths are measured."""

BATCH = 20
"""Examples encoded at a time, so that few pictures are in memory."""

NUM_BARS = 24

SEQUENCES = ("conversation", "query", "target", "negatives", "rejected")
"""What of a batch is token sequences."""

EMBEDDED = ("query", "target", "negatives")
"""The sequences whose last token's state is an embedding."""


@dataclass(frozen=True)
class Chip:
    """A token, or a run of image placeholders, as the page shows it.

    Args:
        kind: ``trained`` (the loss reads it as a label), ``image``, ``ignored`` or ``cut``; and ``unknown``, where the
            tokenizer has no word for the text.
    """

    kind: str
    text: str
    hint: str


class Counts(NamedTuple):
    """How many tokens one sequence has: all, trained on, for pictures, unknown to the tokenizer."""

    tokens: int
    trained: int
    image: int
    unknown: int


def inspect(config: dict[str, Any], output: Path, *, num_examples: int = 8, split: Split = "train") -> Path:
    """Write one self-contained HTML page about a resolved config's data.

    Args:
        output: The page, ``*.html``; an older one is replaced.
        num_examples: Examples shown; lengths are measured over more.
    """
    if output.suffix != ".html":
        raise InputError(f"inspect writes a page, so its output must end in .html, got {output}")
    experiment = instantiate(config)
    if experiment.make_objective is None:
        raise InputError("inspect shows what an objective reads, and this config trains by a command")
    where, limit = outlined(config["backbone"], config["stages"]), config["backbone"]["max_length"]
    path, text_tower = where["path"], where["text_tower"]
    encoder, unlimited = (open_encoder(path, text_tower=text_tower, max_length=length) for length in (limit, None))
    examples = _examples(experiment.data, split)
    chosen = Random(config["seed"]).sample(range(len(examples)), min(NUM_MEASURED, len(examples)))
    names = [name for name in experiment.requires if name in SEQUENCES]
    shown = [examples[index] for index in chosen[:num_examples]]
    measured = [examples[index] for index in chosen]
    page = _template().render(
        objective=config["objective"]["class_path"],
        data=config["data"]["class_path"],
        backbone=path,
        limit=limit,
        split=split,
        num_examples=len(examples),
        num_measured=len(measured),
        lengths=[_summary(name, values, limit) for name, values in _counts(measured, unlimited, names).items()],
        width=WIDTH,
        embeds=any(name in EMBEDDED for name in names),
        cards=[
            _card(example, encoder, unlimited, names) | annotations(example, experiment.data.canonical)
            for example in shown
        ],
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def _examples(data: AlignmentData, split: Split) -> Sequence[Example]:
    if split not in data.splits:
        raise InputError(f"{type(data).__name__} has no {split!r} split; it has {', '.join(data.splits)}")
    examples = data.readable(split) if split in ("train", "val") else data.examples(split)
    if not len(examples):
        raise InputError(f"{type(data).__name__}: its {split} split is empty, so there is nothing to show")
    return examples


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("inspect.html.j2")


def _card(example: Example, encoder: Batching, unlimited: Batching, names: Sequence[str]) -> dict[str, Any]:
    batch, whole = encoder.batch([example], names), unlimited.batch([example], names)
    sequences = []
    for name in names:
        tokens, lengths = getattr(batch, name), getattr(whole, name).attention_mask.sum(1).tolist()
        for row, length in enumerate(lengths):
            chips = list(_chips(tokens, row, length, encoder.tokenizer))
            last = sum(chip.kind != "cut" for chip in chips) - 1
            title = name if len(lengths) == 1 else f"{name} {row + 1}"
            sequences.append({"name": title, "chips": chips, "read_at": last if name in EMBEDDED else None})
    pictured = [tokens for tokens in batch if tokens.num_images.any()]
    seen = _processed(pictured[0], encoder) if pictured else []
    return {
        "example": example,
        "figures": list(_figures(example, seen)),
        "sequences": sequences,
    }


def _figures(example: Example, seen: Sequence[Image.Image]) -> Iterator[dict[str, Any]]:
    """The pictures as processed and, where that changed their size, before, which is what boxes are shares of."""
    before = [open_image(image) for image in example.images]
    same = [image.size for image in seen] == [image.size for image in before]
    titled = [("as the model sees it", image) for image in seen] + [("before", image) for image in before if not same]
    for index, (title, image) in enumerate(titled):
        height = WIDTH * image.height / image.width
        drawn = places(example, height) if index == (0 if same else len(seen)) else []
        side = 2 * WIDTH if drawn else 256
        shown = _embedded(image, None if title != "before" else side)
        yield {**shown, "title": title, "large": title != "before" or drawn, "height": height, "places": drawn}


def _chips(tokens: Tokens, index: int, full_length: int, tokenizer: Any) -> Iterator[Chip]:
    real = tokens.attention_mask[index].bool()
    columns = (tokens.input_ids, tokens.image_mask, tokens.labels)
    ids, pictures, labels = (column[index][real].tolist() for column in columns)
    position = 0
    for is_image, run in groupby(zip(ids, pictures, labels, strict=True), key=lambda token: token[1]):
        run = list(run)
        if is_image:
            yield Chip("image", f"image × {len(run)}", f"positions {position} to {position + len(run) - 1}")
        else:
            for offset, (id, _, label) in enumerate(run):
                kind = "ignored" if label == IGNORE else "trained"
                kind += " unknown" if id == tokenizer.unk_token_id else ""
                yield Chip(kind, _shown(id, tokenizer), f"position {position + offset}, id {id}")
        position += len(run)
    if full_length > position:
        yield Chip("cut", f"{full_length - position} cut", f"max_length ends here; the whole has {full_length} tokens")


def _shown(id: int, tokenizer: Any) -> str:
    """A token's text, its spaces and line breaks visible; its raw form where it is part of a character only."""
    raw, text = tokenizer.convert_ids_to_tokens(id), tokenizer.decode([id])
    if "\ufffd" in text or not text:
        return raw
    if raw.startswith(("Ġ", "▁")) and not text.startswith(" "):
        text = f" {text}"
    return text.replace("\n", "↵").replace(" ", "·")


def _processed(tokens: Tokens, encoder: Batching) -> list[Image.Image]:
    """The pictures as the processor returned them, made visible; none where it cuts them into patches."""
    pixels = tokens.vision.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.dim() < 4 or pixels.shape[-3] != 3:
        return []
    processor = encoder.image_processor
    pixels = pixels.reshape(-1, *pixels.shape[-3:]).float()
    if processor.do_normalize:
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std))
        pixels = pixels * std + mean
    if processor.do_rescale:
        pixels = pixels / processor.rescale_factor
    return [Image.fromarray(image) for image in pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()]


def _embedded(image: Image.Image, side: int | None = None) -> dict[str, Any]:
    """A picture as a data address with its size in words: exact where it is small, else as JPEG."""
    small = image.copy()
    if side is not None:
        small.thumbnail((side, side))
    form = "PNG" if max(small.size) <= 128 else "JPEG"
    buffer = io.BytesIO()
    small.save(buffer, form, quality=90)
    address = f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"address": address, "size": f"{image.width}\u00a0×\u00a0{image.height}", "tiny": max(image.size) <= 128}


def _counts(examples: Sequence[Example], encoder: Batching, names: Sequence[str]) -> dict[str, list[Counts]]:
    found: dict[str, list[Counts]] = {name: [] for name in names}
    for start in range(0, len(examples), BATCH):
        batch = encoder.batch(examples[start : start + BATCH], names)
        for name in names:
            tokens = getattr(batch, name)
            unknown = tokens.input_ids == (
                -1 if encoder.tokenizer.unk_token_id is None else encoder.tokenizer.unk_token_id
            )
            masks = (tokens.attention_mask, tokens.labels != IGNORE, tokens.image_mask, unknown & ~tokens.image_mask)
            real = tokens.attention_mask.bool()
            found[name] += map(Counts, *((mask.bool() & real).sum(1).tolist() for mask in masks))
    return found


def _summary(name: str, rows: list[Counts], limit: int | None) -> dict[str, Any]:
    lengths = [row.tokens for row in rows]
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // NUM_BARS)
    starts = range(low, high + 1, width)
    counts = [sum(start <= length < start + width for length in lengths) for start in starts]
    return {
        "name": name,
        "rows": len(rows),
        "min": low,
        "median": round(median(lengths)),
        "max": high,
        "mean": round(sum(lengths) / len(rows), 1),
        "trained": round(sum(row.trained for row in rows) / len(rows), 1),
        "image": round(sum(row.image for row in rows) / len(rows), 1),
        "unknown": sum(row.unknown for row in rows),
        "text": sum(row.tokens - row.image for row in rows),
        "truncated": sum(limit is not None and length > limit for length in lengths),
        "bars": [
            {
                "label": str(start) if width == 1 else f"{start} to {min(start + width - 1, high)}",
                "count": count,
                "height": 100 * count / max(counts),
                "cut": limit is not None and start + width - 1 > limit,
            }
            for start, count in zip(starts, counts, strict=True)
        ],
    }
