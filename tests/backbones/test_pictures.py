import numpy as np
import pytest
from PIL import Image

from alignlab.backbones.pictures import open_image
from alignlab.errors import InputError


def test_every_mode_becomes_rgb(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode if mode != "P" else "L", (4, 2), 1).convert(mode).save(path)
        assert open_image(path).mode == "RGB"
        assert open_image(path).size == (4, 2)


def test_sixteen_bits_keep_their_brightness(tmp_path):
    Image.fromarray(np.array([[0, 25_600, 65_535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(open_image(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_the_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (2, 4)


def test_what_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="absent.png does not exist"):
        open_image(tmp_path / "absent.png")
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(InputError, match="page.png is not a picture"):
        open_image(tmp_path / "page.png")
    Image.effect_noise((64, 64), 9).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    with pytest.raises(InputError, match="cut.png is corrupt"):
        open_image(tmp_path / "cut.png")
    Image.new("L", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(InputError, match="large.png has more than 3,000 pixels"):
        open_image(tmp_path / "large.png")
