"""Gallery: test pictures beside what every arm says about them."""

import base64
import difflib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from alignlab.experiment.shading import bounds_of, is_weighed, legend, shaded
from alignlab.study.results import CellResult, Results

MOST = 12
OPEN_CARDS, OPEN_ANSWERS = 6, 4
"""As many are shown before the reader asks for more."""

MOST_TOKENS = 160
WIDEST = 320
WIDE = 2
"""Pictures more than this many times as wide as high are not shown small, beside the words."""


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

    @property
    def folded(self) -> int:
        """How many of the answers, the last ones, are shown only when asked for; one alone never is."""
        return len(self.answers) - OPEN_ANSWERS if len(self.answers) > OPEN_ANSWERS + 1 else 0


@dataclass(frozen=True)
class Wall:
    """The cards of one evaluator; the prompt stands once where all cards share it.

    Where tokens are coloured by their weights, ``legends`` has what the colours mean, once where all items agree.
    Where arms have made pictures of several panels, ``panels`` says what these are, from left to right.
    """

    evaluator: str
    prompt: str | None
    cards: tuple[Card, ...]
    legends: tuple[Markup, ...] = ()
    panels: tuple[str, ...] = ()

    @property
    def folded(self) -> int:
        """How many of the cards, the last ones, are shown only when asked for; a few never are."""
        return len(self.cards) - OPEN_CARDS if len(self.cards) > OPEN_CARDS + 2 else 0


def walls(results: Results) -> list[Wall]:
    """One wall for every evaluator whose items have pictures; pictures that divide the arms come first."""
    shown = {arm: cell for arm in results.arms if (cell := results.shown(arm)) is not None}
    evaluators = dict.fromkeys(name for cell in shown.values() for name in cell.evaluators)
    hung = [_wall(evaluator, shown) for evaluator in evaluators]
    return [wall for wall in hung if wall.cards]


def _wall(evaluator: str, shown: dict[str, CellResult]) -> Wall:
    items: dict[str, dict[str, dict[str, Any]]] = {}  # by what was judged, and by arm
    for arm, cell in shown.items():
        for item in cell.items(evaluator):
            items.setdefault(item["id"], {})[arm] = item
    pictured = {id: by_arm for id, by_arm in items.items() if any(item.get("picture") for item in by_arm.values())}
    # What all arms were judged on comes first.
    order = sorted(pictured, key=lambda id: (-len(pictured[id]), -_spread(pictured[id].values())))[:MOST]
    found = tuple(card for id in order if (card := _card(pictured[id], shown)) is not None)
    prompts = {card.prompt for card in found}
    bounds = dict.fromkeys(bounds_of(item) for id in order for item in pictured[id].values() if is_weighed(item))
    panels = {tuple(item.get("panels", ())) for id in order for item in pictured[id].values()} - {()}
    prompt = prompts.pop() if len(prompts) == 1 else None
    return Wall(evaluator, prompt, found, tuple(map(legend, bounds)), max(panels, key=len, default=()))


def _spread(items: Iterable[dict[str, Any]]) -> float:
    scores = [item["score"] for item in items]
    return max(scores) - min(scores)


def _card(items: Mapping[str, dict[str, Any]], shown: Mapping[str, CellResult]) -> Card | None:
    """One thing that was judged, with its item of each arm; None where a picture cannot be read."""
    files = {arm: shown[arm].directory / item["picture"] for arm, item in items.items() if item.get("picture")}
    embedded = {arm: embed(file) for arm, file in files.items()}
    if None in embedded.values():
        return None
    uris = {arm: uri for arm, (uri, _) in embedded.items()}
    first, (uri, (width, height)) = next(iter(items.values())), next(iter(embedded.values()))
    # Several pictures side by side are made, too, and by arms alike where these are alike.
    made = uris if len(set(uris.values())) > 1 or width > WIDE * height else {}
    reference = str(first.get("reference", ""))
    head = (None if made else uri, width, str(first.get("prompt", "")), reference)
    if all(map(is_weighed, items.values())):
        return Card(*head, tuple(map(_weighed, items, items.values())))
    wrote: dict[tuple[str, float, str | None], list[str]] = {}
    for arm, item in items.items():
        wrote.setdefault((str(item["output"]), item["score"], made.get(arm)), []).append(arm)
    longest = 12 + 2 * len(reference.split())
    answers = []
    for (output, score, own), same in wrote.items():
        words = marked(output, reference)
        rest = max(0, len(words) - longest)
        answers.append(Answer(tuple(same), words[:longest], rest, score, picture=own))
    if len(answers) > OPEN_ANSWERS + 1:
        answers.sort(key=lambda answer: -len(answer.arms))  # what most arms say, then in their order
    return Card(*head, tuple(answers))


def _weighed(arm: str, item: dict[str, Any]) -> Answer:
    tokens = item["weights"]
    coloured = shaded(tokens[:MOST_TOKENS], bounds_of(item))
    return Answer((arm,), (), max(0, len(tokens) - MOST_TOKENS), item["score"], coloured)


def marked(output: str, reference: str) -> tuple[tuple[str, bool], ...]:
    """The output's words, True where the reference, if there is one, has no such word in that place."""
    words = output.split()
    if not reference:
        return tuple((word, False) for word in words)
    matcher = difflib.SequenceMatcher(None, [word.lower() for word in words], reference.lower().split(), autojunk=False)
    right = {block.a + i for block in matcher.get_matching_blocks() for i in range(block.size)}
    return tuple((word, index not in right) for index, word in enumerate(words))


def embed(file: Path | BinaryIO) -> tuple[str, tuple[int, int]] | None:
    """A picture as a data URI and its width and height; large ones smaller; None where it cannot be read."""
    try:
        with Image.open(file) as image:
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
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", picture.size
