"""Shards of pictures and captions as the library webdataset writes them."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from drawing_files import color, encoded

from alignlab.backbones.pictures import open_image
from alignlab.data import WebDataset
from alignlab.data.streaming import Streamed
from alignlab.errors import InputError


def sample(number: int, **changes) -> dict[str, bytes]:
    """A sample's members by the ends of their names."""
    told = {"caption": f"told {number}", "width": 24}
    members = {"jpg": encoded(number), "txt": f"said {number}\n".encode(), "json": json.dumps(told).encode()}
    return {kind: content for kind, content in {**members, **changes}.items() if content is not None}


def pack(path: Path, samples: dict[str, dict[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for key, members in samples.items():
            for kind, content in members.items():
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        pack(tmp_path / "cc" / f"{number:05}.tar", {f"{n:09}": sample(n) for n in (2 * number, 2 * number + 1)})
    return tmp_path / "cc"


def test_samples_come_in_order_shard_by_shard(shards):
    data = WebDataset(path=str(shards))
    stream = data.stream()
    assert stream.num_shards == 3
    found = [[example.captions[0] for example in stream.shard(n)] for n in range(3)]
    assert found == [["said 0", "said 1"], ["said 2", "said 3"], ["said 4", "said 5"]]
    example = next(stream.shard(1))
    assert example.id == "00001/000000002" and example.target == example.conversation[1].content == ("said 2",)
    assert open_image(example.images[0]).getpixel((0, 0)) == color(2)
    indexed = data.examples("train")
    assert [each.id for each in indexed] == [each.id for n in range(3) for each in stream.shard(n)]
    assert indexed[2] == example


def test_shards_that_are_held_out_are_indexed(shards):
    data = WebDataset(path=str(shards / "0000[01].tar"), val=str(shards / "00002.tar"))
    assert data.stream().num_shards == 2 and [each.captions[0] for each in data.examples("val")] == ["said 4", "said 5"]
    assert open_image(data.examples("val")[1].images[0]).getpixel((0, 0)) == color(5)
    assert len(data.examples("test")) == 0
    with pytest.raises(InputError, match=r"data.val: .*00002.tar is among the shards of data.path"):
        WebDataset(path=str(shards), val=str(shards / "00002.tar"))


def test_captions_may_be_a_field_of_json_and_pickles_are_not_read(shards):
    dangerous = sample(9, pyd=b"cos\nsystem\n(S'exit 1'\ntR.", txt=None)
    pack(shards / "00000.tar", {"a/b.c": dangerous, "a/d": dangerous})  # the name ends at the first dot
    with pytest.raises(InputError, match="00000.tar, a/b: it has no picture .*, only c.jpg, c.json, c.pyd"):
        WebDataset(path=str(shards / "00000.tar"), caption="json:caption")
    pack(shards / "00000.tar", {"a/b": dangerous, "a/d": dangerous})
    data = WebDataset(path=str(shards / "00000.tar"), caption="json:caption")
    assert [example.captions for example in data.stream().shard(0)] == [("told 9",)] * 2


def test_compressed_shards_are_streamed_and_not_indexed(shards):
    zipped = pack(shards.parent / "zipped" / "0.tar.gz", {"0": sample(0), "1": sample(1)}, "w:gz")
    data = WebDataset(path=str(zipped.parent))
    assert [example.id for example in data.stream().shard(0)] == ["0/0", "0/1"]
    with pytest.raises(InputError, match="must not be compressed"):
        WebDataset(path=str(shards), val=str(zipped))


def test_a_broken_picture_is_met_when_it_is_decoded(shards):
    pack(shards / "00000.tar", {"0": sample(0), "1": sample(1, jpg=b"<html>")})
    _, broken = WebDataset(path=str(shards)).stream().shard(0)
    with pytest.raises(InputError, match=r"00000.tar, 1.jpg is not a picture"):
        open_image(broken.images[0])


def test_a_sample_without_its_picture_is_skipped_and_counted_where_the_setting_says_so(shards):
    pack(shards / "00000.tar", {"0": sample(0), "1": sample(1, jpg=None), "2": sample(2)})
    data = WebDataset(path=str(shards / "00000.tar"), unreadable="skip")
    place = {"seed": 0, "first": 0, "num_readers": 1, "num_workers": 1, "buffer": 1}
    chosen = Streamed(data.stream(), batch_size=2, max_pixels=10_000, skip=True, **place).__getitems__([0])
    assert [example.id for example in chosen.examples] == ["00000/0", "00000/2"] and chosen.skipped == ("00000/1",)
    _, lacking, _ = data.examples("train")
    with pytest.raises(InputError, match="00000.tar, 1.jpg is not a picture"):
        open_image(lacking.images[0])


def test_members_that_webdataset_leaves_out_are_no_samples(shards):
    """As macOS and people leave them in tar files: ._1.jpg, README."""
    pack(shards / "00000.tar", {"a/._1": {"jpg": b"\0"}, "a/1": sample(1)})
    with tarfile.open(shards / "00000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("a/README"))
    data = WebDataset(path=str(shards / "00000.tar"))
    assert [example.id for example in data.stream().shard(0)] == ["00000/a/1"]
    assert [example.id for example in data.examples("train")] == ["00000/a/1"]


def test_a_sample_with_an_empty_caption_stops_or_is_skipped_as_the_setting_says(shards):
    pack(shards / "00000.tar", {"0": sample(0), "1": sample(1) | {"txt": b" "}, "2": sample(2)})
    with pytest.raises(InputError, match="1: its txt must be a text"):
        list(WebDataset(path=str(shards / "00000.tar")).stream().shard(0))
    data = WebDataset(path=str(shards / "00000.tar"), unreadable="skip")
    place = {"seed": 0, "first": 0, "num_readers": 1, "num_workers": 1, "buffer": 1}
    chosen = Streamed(data.stream(), batch_size=2, max_pixels=10_000, skip=True, **place).__getitems__([0])
    assert [example.id for example in chosen.examples] == ["00000/0", "00000/2"] and chosen.skipped == ("00000/1",)


def test_a_broken_picture_of_a_stream_is_skipped_and_counted(shards):
    pack(shards / "00000.tar", {"0": sample(0), "1": sample(1, jpg=b"<html>"), "2": sample(2)})
    stream = WebDataset(path=str(shards / "00000.tar")).stream()
    place = {"seed": 0, "first": 0, "num_readers": 1, "num_workers": 1, "buffer": 1}
    chosen = Streamed(stream, batch_size=2, max_pixels=10_000, skip=True, **place).__getitems__([0])
    assert [example.id for example in chosen.examples] == ["00000/0", "00000/2"] and chosen.skipped == ("00000/1",)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"jpg": None}, {}, "00000.tar, 0: it has no picture .jpg, jpeg, png, webp., only txt, json"),
        ({"txt": None}, {}, "00000.tar, 0: it has no txt, which data.caption names, only jpg, json"),
        ({"txt": b" \n"}, {}, "its txt must be a text"),
        ({"txt": b"\xff"}, {}, "its txt cannot be read"),
        ({}, {"caption": "json:text"}, "its json:text cannot be read: KeyError"),
        ({"json": b"["}, {"caption": "json:caption"}, "its json:caption cannot be read: JSONDecodeError"),
        ({}, {"path": "nothing/*.tar"}, "data.path: no file fits nothing"),
    ],
)
def test_what_is_malformed_is_named_at_the_start(shards, change, settings, message):
    pack(shards / "00000.tar", {"0": sample(0, **change)})
    with pytest.raises(InputError, match=message):
        WebDataset(**{"path": str(shards), **settings})


def test_files_that_are_no_shards_are_refused(shards):
    (shards / "00000.tar").write_text("<html>")
    with pytest.raises(InputError, match="00000.tar cannot be read as a tar file"):
        WebDataset(path=str(shards))
    pack(shards / "00000.tar", {})
    with pytest.raises(InputError, match="00000.tar holds no sample"):
        WebDataset(path=str(shards))
    pack(shards / "00000.tar", {str(n): sample(n) for n in range(40)})
    (shards / "00000.tar").write_bytes((shards / "00000.tar").read_bytes()[:11_000])
    data = WebDataset(path=str(shards))
    with pytest.raises(InputError, match="00000.tar cannot be read as a tar file: unexpected end of data"):
        list(data.stream().shard(0))
