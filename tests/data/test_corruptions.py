"""Corruptions: one seed and one id give one corruption, whatever the batch; whose pixels are whose; bad settings."""

from dataclasses import replace

import pytest
import skimage
import torch
from families import make, sequences
from PIL import Image

from alignlab import InputError
from alignlab.backbones import Encoder
from alignlab.batch import Turn
from alignlab.data import (
    Blur,
    ContrastChange,
    Corruption,
    Crop,
    DiffusionNoise,
    Flip,
    Gamma,
    MoCo,
    PatchMask,
    diffusion_noise,
)
from alignlab.data.corruptions import can_corrupt, corrupted, generator_for
from alignlab.experiment.catalogue import kind_called

OF_PICTURES = [MoCo(), MoCo(size=None), Flip(), Crop(), ContrastChange(), Gamma(), Blur(), PatchMask()]


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(skimage.data.chelsea())  # 451 x 300


@pytest.mark.parametrize("corruption", OF_PICTURES, ids=str)
def test_a_picture_becomes_another_which_seed_and_id_decide(corruption, photo):
    spoilt = corruption.before(photo, generator_for(0, "a"))
    assert spoilt.mode == "RGB" and spoilt.tobytes() != photo.tobytes()
    assert spoilt.size == ((224, 224) if corruption == MoCo() else photo.size)
    assert spoilt.tobytes() == corruption.before(photo, generator_for(0, "a")).tobytes()
    others = {corruption.before(photo, generator_for(*key)).tobytes() for key in ((0, "b"), (1, "a"))}
    drawn = not isinstance(corruption, Flip | ContrastChange | Gamma | Blur)
    assert others.isdisjoint({spoilt.tobytes()}) == drawn
    pixels = torch.rand(3, 4, 4)
    assert not corruption.is_after and corruption.after(pixels, generator_for(0, "a")) is pixels


def test_noise_is_put_on_the_normalised_pixels(photo):
    pixels, noise = torch.randn(2, 3, 4, 4), DiffusionNoise(step=800)
    expected = diffusion_noise(pixels, 800, generator=generator_for(3, "a"))
    assert noise.is_after and torch.equal(noise.after(pixels, generator_for(3, "a")), expected)
    assert noise.before(photo, generator_for(3, "a")) is photo


def test_every_exported_corruption_is_tested_here():
    tested = {type(corruption) for corruption in (*OF_PICTURES, DiffusionNoise())}
    assert tested == set(kind_called("corruption").classes().values())


def test_a_sample_is_corrupted_alike_in_any_batch(photo):
    encoder = Encoder.load("scenes-vlm")
    one, two = (photo, photo.rotate(90)), (photo.rotate(180),)
    prompts = {"a": one, "b": two, "c": two}
    turns = {id: (Turn("user", (*pictures, "describe the image .")),) for id, pictures in prompts.items()}

    def pixels(*ids):
        tokens = encoder.prompts([turns[id] for id in ids])
        assert can_corrupt(tokens)
        done = corrupted(tokens, DiffusionNoise(), [generator_for(0, id) for id in ids])
        assert torch.equal(done.input_ids, tokens.input_ids) and len(tokens.vision["pixel_values"]) == len(
            done.vision["pixel_values"]
        )
        return done.vision["pixel_values"]

    together = pixels("a", "b", "c")
    assert torch.equal(together[:2], pixels("a")) and torch.equal(together[3:], pixels("c"))
    assert torch.equal(pixels("c", "a")[1:], together[:2])
    assert not torch.allclose(together[2], together[3])  # the same picture, of other samples


@pytest.mark.parametrize("family", ["Qwen2-VL", "Llama"])
def test_each_sample_gets_its_own_noise_where_pictures_are_flattened(family):
    tokens = sequences(make(family))  # one picture, two, none
    noise, generators = DiffusionNoise(), [generator_for(0, str(sample)) for sample in range(3)]
    done = corrupted(tokens, noise, generators).vision["pixel_values"]
    clean = tokens.vision["pixel_values"]
    size = len(clean) // 3
    for sample, own in enumerate((slice(0, size), slice(size, None))):
        assert torch.equal(done[own], noise.after(clean[own], generator_for(0, str(sample))))


def test_where_it_cannot_be_known_samples_go_alone():
    tokens = sequences(make("Llama"))
    tiles = replace(tokens, vision={"pixel_values": torch.randn(7, 3, 16, 16)})
    assert can_corrupt(tokens) and not can_corrupt(tiles)
    assert not can_corrupt(sequences(make("Pixtral")))  # padded to the largest picture of the batch
    alone = replace(tokens.select(torch.tensor([2])), vision=tiles.vision)
    noise = DiffusionNoise()
    expected = noise.after(tiles.vision["pixel_values"], generator_for(0, "a"))
    done = corrupted(alone, noise, [generator_for(0, "a")])
    assert can_corrupt(alone) and torch.equal(done.vision["pixel_values"], expected)


def test_pixels_that_have_no_name_are_refused():
    tokens = sequences(make("Llama"))
    with pytest.raises(
        InputError, match="called pixel_values, but it returned images; use a corruption of the picture"
    ):
        corrupted(replace(tokens, vision={"images": torch.zeros(3)}), DiffusionNoise(), [generator_for(0, "a")] * 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiffusionNoise(step=1000),
        lambda: DiffusionNoise(step=-1),
        lambda: MoCo(size=0),
        lambda: Crop(least=0.5, most=0.2),
        lambda: ContrastChange(factor=-1.0),
        lambda: Gamma(gamma=0.0),
        lambda: Blur(sigma=0.0),
        lambda: PatchMask(share=1.5),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(InputError, match=r"needs .*, got \w+\("):
        make()


def test_a_corruption_of_ones_own_changes_nothing_it_does_not_write(photo):
    class Nothing(Corruption):
        pass

    assert not Nothing().is_after and Nothing().before(photo, generator_for(0, "a")) is photo
