"""Pictures and arrays as inputs: crops, ranges, the held-out part, and what can't be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsconvert import array_inputs, picture_inputs
from dsconvert.core.fit_layers import BATCH
from dsconvert.core.fit_model import fit_to_original
from dsconvert.errors import DataError, UsageError
from dsconvert.matching.batches import HELD_OUT, SCALES, TRAINING
from tests.upscalers import picture_folder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "pictures")


def test_crops_are_parts_of_the_pictures(folder: Path) -> None:
    inputs = picture_inputs(folder, size=16)
    (batch,) = inputs(6, seeded())
    assert batch.shape == (6, 3, 16, 16)
    assert batch.dtype == torch.float32
    whole = [
        torch.from_numpy(np.asarray(Image.open(folder / n)).copy()).permute(2, 0, 1).float() / 255
        for n in inputs.names
    ]
    for crop in batch:
        found = any(
            torch.equal(picture[:, t : t + 16, s : s + 16], crop)
            for picture in whole
            for t in range(picture.shape[1] - 15)
            for s in range(picture.shape[2] - 15)
        )
        assert found


def test_they_follow_from_the_seed(folder: Path) -> None:
    one, two = (picture_inputs(folder, size=16) for _ in range(2))
    assert torch.equal(one(3, seeded(5))[0], two(3, seeded(5))[0])
    assert not torch.equal(one(3, seeded(5))[0], one(3, seeded(6))[0])


def test_ranges_and_channels(folder: Path) -> None:
    unit, signed = (picture_inputs(folder, size=8, values=v) for v in ("unit", "signed"))
    assert torch.allclose(unit(4, seeded())[0] * 2 - 1, signed(4, seeded())[0])
    assert picture_inputs(folder, size=8, channels=1)(4, seeded())[0].shape == (4, 1, 8, 8)


@pytest.mark.parametrize(("share", "judging"), [(0.2, 2), (0.01, 1), (0.99, 9), (1.0, 10)])
def test_no_picture_is_in_both_parts(folder: Path, share: float, judging: int) -> None:
    inputs = picture_inputs(folder, size=16, held_out=share)
    assert len(inputs.others) == judging
    assert not set(inputs.names) & set(inputs.others)
    assert len(inputs.names) + judging == 10
    assert inputs.held_out.names == inputs.others
    assert inputs.held_out.held_out is inputs.held_out
    # Another crop size (another command) leaves the parts as they are.
    assert picture_inputs(folder, size=8, held_out=share).others == inputs.others


def test_the_fit_holds_out_what_the_sampler_holds_out(folder: Path, monkeypatch: object) -> None:
    """The first batch, which judges, is of the held-out part; all others are of the first part."""
    from dsconvert.core import fit_model
    from tests.upscalers import upscaler

    seen: list[tuple] = []
    monkeypatch.setattr(fit_model, "fit_layers", lambda **k: seen.extend(k["batches"]))

    class Marked:
        def __init__(self, mark: float) -> None:
            self.mark = mark

        def __call__(self, n: int, generator: torch.Generator) -> tuple:
            return (torch.full((n, 3, 8, 8), self.mark),)

    inputs = Marked(1.0)
    inputs.held_out = Marked(2.0)
    model = upscaler()
    from dsconvert import analyse, plan

    analysis = analyse(model, inputs=inputs)
    fit_to_original(
        upscaler(), model, analysis.sites, analysis.graph, plan(model, inputs=inputs), {}, inputs,
        latents=3 * BATCH, factors=True, seed=0, progress=None,
    )  # fmt: skip
    assert [float(b[0].flatten()[0]) for b in seen] == [2.0, 1.0, 1.0]


def test_the_polish_judges_by_held_out_inputs() -> None:
    from dsconvert.config.distill import DistillConfig
    from dsconvert.matching.batches import TeacherBatches

    class Both:
        def __call__(self, n: int, generator: torch.Generator) -> tuple:
            return (torch.ones(n, 3, 8, 8),)

        def held_out(self, n: int, generator: torch.Generator) -> tuple:
            return (torch.full((n, 3, 8, 8), 2.0),)

    class Objective:
        student = torch.nn.Identity()

        def run_teacher(self, placed: tuple, seed: int, *, maps: bool) -> float:
            return float(placed[0].mean())

    batches = TeacherBatches.__new__(TeacherBatches)
    batches.objective, batches.inputs, batches.config = Objective(), Both(), DistillConfig(steps=1)
    batches.device = torch.device("cpu")
    assert [batches.target(n) for n in (HELD_OUT, SCALES, TRAINING)] == [2.0, 1.0, 1.0]


def test_a_picture_that_is_left_out_moves_no_other(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "mixed", count=30)
    for i in range(0, 30, 3):
        Image.open(folder / f"{i:02}.png").resize((20, 20)).save(folder / f"{i:02}.png")
    small, large = (picture_inputs(folder, size=side) for side in (16, 32))
    assert len(large.skipped) == 10
    assert set(large.names) < set(small.names)
    assert set(large.others) < set(small.others)


def test_what_can_not_be_used(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (10, 90)).save(folder / "narrow.png")
    Image.new("F", (90, 90)).save(folder / "float.tif")
    inputs = picture_inputs(folder, size=16)
    assert len(inputs.names) + len(inputs.others) == 10
    left_out = sorted(s.split(" ")[0] for s in inputs.skipped)
    assert left_out == ["broken.png", "float.tif", "narrow.png"]
    with pytest.raises(DataError, match=r"0 images to fit to and 0 to judge by, of 64 pixels"):
        picture_inputs(folder, size=64)
    with pytest.raises(DataError, match="no data at"):
        picture_inputs(tmp_path / "missing")
    with pytest.raises(UsageError, match="none is left to fit to"):
        picture_inputs(folder, size=16, held_out=1)(1, seeded())
    for wrong in ({"size": 0}, {"channels": 2}, {"values": "half"}, {"held_out": 0.0}):
        with pytest.raises(UsageError):
            picture_inputs(folder, **wrong)


def test_a_picture_that_breaks_off_is_named(folder: Path) -> None:
    content = (folder / "00.png").read_bytes()
    (folder / "00.png").write_bytes(content[: len(content) // 2])
    inputs = picture_inputs(folder, size=16)
    part = inputs if "00.png" in inputs.names else inputs.held_out
    with pytest.raises(DataError, match=r"00\.png .* can't be decoded"):
        part(10, seeded())


def test_arrays_are_arguments(tmp_path: Path) -> None:
    first = np.arange(20, dtype=np.float64).reshape(10, 2)
    np.savez(tmp_path / "in.npz", z=first, c=np.arange(10))
    inputs = array_inputs(tmp_path / "in.npz")
    z, c = inputs(4, seeded())
    assert z.dtype == torch.float32
    assert c.dtype == torch.int64
    assert torch.equal(z[:, 0], 2.0 * c)
    parts = set(inputs.rows.tolist()), set(inputs.others.tolist())
    assert parts[0] | parts[1] == set(range(10))
    assert len(parts[1]) == 2
    assert set(inputs.held_out(5, seeded())[1].tolist()) == parts[1]
    assert torch.equal(array_inputs(tmp_path / "in.npz").others, inputs.others)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int32])
def test_arrays_of_small_integers_are_labels(tmp_path: Path, kind: type) -> None:
    labels = np.arange(10).astype(kind)
    np.savez(tmp_path / "in.npz", z=np.zeros((10, 2)), c=labels)
    inputs = array_inputs(tmp_path / "in.npz")
    _, drawn = inputs(8, seeded())
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == set(inputs.rows.tolist())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((4, 2)), "b": np.zeros((5, 2))}, "same number of rows"),
        ({}, "no rows"),
        ({"a": np.zeros((4, 8, 8, 3), np.uint8)}, "8-bit"),
        ({"a": np.array([[1.0, np.nan]] * 3)}, "not finite"),
        ({"a": np.array(["x", "y"])}, "save numbers"),
        ({"a": np.array([object()] * 3)}, "can't be read"),
    ],
)
def test_arrays_that_can_not_be_used(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(DataError, match=message):
        array_inputs(tmp_path / "in.npz")


def test_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez_compressed(path, a=np.random.default_rng(0).random((100, 64)))
    good = path.read_bytes()
    np.save(tmp_path / "one.npy", np.zeros((4, 64)))
    one = (tmp_path / "one.npy").read_bytes()
    damaged = good[:300] + bytes(40) + good[340:]
    for content in (b"text", b"", one, good[:400], damaged, good.replace(b"PK\1\2", b"PK\1\3")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"in\.npz can't be read .*; write it with numpy.savez"):
            array_inputs(path)
    path.write_bytes(one)
    with pytest.raises(DataError, match="one array alone"):
        array_inputs(path)
    with pytest.raises(DataError, match="there is no file"):
        array_inputs(tmp_path / "missing.npz")
