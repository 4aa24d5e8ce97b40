"""``generate``: folders that go on, data sets that the trainer reads, and videos."""

from __future__ import annotations

import io
import json
import signal
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsconvert.cli import generate, main
from dsconvert.cli.output import Bars
from dsconvert.data.image_files import ImageFolder
from dsconvert.data.images import open_images
from dsconvert.formats.official import new_snapshot, save_snapshot
from dsconvert.model.latent_walk import between, walk, walk_length
from tests.made_models import moved_generator


def saved(folder: Path, **config: object) -> str:
    made, path = moved_generator(resolution=64, ngf=2, **config), folder / "g.pkl"
    save_snapshot(new_snapshot(made), made, path)
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("classes"), classes=3)


def pixels(data: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as picture:
        return np.asarray(picture.convert("RGB"))


def painted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of the images that are made from now on."""
    seeds: list[int] = []
    real = generate.painter

    def painter(*args: object, **options: object) -> object:
        paint = real(*args, **options)
        return lambda arguments, seed: (seeds.append(seed), paint(arguments, seed))[1]

    monkeypatch.setattr(generate, "painter", painter)
    return seeds


@pytest.mark.slow
def test_a_folder_goes_on(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = f"{tmp_path / 'images'}/", tmp_path / "sheet.png"
    real = Bars.__call__

    def stop(self: Bars, stage: str, done: int, total: int, detail: str = "") -> None:
        real(self, stage, done, total, detail)
        if done == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Bars, "__call__", stop)
        assert main(["generate", plain, "--seeds", "3-6", "--out", out]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    names = [f"seed{i:08d}.png" for i in range(3, 7)]
    assert sorted(p.name for p in Path(out).glob("*")) == [".dsconvert-images.json", *names[:2]]
    made = painted(monkeypatch)
    assert main(["generate", plain, "--seeds", "3-6", "--out", out]) == 0
    assert made == [5, 6]
    assert main(["generate", plain, "--seeds", "3-6", "--out", str(sheet)]) == 0
    both = pixels(sheet)
    for i, name in enumerate(names):
        y, x = 64 * (i // 2), 64 * (i % 2)
        assert np.array_equal(pixels(Path(out) / name), both[y : y + 64, x : x + 64])
    # Images of other facts are neither mixed with these nor lost without a word.
    words = ["generate", plain, "--seeds", "0", "--format", "webp", "--out", out]
    assert main(words) == 2
    assert "made otherwise (format)" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert [p.name for p in Path(out).glob("*[!n]")] == ["seed00000000.webp"]


def test_a_folder_of_something_else_is_left_alone(plain: str, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for out in (f"{tmp_path}/", f"{mine}/", f"{tmp_path}/a/b/"):
        assert main(["generate", plain, "--seeds", "0", "--out", out, "--overwrite"]) == 2
    said = capsys.readouterr().err.splitlines()
    ends = ("name a new folder.", "is a file, not a folder; name another.", "make it first.")
    assert all(line.endswith(end) for line, end in zip(said, ends, strict=True)), said
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / ".dsconvert-images.json").write_text("[1]")
    assert main(["generate", plain, "--seeds", "0", "--out", f"{tmp_path}/"]) == 2
    assert "is damaged; name a new folder." in capsys.readouterr().err


def test_a_folder_that_is_replaced_keeps_no_class_of_before(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4))
    labelled = [(seed, label) for label in (0, 1) for seed in (0, 1)]
    for keys, overwrite in ((labelled, False), ([(0, 0)], True), ([(0, None)], True)):
        folder = ImageFolder(tmp_path, format="png", made_by={}, overwrite=overwrite)
        if overwrite:
            (tmp_path / "00001" / "mine.txt").write_text("mine")  # stays, and its folder
        folder.write(keys, lambda _: image, lambda _: None)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*"))
    assert names == [".dsconvert-images.json", "00001", "00001/mine.txt", "seed00000000.png"]


@pytest.mark.slow
def test_a_grid_too_wide_for_its_format_is_refused_after_one_image(
    plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = painted(monkeypatch), tmp_path / "a.jpg"
    words = ["generate", plain, "--seeds", "0-1099", "--out", str(out)]
    assert main([*words, "--columns", "1100"]) == 2
    said = capsys.readouterr().err
    assert "would be 70400 x 64 pixels, and JPEG holds at most 65500" in said
    assert said.endswith("write a .png, or fewer images, or fewer --columns.\n")
    assert made == [0]
    assert main([*words, "--columns", "1"]) == 2
    assert "or more --columns" in capsys.readouterr().err
    assert main(["compare", plain, plain, *words[2:]]) == 2
    assert "write a .png, or fewer --seeds." in capsys.readouterr().err
    # Columns without an image are left out; a path with blanks is one line.
    out = tmp_path / ("a folder with blanks " * 6) / "a grid.png"
    out.parent.mkdir()
    assert main([*words[:2], "--columns", "100000000", "--seeds", "0", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote 1 image to {out}\n"
    assert pixels(out).shape == (64, 64, 3)


@pytest.mark.slow
def test_a_data_set_with_classes(classes: str, tmp_path: Path) -> None:
    archive, folder = tmp_path / "set.zip", tmp_path / "set"
    words = ["generate", classes, "--seeds", "4,1", "--class", "0,2", "--out"]
    assert main([*words, str(archive)]) == 0
    assert main([*words, f"{folder}/"]) == 0
    with zipfile.ZipFile(archive) as read:
        names = [f"00000/img{i:08d}.png" for i in range(4)]
        assert read.namelist() == [*names, "dataset.json"]
        labels = json.loads(read.read("dataset.json"))["labels"]
        assert labels == [[n, c] for n, c in zip(names, (0, 0, 2, 2), strict=True)]
        third = pixels(read.read(names[2]))
    assert np.array_equal(third, pixels(folder / "00002" / "seed00000004.png"))
    for path in (archive, folder):
        found = open_images(path, resolution=64, conditional=True)
        assert found.labels is not None
        assert sorted(found.labels.tolist()) == [0, 0, 2, 2]
    assert main(["generate", classes, "--class", "2-3", "--out", f"{tmp_path / 'no'}/"]) == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", pytest.param("a.webm", marks=pytest.mark.extended)])
def test_a_video(name: str, plain: str, tmp_path: Path, capsys) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    out = tmp_path / name
    words = ["generate", plain, "--seeds", "0-2", "--frames", "4", "--fps", "10", "--out", str(out)]
    assert main(words) == 0
    frames = list(ffmpeg.read_frames(str(out)))
    assert frames[0]["size"] == (64, 64)
    assert frames[0]["fps"] == 10
    assert len(frames) == 1 + 12
    sheet = tmp_path / "a.png"
    assert main(["generate", plain, "--seeds", "0", "--out", str(sheet)]) == 0
    first = np.frombuffer(frames[1], np.uint8).reshape(64, 64, 3)
    # The encoder loses a little, and half of the colours' resolution.
    assert np.abs(first.astype(float) - pixels(sheet)).mean() < 12
    assert main([*words[:3], "5", *words[4:], "--overwrite"]) == 2
    assert "give --seeds two or more" in capsys.readouterr().err


def test_a_video_without_the_package(plain: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert main(["generate", plain, "--out", str(tmp_path / "a.mp4")]) == 2
    assert "imageio-ffmpeg" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "out"),
    [
        ("--fps=3", "a.png"),
        ("--no-loop", "a.zip"),
        ("--columns=2", "a/"),
        ("--format=png", "a.mp4"),
    ],
)
def test_options_of_another_output_are_refused(option: str, out: str, tmp_path, capsys) -> None:
    assert main(["generate", "no.pkl", option, "--out", f"{tmp_path}/{out}"]) == 2
    assert f"{option.split('=')[0]} is for" in capsys.readouterr().err


def test_a_walk_keeps_the_length_of_normal_latents() -> None:
    a, b = (torch.randn(1, 512, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    label, kind = torch.tensor([[0.0, 1.0]]), torch.tensor([3])
    start, end = (a, label, kind), (b, label, torch.tensor([4]))
    assert torch.equal(between(start, end, 0.0)[0], a)
    assert torch.equal(between(start, end, 1.0)[0], b)
    for share in (0.25, 0.5, 0.75):
        z, c, k = between(start, end, share)
        assert z.norm() == pytest.approx(float((1 - share) * a.norm() + share * b.norm()), rel=0.02)
        assert torch.equal(c, label)
        assert int(k) == (3 if share < 0.5 else 4)
    for loop in (False, True):
        path = list(walk([start, end, start], frames=3, loop=loop))
        assert len(path) == walk_length(3, frames=3, loop=loop)
        assert torch.equal(path[3][0], b)
    opposite = between((a,), (-a,), 0.5)[0]
    assert torch.allclose(opposite, torch.zeros_like(a))
