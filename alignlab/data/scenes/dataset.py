"""Scenes: the lab as a data set whose phenomena can be turned up and down."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Unpack, get_args

from PIL import Image

from alignlab.batch import Example
from alignlab.data.base import AlignmentData, Split
from alignlab.data.comparing import agreement, tidy
from alignlab.data.identity import words
from alignlab.data.loading import Loading
from alignlab.data.mentions import Vocabulary
from alignlab.data.scenes.corruption import NoiseSource
from alignlab.data.scenes.language import CAPTION_PROMPT, RELATIONS, describe, summarize
from alignlab.data.scenes.lexicon import PLAIN, canonical, invented, shape_names
from alignlab.data.scenes.making import SceneExamples, Task, Telling, World
from alignlab.data.scenes.photographs import read_backgrounds
from alignlab.data.scenes.picture import Rendering
from alignlab.data.scenes.reading import likeness, read_scene
from alignlab.data.scenes.searches import ANSWERED, Search
from alignlab.data.scenes.world import ATTRIBUTES, MAX_OBJECTS, RUN, Scene
from alignlab.errors import InputError

WORDS = {**ATTRIBUTES, "relation": tuple(relation.split()[0] for relation in RELATIONS)}
"""What a caption tells of objects and their places, by attribute."""

SYNONYMS = {"plain": (0.0, 0.0), "synonyms": (0.5, 0.5), "rare": (0.05, 0.5)}
"""Share of visual words said by their synonym: in training, and in the other splits."""


class Scenes(AlignmentData):
    """Coloured shapes on a grid, with captions, false captions and questions whose truth is known.

    The splits share no arrangement of objects, whatever their seeds, and ``compositional`` shows pairs of shape and
    colour that no other split shows or mentions. What corrupts or biases (``caption_length``, ``caption_noise``,
    ``filler``, ``duplicates``, ``co_occurrence``) does so in training alone: the other splits hold the truth.

    Args:
        seed: Another seed, other scenes.
        num_train: Training examples; a small number is memorised.
        num_val: Validation examples.
        num_test: Test examples.
        num_compositional: Examples of what is held out.
        num_objects: The fewest and the most objects of a scene, within 1 and 6.
        image_size: Height and width of the pictures in pixels, a multiple of 24.
        tasks: What the conversations are about; each example has one of them, one named twice comes twice as often.
            For a language model alone, without the picture: ``text`` is a caption or an answer, ``reading`` an answer
            that stands in a caption.
        searches: What ``query`` looks for; each example has one of them, one named twice comes twice as often.
            ``caption``: the picture its caption; ``picture``: the caption its picture among those of near scenes;
            ``classification``: one object alone its colour or shape; ``question``: picture and question the answer;
            ``grounding``: picture and phrase the part of the picture that shows it. Meant to be held out of training:
            ``count`` and ``relation``, two kinds of questions, and ``size``, a classification. ``negatives`` are the
            other candidates; ``source`` is ``scenes``, or ``scenes/`` and the search where it is not ``caption``. Of
            one ``group`` are searches for the same caption or its picture, for the same word, or for parts that show
            objects of the same size, colour and shape. Searches for a word have no ``embedding``.
        instructions: Pictures and captions are followed by what asks for their embedding, which says nothing else.
        caption_length: ``long`` tells every object; ``short`` tells one, without its size.
        caption_noise: In [0, 1], share of a caption's words for shape, colour and size that are made wrong.
        noise_source: The wrong words are any, or with ``prior`` what is usual in a biased world (see
            ``co_occurrence``): where that is the truth the word stays, so fewer are wrong. Rejected captions have one
            more word made wrong in the same way.
        filler: In [0, 1], how often words that do not speak of the picture precede a caption, or follow an object.
        duplicates: In [0, 1], share of examples that show the scene of the first one in their run of 8, in another
            picture and with any right caption as target. Runs stay together, as those of one source do in a real data
            set, so most batches hold them.
        co_occurrence: In [0, 1], how often objects have their shape's usual colour and size, and the usual companions.
        vocabulary: ``plain``; or visual words said by a synonym half of the time, which with ``rare`` comes only 1 time
            in 20 in training.
        language: English, an invented one, or in training each example in one or the other (the other splits: English).
            Then the last of its ``captions`` is the canonical one in the other language.
        rendering: ``textured`` fills shapes with patterns and hides parts; ``photographs`` draws over photographs.
        backgrounds: The folder of the photographs.
        batch_size: Examples a process and micro-batch.
        num_workers: Processes that make and encode examples; 0 works in the training process.
    """

    supplies: ClassVar[tuple[str, ...]] = (
        *("conversation", "query", "target", "negatives", "captions", "foils", "questions", "existence"),
        *("text", "rejected", "boxes", "roles", "points", "group", "embedding"),
    )
    splits: ClassVar[tuple[Split, ...]] = ("train", "val", "test", "compositional")
    objects = Vocabulary(shape_names())

    def __init__(
        self,
        *,
        seed: int = 0,
        num_train: int = 20000,
        num_val: int = 512,
        num_test: int = 512,
        num_compositional: int = 512,
        num_objects: tuple[int, int] = (1, 3),
        image_size: int = 48,
        tasks: tuple[Task, ...] = ("caption", "question"),
        searches: tuple[Search, ...] = ("caption",),
        instructions: bool = True,
        caption_length: Literal["long", "short"] = "long",
        caption_noise: float = 0.0,
        noise_source: NoiseSource = "uniform",
        filler: float = 0.0,
        duplicates: float = 0.0,
        co_occurrence: float = 0.0,
        vocabulary: Literal["plain", "synonyms", "rare"] = "plain",
        language: Literal["english", "invented", "both"] = "english",
        rendering: Rendering = "flat",
        backgrounds: str | None = None,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(**loading)
        sizes = {"train": num_train, "val": num_val, "test": num_test, "compositional": num_compositional}
        self.sizes: dict[Split, int] = sizes
        _check_sizes(sizes, num_objects, image_size)
        _check_shares({"caption_noise": caption_noise, "filler": filler})
        _check_shares({"duplicates": duplicates, "co_occurrence": co_occurrence})
        _check_choices(tasks, rendering, backgrounds, image_size)
        self.run = RUN if duplicates else 1
        self.world = World(seed, tuple(num_objects), image_size, rendering, backgrounds, duplicates, co_occurrence)
        _check_searches(searches, num_objects[0])
        if set(searches) & set(ANSWERED):
            self.supplies = tuple(field for field in self.supplies if field != "embedding")
        self.telling = Telling(
            *(tuple(tasks), tuple(searches), instructions),
            *(caption_length, caption_noise, noise_source, filler, SYNONYMS[vocabulary], language),
        )
        voice = invented() if language == "invented" else PLAIN
        self.caption_prompt = voice.say(CAPTION_PROMPT)
        self.canonical = {} if vocabulary == "plain" else canonical()
        self.attributes = {kind: tuple(map(voice.say, each)) for kind, each in WORDS.items()}

    def examples(self, split: Split) -> SceneExamples:
        return SceneExamples(self.world, self.telling, split, self.sizes[split])

    def quality(self, example: Example, answer: str) -> float | None:
        """Of an answer to a question whether it is the right one; of a caption how much of the scene's it says.

        That is the share of places at which the words of each attribute are those of the canonical caption; with
        ``caption_length = short`` of that or of the short one, whichever the caption is nearer to. Synonyms count as
        what they stand for.
        """
        asked = words(next(turn.content for turn in reversed(example.conversation) if turn.role == "user"))
        voices = [voice for voice in (PLAIN, invented()) if voice.say(CAPTION_PROMPT) == asked]
        said = tidy(answer, canonical())
        if not voices:
            right = [question.answer for question in example.questions if asked.endswith(question.text)]
            return float(said == tidy(right[0], canonical())) if right else None
        scene, say = example.truth["scene"], voices[0].say
        truths = [describe(scene)] + ([summarize(scene)[0]] if self.telling.caption_length == "short" else [])
        attributes = [set(map(say, each)) for each in WORDS.values()]
        return max(agreement(say(str(truth)), said, attributes) or 0.0 for truth in truths)

    def complexity(self, example: Example) -> float:
        """The number of objects."""
        return float(len(example.truth["scene"].things))

    def read(self, picture: Image.Image) -> str | None:
        """The canonical caption of what is drawn in the flat rendering; None in the others, which are not read."""
        if self.world.rendering != "flat":
            return None
        things = read_scene(picture)
        voice = invented() if self.telling.language == "invented" else PLAIN
        return voice.say(str(describe(Scene(things)))) if things else ""

    def drawn(self, example: Example, picture: Image.Image) -> dict[str, float] | None:
        """How much of the scene's is drawn, wherever it stands, as ``alignlab.data.scenes.reading.likeness`` has it."""
        return likeness(example.truth["scene"], read_scene(picture)) if self.world.rendering == "flat" else None


def _check_sizes(sizes: dict[str, int], num_objects: Sequence[int], image_size: int) -> None:
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


def _check_shares(shares: dict[str, float]) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"Scenes needs {name} in [0, 1], got {share}")


def _check_choices(tasks: Sequence[str], rendering: str, backgrounds: str | None, image_size: int) -> None:
    if isinstance(tasks, str) or not tasks or not set(tasks) <= set(get_args(Task)):
        raise InputError(f"Scenes needs tasks to be one or more of {list(get_args(Task))}, got {tasks!r}")
    if (rendering == "photographs") != (backgrounds is not None):
        raise InputError(
            "Scenes draws over the photographs in the folder `backgrounds` when rendering = photographs; "
            f"got {rendering = }, {backgrounds = }, and needs both or neither"
        )
    if backgrounds is not None:
        read_backgrounds(backgrounds, image_size)


def _check_searches(searches: Sequence[str], fewest: int) -> None:
    if isinstance(searches, str) or not searches or not set(searches) <= set(get_args(Search)):
        raise InputError(f"Scenes needs searches to be one or more of {list(get_args(Search))}, got {searches!r}")
    if "relation" in searches and fewest < 2:
        raise InputError(
            f"Scenes asks for a relation of two objects when searches hold relation; num_objects starts at {fewest}, "
            "and needs to start at 2 at least"
        )
