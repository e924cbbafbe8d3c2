"""Pictures of the lab: where objects are, and that they stay what they are in every rendering."""

import colorsys
import re
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import skimage
from PIL import Image

from alignlab.data.scenes import photographs
from alignlab.data.scenes.photographs import read_backgrounds
from alignlab.data.scenes.picture import NOISE, RGB, box, center, render
from alignlab.data.scenes.textures import BAR, TEXTURES
from alignlab.data.scenes.world import COLORS, SHAPES, SIZES, Scene, Thing, draw
from alignlab.errors import InputError

LOOKS = [(shape, color, size) for shape in SHAPES for color in COLORS for size in SIZES]
SCENES = [draw("train", (1, 6), Random(seed)) for seed in range(1000)]
RENDERINGS = ("flat", "textured", "photographs")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A folder of real photographs, as scikit-image ships them: in colour and in grey, of several sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "grass.png"):
        source = Path(skimage.__file__).parent / "data" / name
        (folder / name).write_bytes(source.read_bytes())
    return str(folder)


def pixels(scene, image_size, rendering="flat", backgrounds=None) -> np.ndarray:
    return np.asarray(render(scene, image_size, rendering, backgrounds), int)


def area(thing: Thing, image_size: int, whole: bool = False) -> np.ndarray:
    """Where a flat picture with the object differs from one without, or has the object's plain colour. (H, W) bool"""
    picture = pixels(Scene((thing,)), image_size)
    if whole:
        return abs(picture - RGB[thing.color]).max(axis=2) <= NOISE
    return (picture != pixels(Scene(()), image_size)).any(axis=2)


def nearest(color: np.ndarray) -> str:
    return min(RGB, key=lambda name: abs(color - RGB[name]).sum())


def named(color: np.ndarray) -> str:
    """Black if dark, else the name with the nearest hue, in which a paler or darker tone of a colour is that colour."""
    if color.max() < 110:
        return "black"
    hue = {name: colorsys.rgb_to_hsv(*level)[0] for name, level in RGB.items() if name != "black"}
    own = colorsys.rgb_to_hsv(*color)[0]
    return min(hue, key=lambda name: abs((hue[name] - own + 0.5) % 1 - 0.5))


def test_a_flat_picture_never_changes():
    things = (Thing("circle", "red", "large", row=0, column=0), Thing("square", "blue", "small", row=2, column=2))
    assert zlib.crc32(pixels(Scene(things, noise=7), 48).astype(np.uint8).tobytes()) == 2564028409


@pytest.mark.parametrize("image_size", [24, 48, 240])
def test_the_center_of_an_object_has_its_color(image_size):
    for scene in SCENES if image_size < 240 else SCENES[:100]:
        picture = pixels(scene, image_size)
        for thing in scene.things:
            x, y = center(thing, image_size)
            color = picture[int(y * image_size), int(x * image_size)]
            assert nearest(color) == thing.color, thing
            assert image_size == 24 or abs(color - RGB[thing.color]).max() <= NOISE, thing


@pytest.mark.parametrize("image_size", [24, 48, 240])
def test_a_box_holds_an_object_and_nothing_more(image_size):
    random = Random(image_size)
    for shape, color, size in LOOKS:
        shift = (2 * random.random() - 1, 2 * random.random() - 1)
        thing = Thing(shape, color, size, int(random.random() * 3), int(random.random() * 3), shift)
        rows, columns = area(thing, image_size).nonzero()
        tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert box(thing, image_size) == pytest.approx([edge / image_size for edge in tight])
        x, y = center(thing, image_size)
        assert (x, y) == pytest.approx(
            ((columns.mean() + 0.5) / image_size, (rows.mean() + 0.5) / image_size), abs=0.02
        )


def test_nothing_is_drawn_outside_the_boxes():
    for scene in SCENES:
        drawn = (pixels(scene, 48) != pixels(Scene((), noise=scene.noise), 48)).any(axis=2)
        for thing in scene.things:
            left, top, right, bottom = (round(edge * 48) for edge in box(thing, 48))
            assert drawn[top:bottom, left:right].any()
            drawn[top:bottom, left:right] = False
        assert not drawn.any()


@pytest.mark.parametrize("image_size", [48, 240])
@pytest.mark.parametrize("rendering", RENDERINGS)
def test_an_object_keeps_its_color_in_every_rendering(rendering, image_size, shipped):
    for index, (shape, color, size) in enumerate(LOOKS):
        thing = Thing(shape, color, size, row=1, column=1)
        for noise in range(3):
            picture = pixels(Scene((thing,), noise=10 * index + noise), image_size, rendering, shipped)
            # Of the pixels wholly inside, and their median: a bar hides less than half of them.
            shown = np.median(picture[area(thing, image_size, whole=True)], axis=0)
            assert named(shown) == color, (thing, noise, shown)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_picture_is_the_same_for_the_same_noise_alone(rendering, shipped):
    things = SCENES[0].things
    first, again, other = (pixels(Scene(things, noise), 48, rendering, shipped) for noise in (1, 1, 2))
    assert (first == again).all()
    assert abs(first - other).mean() > 1


def test_an_object_has_one_of_several_textures():
    thing = Thing("square", "green", "large", row=1, column=1)
    found: list[np.ndarray] = []
    for noise in range(60):
        levels = pixels(Scene((thing,), noise), 240, "textured")[area(thing, 240)][:, 1]
        assert levels.std() > 8  # pixel noise alone: 4.6
        bright = levels > levels.mean()
        # Bars differ, too, but hide less than a quarter; two textures agree on about half.
        if not any((bright == other).mean() > 0.75 for other in found):
            found.append(bright)
    assert len(found) == len(TEXTURES) == 4


def test_a_bar_hides_an_eighth_to_a_quarter_of_an_object():
    grey = np.array(BAR) + NOISE  # light and noise included
    for shape, color, size in LOOKS:
        thing = Thing(shape, color, size, row=1, column=1)
        inside = area(thing, 240)
        for noise in range(4):
            shown = pixels(Scene((thing,), noise), 240, "textured")[inside]
            hidden = (abs(shown - grey).max(axis=1) <= NOISE).mean()
            assert 0.08 < hidden < 0.25, (thing, noise, hidden)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_no_level_wraps_around(rendering, tmp_path):
    """Light and noise are added in 8 bits: a level too bright would come out black."""
    Image.new("L", (60, 60), 255).save(tmp_path / "white.png")
    for noise in range(40):
        things = tuple(Thing(shape, "yellow", "large", row=1, column=column) for column, shape in enumerate(SHAPES[:3]))
        picture = pixels(Scene(things, noise), 48, rendering, str(tmp_path))
        assert picture[:, :, 0].min() > 120  # the red of yellow, white and grey alike


@pytest.mark.parametrize("color", COLORS)
def test_an_object_stands_out_from_a_photograph_of_its_color(color, tmp_path):
    Image.new("RGB", (90, 60), RGB[color]).save(tmp_path / "a.png")
    thing = Thing("square", color, "small", row=1, column=1)
    inside = area(thing, 48)
    for noise in range(10):
        picture = pixels(Scene((thing,), noise), 48, "photographs", str(tmp_path))
        ground = picture[:12].mean(axis=(0, 1))
        assert abs(picture[inside].mean(axis=0) - ground).max() > 40
        assert np.ptp(ground) < max(np.ptp(RGB[color]) / 3, 5)  # far less colourful than the object


def test_the_background_is_a_part_of_a_photograph_one_way_or_the_other(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 400)[None, :, None], (300, 400, 3)).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    slopes, starts = [], []
    for noise in range(40):
        columns = pixels(Scene((), noise), 48, "photographs", str(tmp_path)).mean(axis=(0, 2))
        # Half of the ramp's 96 columns, from FLOOR = 105 to CEILING = 225: (225 - 105) / 96 levels a column.
        slopes.append(np.polyfit(range(48), columns, 1)[0])
        starts.append(columns.min())
    assert [abs(slope) for slope in slopes] == pytest.approx([120 / 96] * 40, abs=0.05)
    assert 5 < sum(slope < 0 for slope in slopes) < 35
    assert max(starts) - min(starts) > 40  # another part each time


def test_pictures_of_any_kind_are_read(tmp_path):
    levels = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    grey = Image.fromarray(levels)
    kinds = {
        "a.png": grey,
        "b.png": Image.merge("LA", (grey, grey)),
        "c.png": Image.merge("RGBA", (grey, grey, grey, grey)),
        "d.png": grey.convert("P"),
        "e.png": Image.fromarray(levels.astype(np.uint16) * 257),
        "f.png": grey.convert("1"),
        "g.jpg": grey.convert("CMYK"),
        "h.JPEG": grey.convert("RGB"),
        "i.webp": grey.convert("RGB"),
        "j.bmp": grey,
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "._a.png").write_bytes(b"what a copy to a Mac leaves behind")
    read = read_backgrounds(str(tmp_path), 48)
    assert [ground.shape for ground in read] == [(72, 96, 3)] * len(kinds)
    assert {ground.dtype for ground in read} == {np.dtype(np.uint8)}
    for name, ground in zip(kinds, read, strict=True):
        top, bottom = ground[:9].mean(), ground[-9:].mean()
        if name in ("b.png", "c.png"):  # dark where transparent, and transparent is white
            assert top > 200 and bottom > 200, name
        else:
            assert bottom - top > 60, name


@pytest.mark.parametrize("shape", [(500, 20), (20, 500), (3, 2), (1200, 900)])
def test_a_picture_of_any_form_fills_a_background(shape, tmp_path):
    Image.new("RGB", shape, "red").save(tmp_path / "a.jpg")
    (ground,) = read_backgrounds(str(tmp_path), 24)
    assert ground.shape == (36, 48, 3) and ground.std(axis=(0, 1)).max() < 1


def test_backgrounds_come_in_the_order_of_their_names(tmp_path, monkeypatch):
    for level in np.random.default_rng(0).permutation(10):
        Image.new("L", (8, 8), int(level * 25)).save(tmp_path / f"{level}.png")
    means = [ground.mean() for ground in read_backgrounds(str(tmp_path), 24)]
    assert means == sorted(means) and len(means) == 10
    monkeypatch.setattr(photographs, "NUM_READ", 5)
    read_backgrounds.cache_clear()
    assert [ground.mean() for ground in read_backgrounds(str(tmp_path), 24)] == means[::2]


def test_photographs_are_read_once(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    first = render(SCENES[0], 48, "photographs", str(tmp_path))
    (tmp_path / "a.png").unlink()
    assert render(SCENES[0], 48, "photographs", str(tmp_path)) == first


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(InputError, match="needs data.backgrounds"):
        read_backgrounds(None, 48)
    missing = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"no folder {re.escape(missing)}"):
        read_backgrounds(missing, 48)
    (tmp_path / "below").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "below" / "a.png")
    with pytest.raises(InputError, match=f"no picture in the folder {re.escape(str(tmp_path))}.*subfolders"):
        read_backgrounds(str(tmp_path), 48)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_broken_picture_is_named(name, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    with pytest.raises(InputError, match=rf"{name} cannot be read; replace or remove it"):
        read_backgrounds(str(tmp_path), 48)
