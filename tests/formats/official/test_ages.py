"""Files of other torch versions and devices, made by editing a real file's nodes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
import torch

from dsconvert.errors import CorruptSnapshotError, DsconvertError, UnsafeSnapshotError
from dsconvert.formats.official import load_snapshot, new_snapshot, save_snapshot
from dsconvert.safepickle.encode import storage_header
from dsconvert.safepickle.nodes import DictNode, Record
from tests.formats.official import hostile
from tests.formats.official.conftest import small_generator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def every_module(node: Record) -> list[Record]:
    found, stack = [], [node]
    while stack:
        at = stack.pop()
        found.append(at)
        stack.extend(v for _, v in hostile.items(hostile.get(at, "_modules")) if v is not None)
    return found


def without(node: Record, *names: str) -> None:
    state = hostile.state(node)
    state.items[:] = [(k, v) for k, v in state.items if k not in names]


def image(path: Path) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return load_snapshot(path).generator(torch.ones(2, 8), torch.zeros(2, 0))


@pytest.mark.slow
def test_a_file_of_2021(small: Path, tmp_path: Path) -> None:
    """Torch 1.7 knew fewer hook tables and fewer attributes of Upsample."""

    def age(root: hostile.Root, _: str) -> None:
        for node in every_module(root["G_ema"]):
            without(
                node,
                "_backward_pre_hooks",
                "_is_full_backward_hook",
                "_forward_hooks_with_kwargs",
                "_forward_hooks_always_called",
                "_forward_pre_hooks_with_kwargs",
                "_state_dict_pre_hooks",
                "_load_state_dict_post_hooks",
                "recompute_scale_factor",
                "align_corners",
                "_reversed_padding_repeated_twice",
            )

    old = tmp_path / "old.pkl"
    old.write_bytes(hostile.edited(small, age, ""))
    assert old.stat().st_size < small.stat().st_size
    assert torch.equal(image(old), image(small))
    # What is written from it has everything that today's torch wants.
    snap = load_snapshot(old)
    save_snapshot(snap, snap.generator, tmp_path / "new.pkl")
    upsample = load_snapshot(tmp_path / "new.pkl").generator.synthesis.feat_8[0]
    assert upsample.recompute_scale_factor is None


@pytest.mark.slow
def test_wrapped_hooks_of_newer_torch(small: Path, tmp_path: Path) -> None:
    def wrap(root: hostile.Root, _: str) -> None:
        for node in every_module(root["G_ema"]):
            pairs = hostile.items(hostile.get(node, "_load_state_dict_pre_hooks"))
            pairs[:] = [(k, hostile._wrapped(v)) for k, v in pairs]

    path = tmp_path / "wrapped.pkl"
    path.write_bytes(hostile.edited(small, wrap, ""))
    assert torch.equal(image(path), image(small))


@pytest.mark.slow
def test_every_device_becomes_the_cpu(small: Path, tmp_path: Path) -> None:
    data = small.read_bytes()
    cuda = data.replace(hostile.s("cpu") + b"K", hostile.s("xpu") + b"K")
    assert cuda.count(hostile.s("xpu")) > 10
    path = tmp_path / "xpu.pkl"
    path.write_bytes(cuda)
    assert torch.equal(image(path), image(small))
    assert all(p.device.type == "cpu" for p in load_snapshot(path).generator.parameters())


def with_header(small: Path, change: Callable[[bytes], bytes]) -> bytes:
    """The small file, its first bias under a changed storage header of the same meaning."""
    head = storage_header("FloatStorage", 32, "0")
    out = io.BytesIO()
    parsed = hostile.parse(small)
    root = dict(parsed.root.items)
    for node in every_module(root["G_ema"]):
        if node.func.name == "BatchNorm2d":
            pairs = hostile.items(hostile.get(node, "_parameters"))
            tensor = dict(pairs)["bias"].args[0]
            if tensor.args[2] == (32,):
                raw = change(head) + torch.full((32,), 2.0).numpy().tobytes()
                tensor.args[0].args = (raw,)
                break
    else:
        raise LookupError
    hostile.Writer(out, parsed.source).write(DictNode(list(root.items())))
    return out.getvalue()


def test_devices_with_an_index_and_a_memoised_header(small: Path, tmp_path: Path) -> None:
    """``cuda:N``, and headers with torch's own PUT opcodes."""
    path = tmp_path / "cuda.pkl"
    path.write_bytes(
        with_header(small, lambda h: h.replace(hostile.s("cpu"), hostile.s("cuda:7") + b"q\x03"))
    )
    biases = [p for k, p in load_snapshot(path).generator.named_parameters() if "bias" in k]
    assert sum(bool((b == 2.0).all()) for b in biases) == 1


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (b"M\xe9\x03.", b"M\xea\x03.", CorruptSnapshotError),
        (hostile.s("little_endian") + b"\x88", hostile.s("little_endian") + b"\x89",
         CorruptSnapshotError),
        (hostile.s("storage") + b"c", hostile.s("storagf") + b"c", CorruptSnapshotError),
        (b"ctorch\nFloat", b"ctorch\nDouble", CorruptSnapshotError),
        (b"ctorch\nFloat", b"cposix\nFloat", UnsafeSnapshotError),
        (b"NtQ.", b"K\x00tQ.", CorruptSnapshotError),
        (b"K\x20N", b"K\x21N", CorruptSnapshotError),
    ],
)  # fmt: skip
def test_a_header_that_is_not_torch_s(
    small: Path, tmp_path: Path, old: bytes, new: bytes, error: type[DsconvertError]
) -> None:
    path = tmp_path / "header.pkl"
    assert old in storage_header("FloatStorage", 32, "0")
    path.write_bytes(with_header(small, lambda h: h.replace(old, new)))
    with pytest.raises(error):
        load_snapshot(path)


@pytest.mark.slow
def test_wrong_shapes_and_missing_parts(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.pkl"

    def check(edit: Callable[[hostile.Root], None], words: str) -> None:
        path.write_bytes(hostile.edited(small, lambda root, _: edit(root), ""))
        with pytest.raises(CorruptSnapshotError, match=words):
            load_snapshot(path)

    conv = "Conv2d"
    check(lambda r: hostile.put(hostile.find(r["G_ema"], conv), "in_channels", 7), r"shape|built")
    check(lambda r: hostile.put(hostile.find(r["G_ema"], conv), "in_channels", 1 << 40), "number")
    check(lambda r: hostile.put(hostile.find(r["G_ema"], conv), "in_channels", True), "number")
    check(lambda r: hostile.put(hostile.find(r["G_ema"], conv), "padding_mode", "x"), "one of")
    check(lambda r: hostile.put(hostile.find(r["G_ema"], conv), "stride", (0, 1)), "stride")
    check(lambda r: hostile.put(r["G_ema"], "img_resolution", 100), "img_resolution 100")
    check(lambda r: hostile.put(r["G_ema"], "z_dim", "8"), "z_dim")
    check(lambda r: hostile.put(r["G_ema"], "training", 1), "training")
    check(
        lambda r: hostile.put(hostile.find(r["G_ema"], "BatchNorm2d"), "_buffers", DictNode()),
        "lacks running_mean",
    )
    check(
        lambda r: hostile.items(hostile.get(r["G_ema"], "_modules")).append(
            ("forward", hostile.module())
        ),
        "name",
    )
    check(
        lambda r: hostile.items(hostile.get(r["G_ema"], "_modules")).append(
            ("a.b", hostile.module())
        ),
        "name",
    )

    def remove(root: hostile.Root) -> None:
        synthesis = hostile.find(root["G_ema"], "FastganSynthesis")
        children = hostile.items(hostile.get(synthesis, "_modules"))
        children[:] = [(k, v) for k, v in children if k != "feat_64"]

    check(remove, "lacks feat_64")


@pytest.mark.slow
def test_a_file_without_discriminator_gets_one_for_the_official_loader(tmp_path: Path) -> None:
    model = small_generator()
    path, out = tmp_path / "full.pkl", tmp_path / "out.pkl"
    save_snapshot(new_snapshot(model), model, path)
    path.write_bytes(hostile.edited(path, lambda root, _: root.pop("D"), ""))
    snap = load_snapshot(path)
    assert "D" not in snap.keys
    save_snapshot(snap, model, out)
    assert "D" in load_snapshot(out).keys
