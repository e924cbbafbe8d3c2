"""Lexicon: every word of the lab, the synonyms of its visual words, and a second, invented language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from random import Random

from alignlab.data.scenes.language import (
    CAPTION_INSTRUCTION,
    CAPTION_PROMPT,
    IMAGE_INSTRUCTION,
    RELATIONS,
    Word,
)
from alignlab.data.scenes.world import COLORS, SHAPES, SIZES

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}

SYNONYMS = {
    **dict(zip(SHAPES, ("disc", "box", "wedge", "plus", "rhombus"), strict=True)),
    **dict(zip(PLURALS.values(), ("discs", "boxes", "wedges", "pluses", "rhombuses"), strict=True)),
    **dict(zip(COLORS, ("crimson", "emerald", "azure", "golden", "violet", "teal", "dark"), strict=True)),
    **dict(zip(SIZES, ("tiny", "big"), strict=True)),
}

BEFORE = ("in this picture we can see", "here we have", "if i am not mistaken this is")
AFTER = ("which looks rather nice", "as far as one can tell", "on a sunny day", "that my friend likes")
"""Filler, said whatever the picture shows: before a caption, and after the mention of an object."""

MARKS = (".", "?", ":")

_SAID = (*SHAPES, *COLORS, *SIZES, *RELATIONS, *NUMBERS, *PLURALS.values(), "yes no a", *MARKS, CAPTION_PROMPT)
_SAID += (IMAGE_INSTRUCTION, CAPTION_INSTRUCTION, "is there are the what color how many objects")
_SAID += (*SYNONYMS.values(), *BEFORE, *AFTER)
ENGLISH: tuple[str, ...] = tuple(dict.fromkeys(" ".join(_SAID).split()))

ADJECTIVES = frozenset((*COLORS, *SIZES)) | {SYNONYMS[word] for word in (*COLORS, *SIZES)}


@cache
def _dictionary() -> dict[str, str]:
    """English to invented: two syllables a word, drawn once and for all; marks stay."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    made = [first + second for first, second in product(syllables, syllables) if first + second not in ENGLISH]
    words = [word for word in ENGLISH if word not in MARKS]
    return dict(zip(words, Random("invented").sample(made, len(words)), strict=True)) | {mark: mark for mark in MARKS}


def _nouns_first(texts: Sequence[str]) -> list[int]:
    """The order of the words of an English text when adjectives stand behind their noun, the other way round."""
    order: list[int] = []
    waiting: list[int] = []
    for index, text in enumerate(texts):
        if text in ADJECTIVES:
            waiting.append(index)
        else:
            order.append(index)
            if waiting:
                order += reversed(waiting)
                waiting = []
    return order + waiting[::-1]


VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys((*ENGLISH, *(_dictionary()[word] for word in ENGLISH))))
"""Every word the lab can say, in the order in which a tokenizer numbers them."""


@dataclass(frozen=True)
class Voice:
    """How things are said throughout an example.

    Args:
        spoken: Word -> what is said for it, where that is another word.
        nouns_first: Adjectives stand behind their noun.
    """

    spoken: Mapping[str, str]
    nouns_first: bool = False

    def words(self, words: Sequence[Word]) -> list[Word]:
        """A caption as this voice has it, its words keeping what is known of them."""
        texts = [word.text for word in words]
        order = _nouns_first(texts) if self.nouns_first else range(len(texts))
        return [words[index]._replace(text=self.spoken.get(texts[index], texts[index])) for index in order]

    def say(self, text: str) -> str:
        """A text as this voice has it."""
        if not self.spoken:
            return text
        texts = text.split()
        if self.nouns_first:
            texts = [texts[index] for index in _nouns_first(texts)]
        return " ".join([self.spoken.get(text, text) for text in texts])


PLAIN = Voice({})


@cache
def invented() -> Voice:
    """The second language: an order of its own, and no word of the first but the marks."""
    return Voice(_dictionary(), nouns_first=True)


def with_synonyms(voice: Voice, share: float, random: Random) -> Voice:
    """A voice that says a share, in [0, 1], of the visual words by their synonyms."""
    chosen = {word: synonym for word, synonym in SYNONYMS.items() if random.random() < share}
    return replace(voice, spoken={**voice.spoken, **{word: voice.say(synonym) for word, synonym in chosen.items()}})


@cache
def canonical() -> dict[str, str]:
    """Synonym to the word it stands for, in both languages."""
    pairs = {synonym: word for word, synonym in SYNONYMS.items()}
    return pairs | {_dictionary()[synonym]: _dictionary()[word] for synonym, word in pairs.items()}


@cache
def shape_names() -> dict[str, str]:
    """Every word for a shape, synonyms and plurals too, in both languages, to the shape."""
    names = {word: shape for shape in SHAPES for one in (shape, PLURALS[shape]) for word in (one, SYNONYMS[one])}
    return names | {_dictionary()[word]: shape for word, shape in names.items()}
