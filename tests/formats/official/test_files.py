"""Real files: the official image, round trips, what saving keeps, foreign files."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from dsconvert.errors import (
    AdapterError,
    CorruptSnapshotError,
    ForeignFileError,
    OutputError,
    SnapshotError,
    UnsupportedSnapshotError,
    UsageError,
)
from dsconvert.formats.official import inspect_snapshot, load_snapshot, new_snapshot, save_snapshot
from dsconvert.formats.official.build import Builder
from dsconvert.formats.official.policy import examine
from dsconvert.formats.official.read import parse
from dsconvert.safepickle.encode import integer
from dsconvert.safepickle.machine import Machine
from dsconvert.safepickle.nodes import Blob, DictNode, children
from dsconvert.safepickle.source import Cursor, Source
from dsconvert.safepickle.storage import is_storage
from dsconvert.safepickle.walk import Walk
from dsconvert.safepickle.write import Writer
from tests.formats.official.conftest import shared_folder, small_generator

if TYPE_CHECKING:
    from pathlib import Path

SHARED = sorted(shared_folder().glob("snapshots/*.pkl"))
needs_shared = pytest.mark.skipif(not SHARED, reason=f"no snapshots in {shared_folder()}")


def _but(*further: str) -> list[Any]:
    """The snapshots; CI leaves out those whose kind another one has."""
    return [
        pytest.param(p, id=p.stem, marks=[pytest.mark.extended] if p.stem in further else [])
        for p in SHARED
    ]


def picture(model: nn.Module, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return model(z, c)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("path", _but("fastgan-256-full", "stamps-128-ngf32"))
def test_the_official_image(path: Path, tmp_path: Path) -> None:
    expected = torch.load(path.with_suffix(".expected.pt"), weights_only=True)
    snap = load_snapshot(path)
    image = picture(snap.generator, expected["z"], expected["c"])
    assert (image - expected["image"].float()).abs().max() <= 1e-3

    out = tmp_path / "again.pkl"
    modules = {k: snap.module(k) for k in ("G", "G_ema") if snap.has_module(k)}
    save_snapshot(snap, modules, out)
    again = load_snapshot(out)
    assert again.keys == snap.keys
    assert again.config == snap.config
    assert torch.equal(picture(again.generator, expected["z"], expected["c"]), image)
    for key, module in modules.items():
        other = again.module(key)
        ours, theirs = module.state_dict(), other.state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        flags = [m.training for m in module.modules()]
        assert flags == [m.training for m in other.modules()]


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("path", _but("fastgan-256-full", "fastgan-256-dill"))
def test_config_is_read_off(path: Path) -> None:
    config = load_snapshot(path).config
    assert config["cfg"] == ("fastgan_lite" if "lite" in path.stem else "fastgan")
    assert config["resolution"] == (128 if "128" in path.stem else 256)
    assert config["ngf"] == (32 if "ngf32" in path.stem else 4)
    assert config["classes"] == (10 if "cond10" in path.stem else 0)


@pytest.mark.slow
@needs_shared
def test_what_is_not_replaced_is_written_back_as_it_was(shared: Path, tmp_path: Path) -> None:
    path = shared / "fastgan-256-full.pkl"
    snap = load_snapshot(path)
    out = tmp_path / "out.pkl"
    save_snapshot(snap, snap.generator, out)
    before = {e.key: e for e in inspect_snapshot(path).entries}
    after = {e.key: e for e in inspect_snapshot(out).entries}
    for key in ("G", "D", "training_set_kwargs", "progress"):
        assert before[key] == after[key]

    # Every raw storage of the discriminator is there, byte for byte.
    def storages(file: Path) -> list[bytes]:
        parsed = parse(file)
        _, found = examine(parsed)
        walk = Walk(parsed.source)
        walk.add([("D", dict(parsed.root.items)["D"])])
        refs = [found.get(n) for n in walk.nodes if is_storage(n)]
        return [parsed.source.read_at(r.offset, r.nbytes) for r in refs]

    assert len(storages(path)) > 300
    assert storages(path) == storages(out)
    # Our loader refuses to build it: it is carried only.
    with pytest.raises(UnsupportedSnapshotError, match="ProjectedDiscriminator"):
        snap.module("D")


@pytest.mark.slow
@pytest.mark.parametrize(
    # What 1 and 3 write, 0, 2 and 4 write too.
    "protocol",
    [0, 2, 4, 5, *(pytest.param(p, marks=pytest.mark.extended) for p in (1, 3))],
)
def test_a_file_that_is_only_carried_keeps_its_meaning(
    small: Path, tmp_path: Path, protocol: int
) -> None:
    """Everything the pickler of Python writes for plain data survives our reader and writer."""
    data: dict[str, object] = {
        "none": None,
        "ints": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**40, -(2**200), 3**400],
        "floats": [0.5, -1e300, float("inf")],
        "texts": ["", "é" * 200, "x" * 30000, "\ud800"],
        "bytes": [b"", b"a" * 64, b"b" * 65, b"c" * 300, bytearray(b"d" * 9)],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [{1, 2}, frozenset({3}), set()],
        "many": list(range(2500)),
        "dict": {i: str(i) for i in range(2500)},
        "flags": [True, False],
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"),
        "complex": 1 + 2j,
        "scalar": np.float64(0.5),
        "array-type": np.dtype("<i4"),
    }
    shared_list = [1]
    data["twice"] = [shared_list, shared_list]
    ring: list[object] = []
    ring.append(ring)
    path, out = tmp_path / f"in{protocol}.pkl", tmp_path / f"out{protocol}.pkl"
    array = np.arange(40, dtype=np.float32).reshape(5, 8)
    entries = {"carried": data, "ring": ring, "array": array}
    body = pickle.dumps(entries, protocol=protocol)
    # One file: G_ema from the small snapshot, the rest from Python's own pickler.
    path.write_bytes(_with_entries(small, body, tmp_path))
    snap = load_snapshot(path)
    save_snapshot(snap, snap.generator, out)
    with out.open("rb") as file:
        loaded = pickle.load(file)
    assert loaded["carried"] == data
    assert loaded["carried"]["twice"][0] is loaded["carried"]["twice"][1]
    assert loaded["ring"][0] is loaded["ring"]
    assert np.array_equal(loaded["array"], array)


def _with_entries(small: Path, body: bytes, tmp_path: Path) -> bytes:
    """The small snapshot with the entries of another pickle, written by our node writer."""
    extra = tmp_path / "extra.pkl"
    extra.write_bytes(body)
    source = Source(extra)
    parsed = parse(small)
    both = TwoFiles(parsed.source, source)
    carried = both.shifted(Machine(Cursor(source)).run())
    out = io.BytesIO()
    Writer(out, both).write(DictNode([*parsed.root.items, *carried.items]))  # type: ignore[arg-type]
    return out.getvalue()


class TwoFiles:
    """Two files read as one, the second behind the first."""

    def __init__(self, first: Source, second: Source) -> None:
        self.first, self.second = first, second

    def shifted(self, root: DictNode) -> DictNode:
        """Move the second file's byte strings behind the first file."""
        walk = Walk(self.second)
        walk.add([("", root)])
        blobs = {id(c): c for n in walk.nodes for _, c in children(n) if type(c) is Blob}
        for blob in blobs.values():
            blob.offset += self.first.size
        return root

    def readinto_at(self, offset: int, view: memoryview) -> None:
        """Read from whichever file holds the offset."""
        if offset < self.first.size:
            self.first.readinto_at(offset, view)
        else:
            self.second.readinto_at(offset - self.first.size, view)


@pytest.mark.slow
def test_saving_into_the_file_that_is_read(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.pkl"
    path.write_bytes(small.read_bytes())
    snap = load_snapshot(path)
    with pytest.raises(OutputError, match="exists"):
        save_snapshot(snap, snap.generator, path)
    save_snapshot(snap, snap.generator, path, overwrite=True)
    assert load_snapshot(path).config == snap.config
    # The snapshot still reads from the file it opened, though another has its name now.
    assert isinstance(snap.module("G"), nn.Module)


@pytest.mark.slow
def test_no_half_file_is_left(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snap = load_snapshot(small)
    out = tmp_path / "sub" / "out.pkl"
    with pytest.raises(OutputError, match="does not exist"):
        save_snapshot(snap, snap.generator, out)
    out.parent.mkdir()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        save_snapshot(snap, snap.generator, out)
    assert list(out.parent.iterdir()) == []
    out.write_bytes(b"precious")
    with pytest.raises(OutputError):
        save_snapshot(snap, snap.generator, out, overwrite=True)
    assert out.read_bytes() == b"precious"
    with pytest.raises(OutputError, match="folder"):
        save_snapshot(snap, snap.generator, out.parent, overwrite=True)


def test_a_file_changed_in_place_is_noticed(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.pkl"
    path.write_bytes(small.read_bytes())
    snap = load_snapshot(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(SnapshotError, match="changed"):
        _ = snap.generator
    with pytest.raises(SnapshotError, match="changed"):
        save_snapshot(snap, small_generator(), tmp_path / "out.pkl")


@pytest.mark.slow
def test_converted_children_load(tmp_path: Path) -> None:
    """Children that are other torch.nn modules, or missing, load and give the same image."""
    model = small_generator(resolution=128)
    for name in ("feat_8", "feat_64"):
        block = getattr(model.synthesis, name)
        old = block[1]
        pair = nn.Sequential()
        pair.add_module(
            "depthwise",
            nn.Conv2d(old.in_channels, 2 * old.in_channels, 3, padding=1,
                      groups=old.in_channels, bias=False),
        )  # fmt: skip
        pair.add_module("pointwise", nn.Conv2d(2 * old.in_channels, old.out_channels, 1))
        block[1] = pair
        block[0] = nn.Identity()
        up = nn.ConvTranspose2d(old.in_channels, old.in_channels, 4, 2, 1)
        block[1] = nn.Sequential(up, pair)
    del model.synthesis.feat_256, model.synthesis.se_256
    model.eval().requires_grad_(False)
    z, c = torch.randn(2, 8), torch.zeros(2, 0)
    out = tmp_path / "converted.pkl"
    save_snapshot(new_snapshot(model), model, out)
    snap = load_snapshot(out)
    again = snap.generator
    assert torch.equal(picture(again, z, c), picture(model, z, c))
    assert [type(m).__name__ for m in again.modules()] == [
        type(m).__name__ for m in model.modules()
    ]
    assert snap.config["ngf"] == 2
    pickle.loads(pickle.dumps(again))
    copy.deepcopy(again)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float16, marks=pytest.mark.extended), torch.bfloat16, torch.float64],
)
def test_dtype_mode_gradients_and_ties_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    model = small_generator().to(dtype)
    model.synthesis.feat_8[2] = model.synthesis.feat_8[6]  # one module in two places
    model.synthesis.feat_16[2].weight = model.synthesis.feat_32[2].weight  # one parameter in two
    model.synthesis.feat_16[3].train()
    model.synthesis.feat_16[3].weight.requires_grad_(True)
    out = tmp_path / "kept.pkl"
    save_snapshot(new_snapshot(model), model, out)
    snap = load_snapshot(out)
    again = snap.generator.synthesis
    assert again.feat_8[2] is again.feat_8[6]
    assert again.feat_16[2].weight is again.feat_32[2].weight
    assert [m.training for m in model.modules()] == [m.training for m in snap.generator.modules()]
    wants = {k: p.requires_grad for k, p in model.named_parameters()}
    assert wants == {k: p.requires_grad for k, p in snap.generator.named_parameters()}
    assert snap.generator is snap.generator
    # Computed in float32, written back in their own type, to the last bit.
    assert {p.dtype for p in snap.generator.parameters()} == {torch.float32}
    save_snapshot(snap, snap.generator, tmp_path / "again.pkl")
    back = load_snapshot(tmp_path / "again.pkl")
    raw = Builder(back.source, back.adapter).module(back.entries["G_ema"], "G_ema").state_dict()
    for name, value in model.state_dict().items():
        assert raw[name].dtype == value.dtype, name
        assert torch.equal(raw[name], value), name


@pytest.mark.slow
def test_weight_norm_survives(tmp_path: Path) -> None:
    model = small_generator()
    with pytest.warns(FutureWarning):
        model.synthesis.to_big = torch.nn.utils.weight_norm(nn.Conv2d(2, 3, 3, padding=1))
    model.eval()
    z, c = torch.randn(2, 8), torch.zeros(2, 0)
    out = tmp_path / "wn.pkl"
    save_snapshot(new_snapshot(model), model, out)
    assert torch.allclose(
        picture(load_snapshot(out).generator, z, c), picture(model, z, c), atol=1e-6
    )


def test_what_the_official_code_could_not_load_is_not_written(tmp_path: Path) -> None:
    class Mine(nn.Conv2d):
        pass

    model = small_generator()
    snap, out = new_snapshot(model), tmp_path / "out.pkl"
    good = model.synthesis.to_big
    model.synthesis.to_big = Mine(2, 3, 3)
    with pytest.raises(SnapshotError, match=r"synthesis\.to_big.*Mine"):
        save_snapshot(snap, model, out)
    model.synthesis.to_big = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))
    with pytest.raises(SnapshotError, match="parametrized"):
        save_snapshot(snap, model, out)
    model.synthesis.to_big = good
    handle = good.register_forward_hook(lambda *a: None)
    with pytest.raises(SnapshotError, match="hooks"):
        save_snapshot(snap, model, out)
    handle.remove()
    model.synthesis.note = object()
    with pytest.raises(SnapshotError, match="note"):
        save_snapshot(snap, model, out)
    assert not out.exists()
    with pytest.raises(AdapterError):
        new_snapshot(nn.Linear(1, 1))


def test_usage_errors(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="G_ema"):
        load_snapshot(small, drop=("G_ema",))
    with pytest.raises(UsageError, match="nothing_here"):
        load_snapshot(small, drop=("nothing_here",))
    snap = load_snapshot(small)
    with pytest.raises(UsageError, match="no entry"):
        snap.module("X")
    with pytest.raises(UsageError, match="no module"):
        snap.module("training_set_kwargs")
    with pytest.raises(UsageError, match="D"):
        save_snapshot(snap, {"D": nn.Module()}, tmp_path / "out.pkl")


def test_inspect_reads_no_tensor(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Source, "readinto_at", never)
    info = inspect_snapshot(small)
    assert info.safe
    assert info.adapter == "projected_gan"
    entries = {e.key: e for e in info.entries}
    assert list(entries) == ["G", "D", "G_ema", "training_set_kwargs"]
    assert entries["G_ema"].parameters == info.config["parameters"]
    json.dumps(info.as_dict())


FOREIGN: dict[str, tuple[bytes, type[Exception], str]] = {
    "empty": (b"", ForeignFileError, "empty"),
    "zeros": (b"\0" * 5000, ForeignFileError, "zeros"),
    "text": (b"Dear reader,\nthis is no snapshot.\n", ForeignFileError, "text file"),
    "utf8": ("Grüße aus Köln\n".encode(), ForeignFileError, "text file"),
    "html": (b"\n<!DOCTYPE html><html><body>404", ForeignFileError, "web page"),
    "xml": (b'<?xml version="1.0"?><Error/>', ForeignFileError, "web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", ForeignFileError, "git lfs pull"),
    "json": (b'{"a": 1}', ForeignFileError, "text file"),
    "gzip": (gzip.compress(b"x"), ForeignFileError, "gzip"),
    "png": (b"\x89PNG\r\n\x1a\n", ForeignFileError, "PNG"),
    "safetensors": (b'\x08\0\0\0\0\0\0\0{"a":{}}', ForeignFileError, "safetensors"),
    "noise": (bytes(range(255, 0, -1)), ForeignFileError, "no pickle"),
    "protocol": (b"\x80\x09" + b"x" * 20, ForeignFileError, "protocol 9"),
    "one-byte": (b"\x80", CorruptSnapshotError, "one byte"),
    "not-a-dict": (pickle.dumps([1, 2]), UnsupportedSnapshotError, "not of a dict"),
    "other-dict": (pickle.dumps({"a": 1}), UnsupportedSnapshotError, "no module G_ema"),
    "text-pickle": (pickle.dumps({"a": 1}, protocol=0), UnsupportedSnapshotError, "G_ema"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_get_their_own_sentence(name: str, tmp_path: Path) -> None:
    data, kind, words = FOREIGN[name]
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    with pytest.raises(kind, match=words) as caught:
        load_snapshot(path)
    assert str(path) in str(caught.value)


def test_more_foreign_files(small: Path, tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match="does not exist"):
        load_snapshot(tmp_path / "missing.pkl")
    with pytest.raises(ForeignFileError, match="folder"):
        load_snapshot(tmp_path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "zip.pt")
    with pytest.raises(UnsupportedSnapshotError, match=r"torch\.save"):
        load_snapshot(tmp_path / "zip.pt")
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedSnapshotError, match="old format"):
        load_snapshot(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.pkl", b"x")
    with pytest.raises(ForeignFileError, match="zip archive"):
        load_snapshot(tmp_path / "a.zip")
    data = small.read_bytes()
    for length in (2, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pkl").write_bytes(data[:length])
        with pytest.raises(CorruptSnapshotError, match=r"truncated|early"):
            load_snapshot(tmp_path / "cut.pkl")


@pytest.mark.parametrize("value", [255, 256, -(1 << 31), 1 << 2038, -(1 << 2039), 1 << 9000])
def test_whole_numbers_of_any_size_are_written(value: int) -> None:
    assert pickle.loads(b"\x80\x04" + integer(value) + b".") == value


def test_entries_that_share_everything_are_counted_for_a_limited_time(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsconvert.formats.official.info._MAX_WALKED", 100)
    with pytest.raises(CorruptSnapshotError, match="refer to the same objects"):
        inspect_snapshot(small)
