"""``--calibration`` of each command, on a model of the user's own that reads pictures."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsconvert import ModuleSource, open_file, picture_inputs
from dsconvert.bench import limits
from dsconvert.cli import main
from dsconvert.data.pictures import psnr
from dsconvert.errors import UsageError
from dsconvert.formats.alike import check_same_inputs
from dsconvert.formats.given_inputs import with_calibration
from dsconvert.formats.official import new_snapshot, save_snapshot
from tests.made_models import moved_generator
from tests.upscalers import GreyUpscaler, Signed, picture_folder, state_file, upscaler

CODE = ["--module", "tests.upscalers:Upscaler"]
SOURCE = ModuleSource(factory="tests.upscalers:Upscaler")
FIT = ["--preset", "fast", "--calibrate", "16", "--polish", "0", "--json"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return picture_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return state_file(tmp_path_factory.mktemp("original") / "up.pth")


@pytest.fixture(scope="module")
def shown(pictures: Path) -> list[str]:
    return [*CODE, "--calibration", str(pictures), "--crop", "24", "--values", "unit"]


@pytest.fixture(scope="module")
def converted(original: Path, shown: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "fast.pth"
    assert main([str(original), "--out", str(out), *FIT, *shown]) == 0
    return out


@pytest.mark.slow
def test_convert_fits_to_pictures(
    original: Path, pictures: Path, converted: Path, tmp_path: Path
) -> None:
    blind = tmp_path / "svd.pth"
    svd = ["--preset", "fast", "--init", "svd", "--calibrate", "0", "--quiet"]
    assert main([str(original), "--out", str(blind), *svd, *CODE]) == 0
    draw = picture_inputs(pictures, size=24).held_out
    (batch,) = draw(8, torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = upscaler()(batch) * 2 - 1
        fitted, plain = (
            float(psnr(open_file(p, module=SOURCE).generator(batch) * 2 - 1, wanted).mean())
            for p in (converted, blind)
        )
    assert fitted > plain + 3


@pytest.mark.slow
def test_the_reported_psnr_is_of_the_held_out_pictures(
    original: Path, pictures: Path, shown: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "fast.pth"
    assert main([str(original), "--out", str(out), *FIT, *shown]) == 0
    said = json.loads(capsys.readouterr().out)["converted"]["state_dict"]["psnr_db"]
    # The held-out batch is drawn first, by the seed.
    (batch,) = picture_inputs(pictures, size=24).held_out(4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = upscaler()(batch) * 2 - 1
        got = float(psnr(open_file(out, module=SOURCE).generator(batch) * 2 - 1, wanted).mean())
    assert said == pytest.approx(got, abs=0.05)


@pytest.mark.slow
def test_convert_polishes_on_pictures(
    original: Path, shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fast.pth"
    polish = ["--preset", "fast", "--width", "1", "--calibrate", "16", "--polish-steps", "3"]
    assert main([str(original), "--out", str(out), *polish, "--json", *shown]) == 0
    found = json.loads(capsys.readouterr().out)["converted"]["state_dict"]
    assert found["polish"]["steps"] == 3
    assert found["polish"]["psnr_before"] is not None


@pytest.mark.slow
def test_widths_are_chosen_by_pictures(
    original: Path, shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "narrow.pth"
    assert main([str(original), "--out", str(out), *FIT, "--width", "auto", *shown]) == 0
    assert open_file(out, module=SOURCE).generator(torch.rand(1, 3, 8, 8)).shape[-1] == 16


def test_compare_shows_input_original_and_converted(
    original: Path, converted: Path, shown: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sheet = tmp_path / "sheet.png"
    files = [str(original), str(converted)]
    words = ["compare", *files, "--seeds", "0-2", "--out", str(sheet), "--json", *shown]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["psnr_db"]) == {"0", "1", "2"}
    assert found["psnr_db_mean"] > 20
    image = Image.open(sheet)
    assert image.size == (3 * 48, 3 * (48 + 22))  # three rows of x2 images, each with a label


def test_compare_judges_by_pictures_the_fit_never_saw(
    original: Path, pictures: Path, shown: list[str], tmp_path: Path
) -> None:
    """A seed draws from the held-out part, whatever is fitted."""
    inputs = picture_inputs(pictures, size=24)
    file = open_file(original, module=SOURCE, inputs=inputs)
    (drawn,) = file.draws(None)(5)
    (wanted,) = inputs.held_out(1, torch.Generator().manual_seed(5))
    assert torch.equal(drawn, wanted)


def test_generate(original: Path, shown: list[str], tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    assert main(["generate", str(original), "--seeds", "0-3", "--out", str(out), *shown]) == 0
    assert Image.open(out).size == (96, 96)


@pytest.mark.slow
def test_eval(
    original: Path, converted: Path, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    words = ["eval", str(converted), "--against", str(original), "--samples", "8", "--json"]
    assert main([*words, "--bootstrap", "20", "--device", "cpu", *shown]) == 0
    (score,) = json.loads(capsys.readouterr().out)["scores"]
    assert score["what"] == "to teacher"


@pytest.mark.slow
def test_bench(
    original: Path, shown: list[str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    small = functools.partial(limits, size=256, floats=1 << 20)
    monkeypatch.setattr("dsconvert.cli.bench.limits", small)
    quick = ["--batch", "1", "--train-batch", "0", "--repeats", "2", "--json"]
    assert main(["bench", str(original), *quick, *shown]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["params"] == sum(p.numel() for p in upscaler().parameters())


def test_grey_and_signed(pictures: Path, tmp_path: Path) -> None:
    grey = state_file(tmp_path / "grey.pth", GreyUpscaler)
    common = ["--calibration", str(pictures), "--crop", "16"]
    words = ["generate", str(grey), "--seeds", "0", "--module", "tests.upscalers:GreyUpscaler"]
    out = tmp_path / "grey.png"
    assert main([*words, *common, "--values", "unit", "--out", str(out)]) == 0
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert (pixels[..., 0] == pixels[..., 2]).all()

    signed = state_file(tmp_path / "signed.pth", Signed)
    words = ["generate", str(signed), "--seeds", "0", "--module", "tests.upscalers:Signed"]
    out = tmp_path / "signed.png"
    assert main([*words, *common, "--values", "signed", "--out", str(out)]) == 0
    (crop,) = picture_inputs(pictures, size=16, values="signed").held_out(
        1, torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        made = upscaler(Signed)(crop)[0].permute(1, 2, 0).numpy()
    seen = np.asarray(Image.open(out).convert("RGB")).astype(float) / 127.5 - 1
    assert np.abs(seen - made).max() < 0.02


def test_rows_of_an_npz(original: Path, converted: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((6, 3, 16, 16))
    np.savez(tmp_path / "in.npz", x=rows)
    sheet = tmp_path / "sheet.png"
    words = ["compare", str(original), str(converted), "--seeds", "0-1", "--out", str(sheet)]
    assert main([*words, *CODE, "--calibration", str(tmp_path / "in.npz")]) == 0
    assert Image.open(sheet).size == (64, 2 * 54)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop", "16"], "only together with --calibration"),
        (["--calibration", "PICTURES"], "--values unit (0 to 1) or --values signed (-1 to 1)"),
        (["--calibration", "PICTURES", "--values", "half"], "none of unit, signed"),
        (["--calibration", "PICTURES", "--values", "unit", "--crop", "0"], "not 1 or more"),
        (["--calibration", "PICTURES", "--values", "unit", "--crop", "99"], "of 99 pixels or more"),
        (["--calibration", "PICTURES", "--values", "unit", "--held-out", "0"], "not above 0"),
        (["--calibration", "/nowhere", "--values", "unit"], "there is no data at"),
        (["--calibration", "PICTURES", "--values", "unit", "--input", "16"], "reads no pictures"),
    ],
)
def test_errors(
    original: Path, pictures: Path, tmp_path: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.pth"
    given = [str(pictures) if o == "PICTURES" else o for o in options]
    assert main([str(original), "--out", str(out), *FIT, *CODE, *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not out.exists()


def test_every_picture_held_out_leaves_nothing_to_fit(
    original: Path, shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pth"
    assert main([str(original), "--out", str(out), *FIT, *shown, "--held-out", "1"]) == 2
    assert "none is left to fit to" in capsys.readouterr().err
    sheet = tmp_path / "sheet.png"
    words = ["generate", str(original), "--seeds", "0", "--out", str(sheet)]
    assert main([*words, *shown, "--held-out", "1"]) == 0
    inputs = picture_inputs(shown[shown.index("--calibration") + 1], size=24, held_out=1)
    file = open_file(original, module=SOURCE, inputs=inputs)
    check_same_inputs(file, file, otherwise="they can't be compared")


def test_a_generator_of_latents_reads_no_pictures(
    snapshot_file: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pkl"
    words = [str(snapshot_file), "--out", str(out), *FIT, "--calibration", str(pictures)]
    assert main(words) == 2
    assert "reads no pictures" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["snapshot", "safetensors"])
def test_rows_of_an_npz_are_drawn_in_place_of_official_latents(kind: str, tmp_path: Path) -> None:
    made, path = moved_generator(resolution=64, ngf=2, classes=3), tmp_path / "g.pkl"
    save_snapshot(new_snapshot(made), made, path)
    file = open_file(path)
    if kind == "safetensors":
        pytest.importorskip("safetensors")
        path = tmp_path / "g.safetensors"
        file.save_safetensors(file.generator, path, noise="random", overwrite=False)
    z = np.random.default_rng(0).random((6, 16)).astype(np.float32)
    np.savez(tmp_path / "both.npz", z=z, c=np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]])
    np.savez(tmp_path / "two.npz", z=z, c=np.full((6, 3), 0.5))
    file = with_calibration(open_file(path), tmp_path / "both.npz", held_out=1)
    assert file.classes == 3
    for label in (None, 1):
        drawn, given = file.draws(label)(4)
        assert drawn.tolist()[0] in z.tolist()
        assert label is None or given.tolist() == [[0, 1, 0]]
    file = with_calibration(open_file(path), tmp_path / "two.npz", held_out=1)
    with pytest.raises(UsageError, match=r"--class was given, but .*two\.npz holds no classes"):
        file.draws(1)
