"""Making: an example from its seed, split and index: the scene, what is shown of it and what is said of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from PIL import Image

from alignlab.batch import Box, Content, Example, Foil, Point, Question, Turn
from alignlab.data.base import Split
from alignlab.data.scenes import language
from alignlab.data.scenes.corruption import NoiseSource, contradict, pad, worsen
from alignlab.data.scenes.foils import make_foils
from alignlab.data.scenes.language import Statement, Word
from alignlab.data.scenes.lexicon import PLAIN, Voice, invented, with_synonyms
from alignlab.data.scenes.picture import Rendering, box, center, render
from alignlab.data.scenes.questions import ask, existence, said, wrong_answers
from alignlab.data.scenes.searches import Material, Search, search
from alignlab.data.scenes.world import RUN, Scene, draw, pick, redraw

Task = Literal["caption", "question", "text", "reading"]
UNSEEN = ("text", "reading")
"""Tasks without the picture."""


@dataclass(frozen=True)
class World:
    """What there is to see; the arguments are those of ``Scenes``."""

    seed: int
    num_objects: tuple[int, int]
    image_size: int
    rendering: Rendering
    backgrounds: str | None
    duplicates: float
    co_occurrence: float

    def scene(self, split: Split, index: int) -> tuple[Scene, bool]:
        """The scene of an example, and whether it is a near-duplicate of the first one of its run."""
        bias, key = self.co_occurrence if split == "train" else 0.0, f"{self.seed}/{split}-{index}"
        random = Random(f"{key}/scene")
        if (
            self.duplicates
            and split == "train"
            and index % RUN
            and Random(f"{key}/duplicate").random() < self.duplicates
        ):
            return redraw(self.scene(split, index - index % RUN)[0], random), True
        return draw(split, self.num_objects, random, co_occurrence=bias), False

    def draw(self, scene: Scene) -> Image.Image:
        return render(scene, self.image_size, self.rendering, self.backgrounds)


@dataclass(frozen=True)
class Telling:
    """What is said of it; the arguments are those of ``Scenes``, but for synonyms.

    Args:
        synonyms: Share of visual words said by their synonym: in training, and in the other splits.
    """

    tasks: tuple[Task, ...]
    searches: tuple[Search, ...]
    instructions: bool
    caption_length: Literal["long", "short"]
    caption_noise: float
    noise_source: NoiseSource
    filler: float
    synonyms: tuple[float, float]
    language: Literal["english", "invented", "both"]

    def voice(self, split: Split, key: str) -> Voice:
        synonyms, mixed = self.synonyms[split != "train"], self.language == "both" and split == "train"
        if not synonyms and not mixed:
            return invented() if self.language == "invented" else PLAIN
        random = Random(f"{key}/voice")
        foreign = self.language == "invented" or (mixed and random.random() < 0.5)
        return with_synonyms(invented() if foreign else PLAIN, synonyms, random)

    def asked(self, say: Callable[[str], str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What follows a picture, and what a caption, when it is embedded."""
        if not self.instructions:
            return (), ()
        return (say(language.IMAGE_INSTRUCTION),), (say(language.CAPTION_INSTRUCTION),)

    def captions(self, shown: tuple[str, ...], canonical: str, voice: Voice, split: Split) -> tuple[str, ...]:
        """Right captions in this voice, and where languages mix, the canonical one in the other language."""
        if self.language != "both" or split != "train":
            return shown
        return (*shown, (PLAIN if voice.nouns_first else invented()).say(canonical))

    def statement(self, scene: Scene, split: Split) -> tuple[Statement, Sequence[int]]:
        """What a caption tells, and of which objects."""
        if split == "train" and self.caption_length == "short":
            statement, thing = language.summarize(scene)
            return statement, (thing,)
        return language.describe(scene), range(len(scene.things))

    def caption(self, scene: Scene, split: Split, random: Random) -> list[Word]:
        """A training caption with all that is wrong with it; the other splits hear the canonical one."""
        words = language.spell(*self.statement(scene, split))
        if split != "train":
            return words
        if self.caption_noise:
            words = contradict(words, scene, self.caption_noise, self.noise_source, random)
        return pad(words, self.filler, random) if self.filler else words


@dataclass(frozen=True)
class SceneExamples(Sequence[Example]):
    """The examples of one split, each made when it is asked for."""

    world: World
    telling: Telling
    split: Split
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[each] for each in range(self.size)[index]]
        return self._make(range(self.size)[index])

    def _make(self, index: int) -> Example:
        id = f"{self.split}-{index}"
        scene, is_duplicate = self.world.scene(self.split, index)
        # Sources of chance of their own, so that one thing can be turned without the others changing.
        key = f"{self.world.seed}/{id}"
        chance, noise = Random(f"{key}/language"), Random(f"{key}/noise")
        voice = self.telling.voice(self.split, key)
        say = voice.say

        canonical = language.describe(scene)
        captions = (str(canonical), *language.paraphrases(canonical))
        pairs = make_foils(canonical, scene, chance).items()
        shown = tuple(map(say, captions))
        foils = tuple(
            [
                Foil(shown[0] if true is canonical else say(str(true)), say(str(false)), kind)
                for kind, (true, false) in pairs
            ]
        )
        # The twins of the canonical caption; an added attribute may have another.
        twins = [foil for foil in foils if foil.true == shown[0]]
        questions, exists = ask(scene, chance), existence(scene, chance)
        question, task = pick(questions, chance), pick(self.telling.tasks, chance)
        told = self.telling.caption(scene, self.split, noise)
        aim = pick(captions, noise) if is_duplicate else " ".join([word.text for word in told])
        asked, answer, worse = self._conversation(task, question, told, scene, noise)
        answer, prompt = voice.words(answer), say(asked)
        to_image, to_caption = self.telling.asked(say)
        seen = task not in UNSEEN
        size = self.world.image_size
        image = self.world.draw(scene)
        example = Example(
            id,
            conversation=_turns((image, prompt) if seen else (prompt,), answer),
            query=(image, *to_image),
            target=(say(aim), *to_caption),
            negatives=tuple([(foil.false, *to_caption) for foil in twins]),
            captions=self.telling.captions(shown, captions[0], voice, self.split),
            embedding=language.meaning(scene),
            foils=foils,
            questions=said(questions, say),
            existence=said(exists, say),
            text=_turns((say(f"{captions[0]} {question.text}"),), voice.words(_words(question.answer))),
            rejected=(say(worse),),
            boxes=tuple([Box(say(" ".join(thing[2::-1])), *box(thing, size)) for thing in scene.things]),
            roles=tuple([word.role for word in answer]),
            points=_points(answer, [center(thing, size) if seen else None for thing in scene.things]),
            group=captions[0],
            source="scenes",
            truth={"scene": scene, "negative_kinds": tuple([foil.kind for foil in twins])},
        )
        if self.telling.searches == ("caption",):
            return example
        # A duplicate's caption may be any, also the one that says no sizes.
        least = language.sizeless(canonical) if is_duplicate else self.telling.statement(scene, self.split)[0]
        material = Material(example, scene, least, self.split, say, self.world.draw, self.world.num_objects[1])
        chance = Random(f"{key}/search")
        return search(pick(self.telling.searches, chance), material, chance)

    def _conversation(
        self, task: Task, question: Question, told: list[Word], scene: Scene, random: Random
    ) -> tuple[str, list[Word], str]:
        """Prompt, answer, and a worse answer."""
        if task == "text":
            task = pick(("caption", "question"), random)
        if task == "caption":
            source = self.telling.noise_source if self.split == "train" else "uniform"
            worse = worsen(told, scene, source, random)
            return language.CAPTION_PROMPT, told, " ".join([word.text for word in worse])
        prompt = f"{language.describe(scene)} {question.text}" if task == "reading" else question.text
        return prompt, _words(question.answer), pick(wrong_answers(question, scene), random)


def _words(answer: str) -> list[Word]:
    return [Word(text, "visual") for text in answer.split()]


def _turns(asked: Content, answer: Sequence[Word]) -> tuple[Turn, ...]:
    return Turn("user", asked), Turn("assistant", (" ".join([word.text for word in answer]),))


def _points(words: Sequence[Word], centers: Sequence[Point | None]) -> tuple[Point | None, ...]:
    return tuple([None if word.thing is None else centers[word.thing] for word in words])
