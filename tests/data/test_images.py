"""Data sets as people have them: folders, zips, labels, odd and broken images, small ones."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsconvert.data.images import decode, open_images
from dsconvert.data.stream import ImageStream, to_range
from dsconvert.errors import DataError, UsageError
from tests.train.parts import encoded, picture, tiny_zip, zipped


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    return tiny_zip(tmp_path)


def test_the_size_rule_is_centre_square_then_lanczos() -> None:
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    assert decode(encoded(wide), 8, 3)[2].eq(255).all()  # only the blue middle is left
    exact = picture(1, (32, 32))
    assert np.array_equal(decode(encoded(exact), 32, 3).permute(1, 2, 0), np.asarray(exact))
    large = decode(encoded(picture(1, (8, 8))), 32, 3)
    assert large.shape == (3, 32, 32)


@pytest.mark.parametrize(("across", "down"), [(100, 32), (64, 50), (200, 100), (9, 90)])
def test_the_size_rule_of_another_shape(across: int, down: int) -> None:
    """The largest centred part of 2 : 1, at 32 x 64 pixels; nothing is stretched."""
    levels = np.zeros((down, across, 3), np.uint8)
    levels[..., 0] = np.linspace(0, 255, across).round()[None]
    levels[..., 1] = np.linspace(0, 255, down).round()[:, None]
    made = decode(encoded(Image.fromarray(levels)), (32, 64), 3)
    assert made.shape == (3, 32, 64)
    for channel, extent, part in (
        (0, across, min(across, 2 * down)), (1, down, min(down, across / 2))
    ):  # fmt: skip
        line = made[channel].float().mean(channel and 1)
        first, last = float(line.min()), float(line.max())
        assert first + last == pytest.approx(255, abs=12)  # centred
        assert last - first == pytest.approx(255 * part / extent, abs=28)
    exact = picture(1, (64, 32))
    assert np.array_equal(decode(encoded(exact), (32, 64), 3).permute(1, 2, 0), np.asarray(exact))


def test_a_set_of_another_shape(tmp_path: Path) -> None:
    for i in range(3):
        picture(i, (64, 32)).save(tmp_path / f"{i}.png")
    for cache in ("always", "never"):
        images = open_images(tmp_path, resolution=(32, 64), cache=cache)  # type: ignore[arg-type]
        assert images.size == (32, 64)
        assert np.array_equal(images.image(1)[0].permute(1, 2, 0), picture(1, (64, 32)))


def test_odd_modes() -> None:
    grey = decode(encoded(picture(0, mode="L")), 16, 3)
    assert torch.equal(grey[0], grey[1])
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert decode(encoded(clear), 16, 3).eq(255).all()  # transparent is white
    assert decode(encoded(clear), 16, 4)[3].eq(0).all()
    assert decode(encoded(picture(0)), 16, 4)[3].eq(255).all()
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30])
    assert decode(encoded(palette), 16, 3)[:, 0, 0].tolist() == [10, 20, 30]
    deep = Image.fromarray(np.full((16, 16), 65535 // 2, np.uint16))
    assert abs(int(decode(encoded(deep), 16, 3)[0, 0, 0]) - 127) <= 1
    assert decode(encoded(picture(0, mode="CMYK"), "JPEG"), 16, 3).shape == (3, 16, 16)
    assert decode(encoded(picture(0)), 16, 1).shape == (1, 16, 16)


def test_levels_of_an_unknown_range_are_left_out(tmp_path: Path) -> None:
    ramp = np.linspace(0, 200, 256).reshape(16, 16)
    for name, levels in (("float", ramp.astype(np.float32)), ("whole", ramp.astype(np.int32))):
        Image.fromarray(levels).save(tmp_path / f"{name}.tif")
    (tmp_path / "deep.pgm").write_bytes(b"P5 16 16 65535\n" + b"\x7f\xff" * 256)
    Image.fromarray(np.full((16, 16), 32767, np.uint16)).save(tmp_path / "deep.tif")
    for cache in ("always", "never"):
        images = open_images(tmp_path, resolution=16, cache=cache)  # type: ignore[arg-type]
        assert images.image(0)[0].float().mean() == pytest.approx(127.5, abs=1)
    images = open_images(tmp_path, resolution=16)
    assert images.names == ("deep.pgm", "deep.tif")
    assert [s.split(" ")[0] for s in images.skipped] == ["float.tif", "whole.tif"]
    assert all("unknown range" in s and "8 or 16 bits" in s for s in images.skipped)


def test_exif_rotation_is_applied() -> None:
    turned = Image.new("RGB", (16, 16), "black")
    turned.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    from io import BytesIO

    out = BytesIO()
    turned.save(out, "PNG", exif=exif)
    seen = decode(out.getvalue(), 16, 3)
    assert seen[0, -1, 0] == 255
    assert seen[0, 0, 0] == 0


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    good = encoded(picture(0))
    return zipped(
        tmp_path / "some.zip",
        {
            "a.png": good, "b.png": good[:60], "c.png": b"", "d/e.jpg": encoded(picture(1), "JPEG"),
            "notes.txt": b"x", "__MACOSX/a.png": b"x", ".hidden.png": b"x",
        },
    )  # fmt: skip


def test_broken_images_are_left_out_and_named(broken: Path) -> None:
    images = open_images(broken, resolution=16)
    assert images.names == ("a.png", "d/e.jpg")
    assert len(images.skipped) == 2
    assert images.skipped[0].startswith("b.png")
    assert images.skipped[1].startswith("c.png")


def test_broken_images_of_a_large_set_are_stood_in_for(broken: Path) -> None:
    images = open_images(broken, resolution=16, cache="never")
    assert images.decoded is None
    stream = ImageStream(images, batch=4)
    for _ in range(2):
        batch, _ = next(stream)
        assert batch.shape == (4, 3, 16, 16)
    assert sorted(p[:5] for p in stream.unreadable) == ["b.png", "c.png"]


def test_a_reading_process_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    path = zipped(tmp_path / "all.zip", {"a.png": b"no picture", "b.png": b"nor this"})
    images = open_images(path, resolution=16, cache="never")
    with pytest.raises(DataError, match=r"^2 images in a row can't be read in .*\.zip: "):
        next(ImageStream(images, batch=2, workers=1))


def test_labels_in_a_damaged_zip(tmp_path: Path) -> None:
    files = {"a.png": encoded(picture(0)), "dataset.json": b'{"labels": [["a.png", 12345]]}'}
    path = zipped(tmp_path / "l.zip", files)
    path.write_bytes(path.read_bytes().replace(b"12345", b"54321"))  # the checksum stays
    with pytest.raises(DataError, match="Bad CRC"):
        open_images(path, conditional=True)
    content = zipped(path, files).read_bytes()
    # The flags of the file in the archive's list: it has a password.
    at = content.index(b"PK\1\2", content.index(b"PK\1\2") + 1) + 8
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    with pytest.raises(DataError, match=r"password|encrypted"):
        open_images(path, conditional=True)


def test_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data"):
        open_images(tmp_path / "missing")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match=r"text\.zip"):
        open_images(tmp_path / "text.zip")
    content = zipped(tmp_path / "list.zip", {"a.png": encoded(picture(0))}).read_bytes()
    at = content.index(b"PK\1\2")
    for place, level in ((6, 255), (9, 8)):  # the version that it needs; a name that is UTF-8
        damaged = bytearray(content)
        damaged[at + place] = level
        damaged[at + 46] = 255
        (tmp_path / "list.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=r"list\.zip can't be read"):
            open_images(tmp_path / "list.zip")
    with pytest.raises(UsageError, match="these have 2"):
        open_images(tmp_path, channels=2)
    with pytest.raises(DataError, match="no images"):
        open_images(zipped(tmp_path / "empty.zip", {"readme.txt": b"x"}))
    with pytest.raises(DataError, match="not one of the 1"):
        open_images(zipped(tmp_path / "bad.zip", {"a.png": b"x"}), resolution=8)


@pytest.mark.slow
def test_a_folder_is_read_to_any_depth(tmp_path: Path) -> None:
    for i, name in enumerate(("x/1.png", "y/z/2.png", "y/3.png")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture(i)))
    images = open_images(tmp_path, conditional=True)
    assert images.names == ("x/1.png", "y/3.png", "y/z/2.png")
    assert images.resolution == 30  # the shorter side of the first
    assert images.classes == 2  # a folder a class, as there is no dataset.json
    assert images.label(torch.tensor([0, 2])).tolist() == [[1, 0], [0, 1]]


def test_official_labels(tiny_data: Path, tmp_path: Path) -> None:
    images = open_images(tiny_data, conditional=True)
    assert images.classes == 3
    assert images.label(torch.tensor([4])).tolist() == [[0, 1, 0]]
    assert open_images(tiny_data).classes == 0
    for text, what in (
        (b"[" * 100_000, "nested too deeply"),
        (b'{"labels": null}', "no labels"),
        (b'{"labels": [["b.png", 0]]}', "no label for 1 of 1"),
        (b'{"labels": [["a.png", -1]]}', "neither whole numbers"),
        (b'{"labels": [["a.png", 1180591620717411303424]]}', "has class 1180591620717411303424"),
    ):
        path = zipped(tmp_path / "l.zip", {"a.png": encoded(picture(0)), "dataset.json": text})
        with pytest.raises(DataError, match=what):
            open_images(path, conditional=True)


def test_an_epoch_shows_everything_once_each_way(tiny_data: Path) -> None:
    images = open_images(tiny_data)
    stream = ImageStream(images, batch=6, mirror=True, seed=4)
    epoch = torch.cat([next(stream)[0] for _ in range(4)])
    assert images.decoded is not None
    wanted = torch.cat([images.decoded, images.decoded.flip(3)])
    assert sorted(i.sum().item() for i in epoch) == sorted(i.sum().item() for i in wanted)
    assert len({bytes(i.numpy()) for i in epoch}) == 24


@pytest.mark.parametrize("cache", ["always", "never"])
def test_any_start_and_any_split_give_the_same_images(tiny_data: Path, cache: str) -> None:
    """A resumed run, and two processes, see what one uninterrupted process sees."""
    images = open_images(tiny_data, cache=cache, conditional=True)  # type: ignore[arg-type]
    whole = ImageStream(images, batch=8, mirror=True, seed=1)
    seen = [next(whole) for _ in range(5)]
    late = ImageStream(images, batch=8, mirror=True, seed=1, start=24, workers=1)
    assert torch.equal(next(late)[0], seen[3][0])
    halves = [ImageStream(images, batch=8, mirror=True, seed=1, rank=r, world=2) for r in (0, 1)]
    for pictures, labels in seen:
        parts = [next(h) for h in halves]
        assert torch.equal(torch.cat([p for p, _ in parts]), pictures)
        assert torch.equal(torch.cat([c for _, c in parts]), labels)
    with pytest.raises(DataError, match="evenly"):
        ImageStream(images, batch=7, world=2)


@pytest.mark.slow
def test_workers_change_nothing(tiny_data: Path) -> None:
    images = open_images(tiny_data, cache="never")
    alone, helped = (ImageStream(images, batch=5, workers=w) for w in (0, 2))
    for _ in range(6):
        assert torch.equal(next(alone)[0], next(helped)[0])


def test_a_small_set_is_not_slower(tmp_path: Path) -> None:
    """A batch of a 10-image set costs what one of a 200-image set costs (a ratio, not a time)."""
    data = encoded(picture(0, (64, 64)))
    times: dict[int, float] = {}
    for count in (10, 200):
        path = zipped(tmp_path / f"{count}.zip", {f"{i:03d}.png": data for i in range(count)})
        stream = ImageStream(open_images(path), batch=20)
        rounds: list[float] = []
        for _ in range(30):
            began = time.perf_counter()
            next(stream)
            rounds.append(time.perf_counter() - began)
        times[count] = sorted(rounds)[len(rounds) // 2]
    assert times[10] < 3 * times[200] + 1e-3


def test_levels() -> None:
    levels = torch.tensor([0, 255], dtype=torch.uint8)
    assert to_range(levels, torch.device("cpu")).tolist() == [-1, 1]
