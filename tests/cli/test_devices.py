"""``generate``, ``compare`` and ``convert`` work on the device that they are given."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dsconvert.cli import compare, convert, generate, main
from dsconvert.formats.official import new_snapshot, save_snapshot
from dsconvert.formats.registry import open_file
from tests.made_models import moved_generator
from tests.second_device import DEVICE, second_device


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, path = moved_generator(resolution=64, ngf=2), tmp_path_factory.mktemp("d") / "g.pkl"
    save_snapshot(new_snapshot(made), made, path)
    return path


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each command choose the second device."""
    modules: tuple[ModuleType, ...] = (generate, compare, convert)
    for module in modules:
        monkeypatch.setattr(module, "for_work", lambda _: DEVICE)


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_the_images_of_another_device_are_those_of_the_cpu(small: Path, tmp_path: Path) -> None:
    here, there, both = (tmp_path / n for n in ("here.png", "there.png", "both.png"))
    with second_device():
        assert main(["generate", str(small), "--seeds", "0-2", "--out", str(there)]) == 0
        other = tmp_path / "other.pkl"
        shutil.copy(small, other)
        command = ["compare", str(small), str(other), "--seeds", "0,1", "--out", str(both)]
        assert main(command) == 0
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "for_work", lambda _: torch.device("cpu"))
        assert main(["generate", str(small), "--seeds", "0-2", "--out", str(here)]) == 0
    assert np.abs(pixels(here) - pixels(there)).max() <= 1
    assert both.exists()


@pytest.mark.slow
@pytest.mark.extended
@pytest.mark.usefixtures("elsewhere")
def test_a_file_is_converted_on_another_device(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pkl"
    with second_device():
        command = ["convert", str(small), "--out", str(out), "--preset", "none", "--width", "0.5"]
        assert main([*command, "--calibrate", "8", "--polish", "0"]) == 0
    made = open_file(out).generator
    assert {t.device.type for t in made.state_dict().values()} == {"cpu"}
    with torch.no_grad():
        assert made(torch.randn(1, 16), torch.zeros(1, 0)).isfinite().all()


@pytest.mark.parametrize("command", ["generate", "compare", "convert"])
def test_an_unknown_device_fails_before_any_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["nothing.pkl", "neither.pkl"][: 2 if command == "compare" else 1]
    out = tmp_path / ("out.png" if command != "convert" else "out.pkl")
    assert main([command, *files, "--device", "warp", "--out", str(out)]) == 2
    assert "device 'warp' can't be used here" in capsys.readouterr().err
