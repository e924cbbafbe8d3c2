"""Scenes: the lab's world as a data set, made on access and the same for the same (seed, split, index)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, get_args

from alignlab.batch import Content, Example, Turn
from alignlab.data.base import AlignmentData, Split
from alignlab.data.scenes import language
from alignlab.data.scenes.picture import render
from alignlab.data.scenes.questions import ask
from alignlab.data.scenes.world import COLORS, MAX_OBJECTS, SHAPES, SIZES, draw, pick
from alignlab.errors import InputError

Task = Literal["caption", "question", "text"]


class Scenes(AlignmentData):
    """Coloured shapes on a grid, with captions, false captions and questions whose truth is known.

    The splits share no arrangement of objects, whatever their seeds.

    Args:
        seed: Another seed, other scenes.
        num_train: Training examples.
        num_val: Validation examples.
        num_test: Test examples.
        num_objects: The fewest and the most objects of a scene, within 1 and 4.
        image_size: Height and width of the pictures in pixels, a multiple of 24.
        tasks: What the conversations are about; each example has one of them. ``text`` is a caption or an answer
            without the picture, for training a language model alone.
        batch_size: Examples a process and micro-batch.
        num_workers: Processes that make and encode examples; 0 works in the training process.
    """

    supplies: ClassVar[tuple[str, ...]] = ("conversation", "query", "target", "negatives", "captions", "questions")

    attributes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "shape": SHAPES,
        "color": COLORS,
        "size": SIZES,
        "relation": tuple(relation.split()[0] for relation in language.RELATIONS),
    }

    def __init__(
        self,
        *,
        seed: int = 0,
        num_train: int = 20000,
        num_val: int = 512,
        num_test: int = 512,
        num_objects: tuple[int, int] = (1, 3),
        image_size: int = 48,
        tasks: tuple[Task, ...] = ("caption", "question"),
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.sizes: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        _check(self.sizes, num_objects, image_size, tasks)
        self.seed = seed
        self.num_objects = tuple(num_objects)
        self.image_size = image_size
        self.tasks = tuple(tasks)

    def examples(self, split: Split) -> "SceneExamples":
        return SceneExamples(self.seed, split, self.sizes[split], self.num_objects, self.image_size, self.tasks)


def _check(sizes: dict[Split, int], num_objects: Sequence[int], image_size: int, tasks: Sequence[str]) -> None:
    if min(sizes.values()) < 1:
        given = ", ".join(f"num_{split} = {size}" for split, size in sizes.items())
        raise InputError(f"Scenes needs at least one example in each split, got {given}")
    if len(num_objects) != 2 or not 1 <= num_objects[0] <= num_objects[1] <= MAX_OBJECTS:
        raise InputError(
            f"Scenes needs num_objects = [fewest, most] with 1 <= fewest <= most <= {MAX_OBJECTS}, "
            f"got {list(num_objects)}"
        )
    if image_size < 24 or image_size % 24:
        near = max(round(image_size / 24), 1) * 24
        raise InputError(f"Scenes needs image_size to be a multiple of 24, got {image_size}; {near} would do")
    if isinstance(tasks, str) or not tasks or not set(tasks) <= set(get_args(Task)):
        raise InputError(f"Scenes needs tasks to be one or more of {list(get_args(Task))}, got {tasks!r}")


@dataclass(frozen=True)
class SceneExamples(Sequence[Example]):
    """The examples of one split, each made when it is asked for."""

    seed: int
    split: Split
    size: int
    num_objects: tuple[int, int]
    image_size: int
    tasks: tuple[Task, ...]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[each] for each in range(self.size)[index]]
        return self._make(range(self.size)[index])

    def _make(self, index: int) -> Example:
        id = f"{self.split}-{index}"
        # Two sources of chance: what is said about a scene can change without the scenes changing.
        scene = draw(self.split, self.num_objects, Random(f"{self.seed}/{id}/scene"))
        random = Random(f"{self.seed}/{id}/language")
        image = render(scene, self.image_size)
        statement = language.describe(scene)
        captions = (str(statement), *map(str, language.paraphrases(statement)))
        negatives = language.negatives(statement, scene, random)
        questions = ask(scene, random)
        question = pick(questions, random)
        task = pick(self.tasks, random)
        spoken = pick(("caption", "question"), random) if task == "text" else task
        caption = (language.CAPTION_PROMPT, captions[0])
        prompt, answer = caption if spoken == "caption" else (question.text, question.answer)
        asked = (prompt,) if task == "text" else (image, prompt)
        return Example(
            id,
            conversation=(Turn("user", asked), Turn("assistant", (answer,))),
            query=(image, language.IMAGE_INSTRUCTION),
            target=_target(captions[0]),
            negatives=tuple(_target(str(negative)) for negative in negatives.values()),
            captions=captions,
            questions=questions,
            source="scenes",
            truth={"scene": scene, "negative_kinds": tuple(negatives)},
        )


def _target(caption: str) -> Content:
    return (caption, language.CAPTION_INSTRUCTION)
