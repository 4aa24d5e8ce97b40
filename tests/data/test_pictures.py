"""Tensors to pictures: levels, layout, PSNR, and files that appear whole or not at all."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsconvert.config.choices import ImageFormat
from dsconvert.data.pictures import (
    check_target,
    encoded,
    grid,
    psnr,
    save_picture,
    save_png,
    side_by_side,
    to_images,
)
from dsconvert.errors import OutputError, UsageError


def flat(level: float, *, channels: int = 3, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.full((1, channels, height, width), level)


@pytest.mark.parametrize(
    ("level", "wanted"),
    [(-1.0, 0), (0.0, 128), (1.0, 255), (-9.0, 0), (9.0, 255), (0.5, 191), (-0.5, 64)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_levels_are_those_of_the_official_script(
    level: float, wanted: int, dtype: torch.dtype
) -> None:
    picture = to_images(flat(level).to(dtype))[0]
    assert picture.size == (6, 4)
    assert set(np.asarray(picture).ravel()) == {wanted}


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_channels(channels: int, mode: str) -> None:
    batch = torch.rand(2, channels, 4, 6) * 2 - 1
    pictures = to_images(batch)
    assert [p.mode for p in pictures] == [mode, mode]
    levels = np.asarray(pictures[1]).reshape(4, 6, channels)
    near = levels.transpose(2, 0, 1) / 127.5 - 1
    assert np.abs(near - batch[1].numpy()).max() < 0.01
    assert grid(batch).mode == "RGB"


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_refused(channels: int) -> None:
    with pytest.raises(UsageError, match=f"these have {channels}"):
        to_images(torch.zeros(1, channels, 4, 4))


@pytest.mark.parametrize(("count", "columns", "size"), [(1, 1, (6, 4)), (5, 2, (12, 12))])
def test_grid_goes_row_by_row_on_white(count: int, columns: int, size: tuple[int, int]) -> None:
    batch = torch.cat([flat(-1 + 0.25 * i) for i in range(count)])
    sheet = np.asarray(grid(batch))
    assert grid(batch).size == size
    for i, picture in enumerate(to_images(batch)):
        y, x = i // columns * 4, i % columns * 6
        assert (sheet[y : y + 4, x : x + 6] == np.asarray(picture)).all()
    if count % columns:
        assert (sheet[-4:, -6:] == 255).all()


def test_columns_can_be_chosen() -> None:
    five = flat(0.0).repeat(5, 1, 1, 1)
    assert grid(five, columns=5).size == (30, 4)
    assert grid(five, columns=10**8).size == (30, 4)  # no more than images


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_pixels_that_are_transparent_keep_their_levels(kind: ImageFormat, tmp_path: Path) -> None:
    batch = torch.rand(1, 4, 16, 16) * 2 - 1
    batch[:, 3, 8:] = -1
    (clear,) = to_images(batch)
    save_picture(clear, tmp_path / f"a.{kind}")
    for file in (BytesIO(encoded(clear, kind)), tmp_path / f"a.{kind}"):
        with Image.open(file) as back:
            assert np.array_equal(np.asarray(back.convert("RGBA")), np.asarray(clear))


def test_side_by_side_has_a_labelled_row_a_model() -> None:
    top, bottom = torch.rand(3, 3, 8, 32) * 2 - 1, torch.rand(3, 3, 8, 32) * 2 - 1
    sheet = np.asarray(side_by_side({"first": top, "second": bottom}))
    band = sheet.shape[0] // 2 - 8
    assert sheet.shape == (2 * (8 + band), 96, 3)
    for row, batch in enumerate((top, bottom)):
        start = row * (8 + band)
        label = sheet[start : start + band]
        assert label.min() < 100  # something is written there
        for i, picture in enumerate(to_images(batch)):
            found = sheet[start + band : start + band + 8, 32 * i : 32 * (i + 1)]
            assert (found == np.asarray(picture)).all()
    unlabelled = np.asarray(side_by_side({"": top, " ": bottom}))
    assert (unlabelled[:band] == 255).all()


def test_alpha_is_shown_on_white() -> None:
    batch = torch.full((2, 4, 4, 6), -1.0)
    batch[1, 3] = 1
    sheet = np.asarray(grid(batch, columns=2))
    assert (sheet[:, :6] == 255).all()
    assert (sheet[:, 6:] == 0).all()


def test_psnr_and_difference_rows() -> None:
    reference = torch.rand(2, 3, 8, 8) - 0.5
    off = reference + 0.02
    plain = np.asarray(side_by_side({"a": reference, "b": off}))
    sheet = np.asarray(side_by_side({"a": reference, "b": off}, amplify=10))
    row = plain.shape[0] // 2
    assert sheet.shape == (3 * row, 16, 3)
    assert (sheet[: 2 * row] == plain).all()
    # 0.02 ten times over is 0.2 of the range, on mid-grey.
    assert set(sheet[-8:].ravel()) <= {152, 153, 154}
    wide = {"a": reference.repeat(1, 1, 1, 20), "b": off.repeat(1, 1, 1, 20)}
    told = np.asarray(side_by_side(wide, with_psnr=True))
    untold = np.asarray(side_by_side(wide))
    named = np.asarray(
        side_by_side(dict(zip(("a", "b (PSNR 40.0 dB)"), wide.values(), strict=True)))
    )
    assert (told == named).all()
    assert not (told == untold).all()


def test_what_is_broken_is_black_or_refused() -> None:
    assert np.asarray(to_images(flat(float("nan")))[0]).max() == 0
    assert np.asarray(to_images(flat(float("inf")))[0]).min() == 255
    for call in (
        lambda: to_images(torch.zeros(0, 3, 4, 4)),
        lambda: to_images(torch.zeros(3, 4, 4)),
        lambda: grid(flat(0.0), columns=0),
        lambda: side_by_side({}),
        lambda: side_by_side({"a": flat(0.0), "b": flat(0.0, height=8)}),
        lambda: psnr(flat(0.0), flat(0.0, height=8)),
    ):
        with pytest.raises(UsageError):
            call()


@pytest.mark.parametrize("name", ["x" * 4000 + ".png", "a\0b.png"])
def test_names_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="can't write"):
        save_png(picture(), tmp_path / name)


def test_the_longest_name_works(tmp_path: Path) -> None:
    save_png(picture(), tmp_path / ("x" * 251 + ".png"))
    assert len(list(tmp_path.iterdir())) == 1


def test_psnr_by_its_definition() -> None:
    torch.manual_seed(0)
    a = torch.rand(3, 3, 8, 8, dtype=torch.float64) * 2 - 1
    b = (a + 0.2 * torch.randn(a.shape, dtype=torch.float64)).clamp(-1, 1)
    wanted = [
        10 * np.log10(4 / np.mean((x - y) ** 2)) for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    assert torch.allclose(psnr(a, b).double(), torch.tensor(wanted, dtype=torch.float64), atol=1e-3)
    # 0.02 off everywhere: 4 / 0.0004 = 10^4.
    assert psnr(flat(0.5), flat(0.52)).item() == pytest.approx(40, abs=1e-3)


def test_psnr_clamps_both_and_is_finite_for_identical_images() -> None:
    assert torch.equal(psnr(flat(1.0), flat(0.0)), psnr(flat(7.0), flat(0.0)))
    assert torch.equal(psnr(flat(-3.0), flat(-1.0)), psnr(flat(0.3), flat(0.3)))
    assert psnr(flat(0.3), flat(0.3)).isfinite().all()


def picture() -> Image.Image:
    return grid(torch.rand(4, 3, 8, 8) * 2 - 1)


def test_a_png_round_trip(tmp_path: Path) -> None:
    made = picture()
    save_png(made, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as back:
        assert back.format == "PNG"
        assert (np.asarray(back) == np.asarray(made)).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="--overwrite"):
        save_png(picture(), target)
    assert target.read_bytes() == b"precious"
    save_png(picture(), target, overwrite=True)
    with Image.open(target) as back:
        assert back.size == (16, 16)


def test_a_folder_or_a_missing_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        check_target(tmp_path / "no" / "a.png", overwrite=False)
    assert check_target(str(tmp_path / "a.png"), overwrite=False) == tmp_path / "a.png"
    assert not list(tmp_path.iterdir())


def test_a_folder_without_rights_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tests may run as root, whom no folder refuses.
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="can't be written to"):
        check_target(tmp_path / "a.png", overwrite=False)


def test_a_disk_that_refuses_leaves_the_old_file_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"precious")

    def full(_: Image.Image, fp: Path, **__: object) -> None:
        Path(fp).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        save_png(picture(), target, overwrite=True)
    assert target.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
