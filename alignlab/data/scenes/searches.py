"""Searches: what can be looked for beside a picture's caption, each with its target and its wrong candidates.

The tasks of MMEB (Jiang et al. 2025, https://arxiv.org/abs/2410.05160) in the lab's words: retrieval (``caption``,
``picture``), classification, visual question answering, grounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Literal

from PIL import Image

from alignlab.batch import Content, Example
from alignlab.data.base import Split
from alignlab.data.scenes.language import RELATIONS, Phrase, Statement, holds, meaning
from alignlab.data.scenes.lexicon import NUMBERS
from alignlab.data.scenes.questions import ask, wrong_answers
from alignlab.data.scenes.world import ATTRIBUTES, GRID, Scene, Thing, pick, split_of

Search = Literal["caption", "picture", "classification", "question", "grounding", "count", "relation", "size"]

TRAINED: tuple[Search, ...] = ("caption", "picture", "classification", "question", "grounding")
"""Meant for training, and for evaluation in distribution."""

UNTRAINED: tuple[Search, ...] = ("count", "relation", "size")
"""Meant to be held out of training: for evaluation out of distribution."""

ANSWERED: tuple[Search, ...] = ("classification", "question", "count", "relation", "size")
"""Searches for a word, which has no teacher's embedding."""

LABELS = (("color", "what color is this ?"), ("shape", "what is this ?"))

NUM_NEAR = 3
"""Pictures of near scenes beside the right one."""

TRIES = 16
"""How often as many changes are drawn, before one change more."""


@dataclass(frozen=True)
class Material:
    """An example that searches for its caption, and what other searches are made of.

    Args:
        example: Its query is the picture and its target the caption, each with its instruction, if there are any.
        statement: What the caption says at the least.
        say: Puts a text into the example's language.
        draw: Renders a scene as the example's.
        num_objects: The most objects of a scene.
    """

    example: Example
    scene: Scene
    statement: Statement
    split: Split
    say: Callable[[str], str]
    draw: Callable[[Scene], Image.Image]
    num_objects: int

    def shown(self, image: Image.Image) -> Content:
        """A picture in the form of the example's."""
        return (image, *self.example.query[1:])

    def cell(self, row: int, column: int) -> Image.Image:
        """The picture cut to one cell, made as large as the picture."""
        image = self.example.query[0]
        side = image.width // GRID
        box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
        # Cut first: scaled with a box, a part would hold some of its neighbours.
        return image.crop(box).resize(image.size, Image.Resampling.BILINEAR)

    def answered(self, query: Content, answer: str, wrong: Sequence[str]) -> Example:
        """The example as a search for a word; whoever looks for the same word is of the same group."""
        target, *negatives = [(self.say(word),) for word in (answer, *wrong)]
        return replace(self.example, query=query, target=target, negatives=tuple(negatives), group=answer, embedding=())


def search(name: Search, material: Material, random: Random) -> Example:
    """The example as one that searches for something else.

    Its wrong candidates are wrong, and none is the target. Its ``group`` says whose targets are right for each other's
    queries: for pictures and captions, those of the same canonical caption; for words, those of the same word, whatever
    was asked; for parts of pictures, those of an object of the same size, colour and shape.
    """
    if name == "caption":
        return material.example
    example = SEARCHES[name](material, random)
    return replace(example, source=f"{example.source}/{name}", truth={"scene": material.scene})


def _picture(material: Material, random: Random) -> Example:
    """The caption looks for its picture among those of near scenes."""
    example = material.example
    near = [material.shown(material.draw(scene)) for scene in _near(material, random)]
    return replace(example, query=example.target, target=example.query, negatives=tuple(near))


def _near(material: Material, random: Random) -> list[Scene]:
    """Scenes of the same split of which the caption is false, few changes away."""
    found: list[Scene] = []
    num_changes = 0
    while not found or (num_changes < 3 and len(found) < NUM_NEAR):
        num_changes += 1
        for _ in range(TRIES):
            changed = material.scene
            for _ in range(num_changes):
                changed = _change(changed, random)
            if split_of(changed.things) == material.split and not holds(material.statement, changed):
                found += [changed] if changed not in found else []
    return found[:NUM_NEAR]


def _change(scene: Scene, random: Random) -> Scene:
    """Change one object's shape, colour or size, or move it to an empty cell."""
    things = list(scene.things)
    index = int(random.random() * len(things))
    thing = things.pop(index)
    kind = pick(("shape", "color", "size", "cell"), random)
    if kind == "cell":
        row, column = pick(_empty(scene), random)
        changed = thing._replace(row=row, column=column)
    else:
        others = [word for word in ATTRIBUTES[kind] if word != getattr(thing, kind)]
        changed = thing._replace(**{kind: pick(others, random)})
    return replace(scene, things=tuple(sorted((*things, changed), key=lambda each: each[3:5])))


def _empty(scene: Scene) -> list[tuple[int, int]]:
    """Rows and columns of the cells without an object."""
    taken = {thing[3:5] for thing in scene.things}
    return [cell for cell in product(range(GRID), range(GRID)) if cell not in taken]


def _classification(material: Material, random: Random) -> Example:
    kind, asked = pick(LABELS, random)
    return _label(material, kind, asked, random)


def _size(material: Material, random: Random) -> Example:
    return _label(material, "size", "how large is this ?", random)


def _label(material: Material, kind: str, asked: str, random: Random) -> Example:
    """Of the picture of one object alone."""
    thing = pick(material.scene.things, random)
    answer = getattr(thing, kind)
    wrong = [word for word in ATTRIBUTES[kind] if word != answer]
    return material.answered((material.cell(thing.row, thing.column), material.say(asked)), answer, wrong)


def _question(material: Material, random: Random) -> Example:
    return _asked(material, ("existence", "color"), random)


def _count(material: Material, random: Random) -> Example:
    return _asked(material, ("count",), random)


def _asked(material: Material, kinds: Sequence[str], random: Random) -> Example:
    question = pick([each for each in ask(material.scene, random) if each.kind in kinds], random)
    wrong = wrong_answers(question, material.scene)
    if question.kind == "count":
        wrong = [number for number in NUMBERS[: material.num_objects + 1] if number != question.answer]
    return material.answered((material.example.query[0], material.say(question.text)), question.answer, wrong)


def _relation(material: Material, random: Random) -> Example:
    """Of two objects, or of others that look like them."""
    first, second = (Phrase(thing.shape, thing.color) for thing in random.sample(material.scene.things, 2))
    answer = pick(("yes", "no"), random)
    true = [word for word in RELATIONS if holds(Statement((first, second), (word,)), material.scene)]
    false = [word for word in RELATIONS if word not in true]
    if not false:  # as many twins as that are rare
        answer = "yes"
    relation = pick(true if answer == "yes" else false, random)
    asked = material.say(f"is there a {first} {relation} a {second} ?")
    return material.answered((material.example.query[0], asked), answer, ["no" if answer == "yes" else "yes"])


def _grounding(material: Material, random: Random) -> Example:
    """A phrase looks for the part of the picture that it names, among those of other objects and one empty one."""
    things = material.scene.things
    thing = pick(things, random)
    phrase = pick([each for each in _phrases(thing) if all(o[:3] == thing[:3] for o in things if each.fits(o))], random)
    cells = [(other.row, other.column) for other in things if not phrase.fits(other)]
    cells.append(pick(_empty(material.scene), random))
    asked = material.say(f"summarize the {phrase} in the image in one word :")
    return replace(
        material.example,
        query=(material.example.query[0], asked),
        target=material.shown(material.cell(thing.row, thing.column)),
        negatives=tuple([material.shown(material.cell(*cell)) for cell in cells]),
        group=" ".join(thing[2::-1]),
        embedding=meaning(Scene((thing,))),
    )


def _phrases(thing: Thing) -> list[Phrase]:
    """What an object can be called."""
    return [Phrase(thing.shape, *said) for said in product((None, thing.color), (None, thing.size))]


SEARCHES: dict[Search, Callable[[Material, Random], Example]] = {
    "picture": _picture,
    "classification": _classification,
    "question": _question,
    "grounding": _grounding,
    "count": _count,
    "relation": _relation,
    "size": _size,
}
