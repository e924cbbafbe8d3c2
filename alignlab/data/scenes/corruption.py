"""Corruption: what goes wrong with captions: words that contradict the picture, and words that do not speak of it."""

from collections.abc import Sequence
from random import Random
from typing import Literal

from alignlab.data.scenes.language import Word
from alignlab.data.scenes.lexicon import AFTER, BEFORE
from alignlab.data.scenes.world import (
    ATTRIBUTES,
    COLORS,
    COMPANION,
    FAVORITE_COLOR,
    FAVORITE_SIZE,
    SHAPES,
    Scene,
    may_say,
    pick,
)

NoiseSource = Literal["uniform", "prior"]


def contradict(words: Sequence[Word], scene: Scene, share: float, source: NoiseSource, random: Random) -> list[Word]:
    """Replace words of shape, colour and size by wrong ones.

    Args:
        share: In [0, 1], of these words.
        source: ``uniform``: any other word of the attribute; ``prior``: what is usual in a biased world, and so the
            word stays where that is the truth.
    """
    changed = list(words)
    for index, word in enumerate(words):
        if word.thing is not None and random.random() < share and (others := _others(changed, index, scene, source)):
            changed[index] = Word(pick(others, random), "contradictory", word.thing)
    return changed


def worsen(words: Sequence[Word], scene: Scene, source: NoiseSource, random: Random) -> list[Word]:
    """Make one more word wrong: by the source's word if it has one for any, else by any.

    Where all words are wrong already, one of them becomes wrong in another way.
    """
    for role in ("visual", "contradictory"):
        places = [index for index, word in enumerate(words) if word.thing is not None and word.role == role]
        for each in dict.fromkeys((source, "uniform")):
            options = [(index, others) for index in places if (others := _others(words, index, scene, each))]
            if options:
                index, others = pick(options, random)
                wrong = Word(pick(others, random), "contradictory", words[index].thing)
                return [*words[:index], wrong, *words[index + 1 :]]
    raise RuntimeError(f"no word of {' '.join(word.text for word in words)!r} can be wrong")


def _others(words: Sequence[Word], index: int, scene: Scene, source: NoiseSource) -> list[str]:
    """Wrong words for the one at a place."""
    word = words[index]
    thing = scene.things[word.thing]
    known = others = next(known for known in ATTRIBUTES.values() if word.text in known)
    if source == "prior":
        before = scene.things[word.thing - 1].shape if word.thing else None
        usual = (FAVORITE_COLOR[thing.shape], FAVORITE_SIZE[thing.shape], COMPANION.get(before))
        others = tuple(text for text in others if text in usual)
    told = {each.thing for each in words if each.thing is not None}
    # What a short caption leaves out could make it true again.
    untold = [each[:2] for place, each in enumerate(scene.things) if place not in told]
    shape, color = _look(words, word.thing, thing)
    looks = {
        text: (text if known is SHAPES else shape, text if known is COLORS else color)
        for text in others
        if text != word.text and text not in thing[:3]
    }
    return [text for text, look in looks.items() if may_say(look, scene) and look not in untold]


def _look(words: Sequence[Word], place: int, thing: Sequence[str]) -> tuple[str, str]:
    """Shape and colour of an object as it is told; the true ones where they are not."""
    told = [word.text for word in words if word.thing == place]
    shape = next((text for text in told if text in SHAPES), thing[0])
    color = next((text for text in told if text in COLORS), thing[1])
    return shape, color


def pad(words: Sequence[Word], share: float, random: Random) -> list[Word]:
    """Put filler before a caption and after each mention of an object, each with this probability."""
    padded = _filler(BEFORE, random) if random.random() < share else []
    for word, following in zip(words, (*words[1:], None), strict=True):
        padded.append(word)
        ends = word.thing is not None and (following is None or following.thing != word.thing)
        if ends and random.random() < share:
            padded += _filler(AFTER, random)
    return padded


def _filler(phrases: Sequence[str], random: Random) -> list[Word]:
    return [Word(text, "filler") for text in pick(phrases, random).split()]
