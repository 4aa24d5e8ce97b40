"""The examples run as they are, as scripts, and say what they should."""

from __future__ import annotations

import io
import re
import runpy
import subprocess
import sys
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from dsconvert.data.images import open_images
from dsconvert.formats.official import load_snapshot
from dsconvert.metrics import sample_images
from dsconvert.model.inputs import sampler_of
from dsconvert.rules import registry

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(name: str, *arguments: str | Path) -> str:
    """As a script, in this process: another would spend most of its time on importing torch."""
    path, said = str(EXAMPLES / name), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(), redirect_stdout(said):
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
    return said.getvalue()


@pytest.mark.slow
def test_custom_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {
        n: r for n, r in registry._REGISTRY.items() if type(r).__module__.startswith("dsconvert")
    }
    monkeypatch.setattr(registry, "_REGISTRY", own)  # what the example registers is forgotten
    lines = run_here("custom_rule.py").splitlines()
    changes = [float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("rank")]
    errors = [re.findall(r"held-out error (\S+) > (\S+)", line) for line in lines]
    assert any(errors)
    assert all(float(after) < float(before) for found in errors for before, after in found)
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 1e-5  # at the full rank the rewrite is exact


@pytest.mark.slow
def test_custom_adapter() -> None:
    text = run_here("custom_adapter.py")
    before, after = map(int, re.findall(r"(\d+) > (\d+) MACs", text)[0])
    assert after < before / 4
    assert "adapter tiny_gan" in text
    assert "same images: True" in text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "demo.pkl"
    assert "65 pictures of faces.zip" in run_here("make_demo_snapshot.py", path)
    return path


@pytest.mark.slow
def test_demo_snapshot(demo: Path, tmp_path: Path) -> None:
    path = demo
    snap = load_snapshot(path)
    assert snap.config["resolution"] == 128
    # As in a real file, each network has its own tensors: a conversion makes the file smaller.
    own = sum(p.nbytes for key in ("G", "G_ema") for p in snap.module(key).parameters())
    assert path.stat().st_size > own
    again = tmp_path / "again.pkl"
    run("make_demo_snapshot.py", again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_demo_has_learned_its_pictures(demo: Path) -> None:
    """Yellow faces on white, each another one: not what random weights would make."""
    generator = load_snapshot(demo).generator
    images = sample_images(generator, sampler_of(generator), samples=32, seed=0)
    edge = torch.cat([images[..., :4, :].flatten(1), images[..., -4:, :].flatten(1)], 1)
    red, green, blue = images[..., 32:96, 32:96].unbind(1)
    assert edge.mean() > 0.9  # white is 1; random weights give grey, 0
    assert red.mean() > green.mean() + 0.2 > blue.mean() + 0.4
    assert red.flatten(1).std(0).mean() > 0.25  # eyes and mouths, at other places


@pytest.mark.slow
@pytest.mark.extended
def test_demo_training(tmp_path: Path, stamps: Path) -> None:
    """The script that made the weights, for a few steps."""
    pytest.importorskip("timm")
    pytest.importorskip("scipy")
    out = tmp_path / "demo.safetensors"
    words = (
        "--data", stamps, "--out", out, "--run", tmp_path / "run", "--ngf", "4",
        "--minutes", "0.02", "--kimg", "0.008",
    )  # fmt: skip
    text = run("train_demo.py", *words)
    assert "regression: " in text
    assert "trained on: 8 images" in text
    path = tmp_path / "demo.pkl"
    assert "0.02 minutes of regression" in run("make_demo_snapshot.py", path, "--weights", out)
    assert load_snapshot(path).config["ngf"] == 4


def test_faces_are_picked_out(tmp_path: Path) -> None:
    """A yellow disc with eyes is a face; without eyes, in blue, or as a square it is none."""

    def drawn(colour: str, shape: str, eyes: int) -> bytes:
        picture = Image.new("RGB", (256, 256), "white")
        pen = ImageDraw.Draw(picture)
        getattr(pen, shape)((19, 19, 237, 237), fill=colour)
        for x in (90, 166)[:eyes]:
            pen.ellipse((x - 14, 80, x + 14, 120), fill="black")
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    pictures = {
        "face.png": drawn("#ffc020", "ellipse", 2),
        "ball.png": drawn("#ffc020", "ellipse", 0),
        "blue.png": drawn("#2040ff", "ellipse", 2),
        "box.png": drawn("#ffc020", "rectangle", 2),
    }
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        for name, data in pictures.items():
            file.writestr(name, data)
    text = run_here("face_pictures.py", tmp_path / "all.zip", tmp_path / "faces.zip")
    assert ": 1 face\n" in text
    with zipfile.ZipFile(tmp_path / "faces.zip") as file:
        assert file.namelist() == ["face.png"]


def test_squares_of_a_photograph(tmp_path: Path) -> None:
    """Each photograph gives 24 of 256 px, none twice."""
    pixels = torch.arange(300 * 400).square().remainder(251).to(torch.uint8)
    Image.fromarray(pixels.reshape(300, 400).numpy()).save(tmp_path / "photo.png")
    write = runpy.run_path(str(EXAMPLES / "landscape_pictures.py"))["write"]
    assert write([tmp_path / "photo.png"] * 2, tmp_path / "squares.zip") == 48
    images = open_images(tmp_path / "squares.zip", resolution=256)
    assert len(images) == 48
    first = [images.image(i)[0] for i in range(24)]
    assert all(tuple(each.shape) == (3, 256, 256) for each in first)
    assert torch.equal(first[0], images.image(24)[0])
    assert len({each.numpy().tobytes() for each in first}) == 24


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_no_example_is_forgotten(name: str) -> None:
    tests = Path(__file__).resolve().parent.rglob("test_*.py")
    assert any(f'"{name}"' in test.read_text(encoding="utf-8") for test in tests)
