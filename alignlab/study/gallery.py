"""Gallery: test pictures beside what every arm says about them."""

import base64
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from alignlab.experiment.shading import bounds_of, is_weighed, legend, shaded
from alignlab.study.results import CellResult, Results

MOST = 12
MOST_TOKENS = 160
WIDEST = 320


@dataclass(frozen=True)
class Answer:
    """What one or several arms wrote: words with whether each is out of place, and the item's score.

    Where arms have made pictures, ``picture`` is theirs, a data URI.

    Of an answer that runs on without end only the beginning is shown; ``unshown`` words follow. Where arms weigh the
    reference instead of writing, ``shaded`` are its tokens in the colour of their weights, and there are no words.
    """

    arms: tuple[str, ...]
    words: tuple[tuple[str, bool], ...]
    unshown: int
    score: float
    shaded: Markup | None = None
    picture: str | None = None


@dataclass(frozen=True)
class Card:
    """One picture with its reference and the answers of all arms.

    The picture is a data URI; None: each arm has made its own.
    """

    picture: str | None
    width: int
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Wall:
    """The cards of one evaluator; the prompt stands once where all cards share it.

    Where tokens are coloured by their weights, ``legends`` has what the colours mean, once where all items agree.
    """

    evaluator: str
    prompt: str | None
    cards: tuple[Card, ...]
    legends: tuple[Markup, ...] = ()


def walls(results: Results) -> list[Wall]:
    """One wall for every evaluator whose items have pictures; pictures that divide the arms come first."""
    shown = {arm: cell for arm in results.arms if (cell := results.shown(arm)) is not None}
    evaluators = dict.fromkeys(name for cell in shown.values() for name in cell.evaluators)
    hung = [_wall(evaluator, shown) for evaluator in evaluators]
    return [wall for wall in hung if wall.cards]


def _wall(evaluator: str, shown: dict[str, CellResult]) -> Wall:
    shown = {arm: cell for arm, cell in shown.items() if evaluator in cell.evaluators}
    by_arm = {arm: {item["id"]: item for item in cell.items(evaluator)} for arm, cell in shown.items()}
    pictures: dict[str, dict[str, Path]] = {}  # by item and arm
    for arm, items in by_arm.items():
        for id, item in items.items():
            if item.get("picture") and all(id in other for other in by_arm.values()):
                pictures.setdefault(id, {})[arm] = shown[arm].directory / item["picture"]
    rows = {id: [items[id] for items in by_arm.values()] for id in pictures}
    order = sorted(rows, key=lambda id: -_spread(rows[id]))
    cards = [_card(pictures[id], list(shown), rows[id]) for id in order[:MOST]]
    found = tuple(card for card in cards if card is not None)
    prompts = {card.prompt for card in found}
    bounds = dict.fromkeys(bounds_of(item) for id in order[:MOST] for item in rows[id] if is_weighed(item))
    return Wall(evaluator, prompts.pop() if len(prompts) == 1 else None, found, tuple(map(legend, bounds)))


def _spread(items: Sequence[dict[str, Any]]) -> float:
    scores = [item["score"] for item in items]
    return max(scores) - min(scores)


def _card(pictures: dict[str, Path], arms: Sequence[str], items: Sequence[dict[str, Any]]) -> Card | None:
    embedded = {arm: _embed(picture) for arm, picture in pictures.items()}
    if None in embedded.values():
        return None
    uris = {arm: uri for arm, (uri, _) in embedded.items()}
    one = len(set(uris.values())) == 1
    head = (next(iter(uris.values())) if one else None, max(width for _, width in embedded.values()))
    reference, prompt = str(items[0].get("reference", "")), str(items[0].get("prompt", ""))
    if all(map(is_weighed, items)):
        return Card(*head, prompt, reference, tuple(map(_weighed, arms, items)))
    wrote: dict[tuple[str, float, str | None], list[str]] = {}
    for arm, item in zip(arms, items, strict=True):
        own = None if one else uris.get(arm)
        wrote.setdefault((str(item["output"]), item["score"], own), []).append(arm)
    longest = 12 + 2 * len(reference.split())
    answers = []
    for (output, score, own), same in wrote.items():
        words = _marked(output, reference)
        rest = max(0, len(words) - longest)
        answers.append(Answer(tuple(same), words[:longest], rest, score, picture=own))
    return Card(*head, prompt, reference, tuple(answers))


def _weighed(arm: str, item: dict[str, Any]) -> Answer:
    tokens = item["weights"]
    coloured = shaded(tokens[:MOST_TOKENS], bounds_of(item))
    return Answer((arm,), (), max(0, len(tokens) - MOST_TOKENS), item["score"], coloured)


def _marked(output: str, reference: str) -> tuple[tuple[str, bool], ...]:
    """The output's words, True where the reference, if there is one, has no such word in that place."""
    words = output.split()
    if not reference:
        return tuple((word, False) for word in words)
    matcher = difflib.SequenceMatcher(None, [word.lower() for word in words], reference.lower().split(), autojunk=False)
    right = {block.a + i for block in matcher.get_matching_blocks() for i in range(block.size)}
    return tuple((word, index not in right) for index, word in enumerate(words))


def _embed(path: Path) -> tuple[str, int] | None:
    """A picture as a data URI and its width; large ones smaller; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return None
    buffer = io.BytesIO()
    if max(picture.size) > WIDEST:
        picture.thumbnail((WIDEST, WIDEST))
        picture.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    else:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", picture.width
