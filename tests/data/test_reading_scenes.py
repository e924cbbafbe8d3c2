"""Pictures of the lab, read back: sharp, blurred, noisy and faint ones, and how like a scene they are."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from alignlab.batch import Example
from alignlab.data import AlignmentData, Scenes
from alignlab.data.scenes.picture import render
from alignlab.data.scenes.reading import likeness, read_scene
from alignlab.data.scenes.world import COLORS, GRID, SHAPES, SIZES, Scene, Thing, draw


def scenes(count: int) -> list[Scene]:
    return [draw("val", (1, 6), Random(seed)) for seed in range(count)]


def told(things) -> list[tuple]:
    """Without the shifts, which are read in whole pixels."""
    return [thing[:5] for thing in things]


def share_read(change, count: int = 60) -> float:
    """How many of the lab's pictures are read as their scenes, after a change."""
    pairs = [(scene, render(scene, 48)) for scene in scenes(count)]
    return np.mean([told(read_scene(change(picture))) == told(scene.things) for scene, picture in pairs])


def noisy(picture: Image.Image, deviation: float) -> Image.Image:
    levels = np.asarray(picture) + np.random.default_rng(0).normal(0, deviation, (48, 48, 3))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("image_size", "count"), [(24, 100), (48, 500), (72, 100), (240, 40)])
def test_what_is_drawn_is_read(image_size, count):
    pairs = [(scene, read_scene(render(scene, image_size))) for scene in scenes(count)]
    assert all(told(things) == told(scene.things) for scene, things in pairs)


def test_every_object_is_read_in_every_cell_with_its_place():
    random = Random(0)
    for shape in SHAPES:
        for color in COLORS:
            for size in SIZES:
                for cell in range(GRID**2):
                    shift = (2 * random.random() - 1, 2 * random.random() - 1)
                    thing = Thing(shape, color, size, cell // GRID, cell % GRID, shift)
                    (found,) = read_scene(render(Scene((thing,), noise=cell), 48))
                    assert found[:5] == thing[:5]
                    # A small object has two pixels of room, a large one has one.
                    room = 0.25 if size == "small" else 0.5
                    assert found.shift == pytest.approx(shift, abs=room + 1e-6)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda picture: picture.filter(ImageFilter.GaussianBlur(1)), 1.0),
        (lambda picture: picture.filter(ImageFilter.GaussianBlur(1.5)), 1.0),
        (lambda picture: noisy(picture, 40), 1.0),
        (lambda picture: noisy(picture.filter(ImageFilter.GaussianBlur(1)), 20), 0.95),
        (lambda picture: Image.blend(picture, Image.new("RGB", (48, 48), "white"), 0.25), 1.0),
        (lambda picture: Image.blend(picture, Image.new("RGB", (48, 48), "navy"), 0.2), 1.0),
        (lambda picture: picture.resize((16, 16), Image.Resampling.BOX).resize((48, 48)), 0.7),
    ],
    ids=["blur", "more blur", "noise", "blur and noise", "pale", "tinted", "coarse"],
)
def test_poor_pictures_are_read_too(change, least):
    assert share_read(change) >= least


def test_of_worse_pictures_less_is_read_and_colours_longest():
    blurs = [share_read(lambda picture, r=r: picture.filter(ImageFilter.GaussianBlur(r))) for r in (1, 2.25, 6)]
    assert blurs[0] > blurs[1] > blurs[2]
    right = total = 0
    for scene in scenes(60):
        found = read_scene(render(scene, 48).filter(ImageFilter.GaussianBlur(2.25)))
        colors = [Counter(thing.color for thing in things) for things in (scene.things, found)]
        right, total = right + (colors[0] & colors[1]).total(), total + colors[0].total()
    assert right / total > 0.98


@pytest.mark.parametrize("color", ["white", "black", "red", (232, 230, 226)])
def test_a_uniform_picture_shows_nothing(color):
    assert read_scene(Image.new("RGB", (48, 48), color)) == ()
    assert read_scene(noisy(Image.new("RGB", (48, 48), color), 8)) == ()
    assert read_scene(render(Scene((), noise=3), 48)) == ()


def test_likeness_is_an_overlap_of_words_and_the_relations_that_hold():
    # "a small red circle left of a large blue square above a large blue cross ."
    circle, square = Thing("circle", "red", "small", 0, 0), Thing("square", "blue", "large", 0, 2)
    scene = Scene((circle, square, Thing("cross", "blue", "large", 2, 2)))
    right = dict.fromkeys(("exact", "shape", "color", "size", "count", "relations"), 1.0)
    assert likeness(scene, scene.things) == right
    moved = tuple(thing._replace(row=2 - thing.row) for thing in scene.things)
    # Upside down: left of holds, above does not; the objects are right.
    assert likeness(scene, moved) == right | {"relations": 0.5}
    # Two red small circles and no more: of three words each, one circle, one red, one small.
    two = (circle, circle._replace(row=1, column=1))
    third = pytest.approx(1 / 3)
    expected = {"exact": 0.0, "shape": third, "color": third, "size": third, "count": 0.0, "relations": 0.0}
    assert likeness(scene, two) == expected
    # An object too many: three of four, and both relations hold still.
    more = (*scene.things, two[1])
    assert likeness(scene, more) == expected | dict.fromkeys(("shape", "color", "size"), 0.75) | {"relations": 1.0}
    assert set(likeness(scene, ()).values()) == {0.0}


def test_one_object_has_no_relations():
    assert "relations" not in likeness(Scene((Thing("circle", "red", "small", 0, 0),)), ())


def test_scenes_judge_pictures_in_the_flat_rendering_alone():
    data = Scenes(num_test=8, num_objects=(1, 3))
    for example in data.examples("test"):
        (picture,) = example.images
        assert set(data.drawn(example, picture).values()) == {1.0}
        assert data.read(picture) == example.captions[0]
        assert data.complexity(example) == len(example.boxes)
    assert data.read(Image.new("RGB", (48, 48))) == ""
    invented = Scenes(num_test=1, language="invented")
    (example,) = invented.examples("test")
    assert invented.read(example.images[0]) == example.captions[0]
    textured = Scenes(num_test=1, rendering="textured")
    (example,) = textured.examples("test")
    assert textured.drawn(example, example.images[0]) is textured.read(example.images[0]) is None


def test_data_know_nothing_of_pictures_unless_they_say_so():
    class Own(AlignmentData):
        def examples(self, split):
            return [Example("a")]

    picture = Image.new("RGB", (8, 8))
    assert Own().complexity(Example("a")) is Own().read(picture) is Own().drawn(Example("a"), picture) is None
