"""Small files that would take much memory or time, and honest ones that look like them."""

from __future__ import annotations

import codecs
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dsconvert.cli import main
from dsconvert.errors import CorruptSnapshotError, UnsafeSnapshotError
from dsconvert.formats.checkpoint.places import mappings
from dsconvert.formats.checkpoint.read import read
from tests.formats.checkpoint.test_inert import Calls


def _shared_lists() -> Any:
    found: Any = [1]
    for _ in range(18):
        found = [found] * 8
    return found


def _shared_dicts() -> Any:
    found: Any = {}
    for _ in range(3):
        found = {f"k{i}": found for i in range(120)}
    return found


def _cycle() -> Any:
    found: list[Any] = []
    found.append({"again": found})
    return found


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "shared lists": (_shared_lists, "share their items"),
    "shared dicts": (_shared_dicts, "share their items"),
    "a cycle": (_cycle, "holds itself"),
    "an expanded tensor": (lambda: torch.zeros(1).expand(1 << 25), "repeat their elements"),
    "many expanded tensors": (
        lambda: [torch.zeros(1).expand(1 << 20) for _ in range(8)],
        "repeat their elements",
    ),
    "a byte array of a size": (lambda: Calls(bytearray, 1 << 40), "bytearray"),
    "bytes that double": (lambda: Calls(codecs.encode, "00", "hex"), "encode"),
    "bytes that are copied": (
        lambda: [Calls(bytearray, raw) for raw in [bytes(1 << 14)] * (1 << 12)], "its calls copy",
    ),
    "items that are copied": (
        lambda: [Calls(set, items) for items in [[0] * (1 << 14)] * (1 << 12)], "its calls copy",
    ),
    "a counter of a size": (lambda: Calls(Counter, 5), "Counter"),
    "a tensor of a size": (lambda: Calls(torch.FloatTensor, 1 << 20), "FloatTensor"),
    "a storage of a size": (lambda: Calls(torch.UntypedStorage, 1 << 20), "UntypedStorage"),
    "an expanded copy": (
        lambda: Calls(
            torch._utils._rebuild_device_tensor_from_cpu_tensor,
            torch.zeros(1).expand(1 << 20), torch.float32, "cpu", False,
        ),
        "_rebuild_device_tensor_from_cpu_tensor",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_content_that_is_larger_than_its_file(tmp_path: Path, name: str, form: str) -> None:
    make, said = HOSTILE[name]
    path = tmp_path / "x.pth"
    torch.save(
        {"w": torch.ones(2), "x": make()}, path, _use_new_zipfile_serialization=form == "zip"
    )
    with pytest.raises((CorruptSnapshotError, UnsafeSnapshotError), match=said):
        read(path, form)
    assert main(["inspect", str(path)]) == 2


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("entry", ["model", "optimizer"])
def test_a_whole_model_is_no_attack(tmp_path: Path, entry: str, form: str) -> None:
    made = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    content: dict[str, Any] = {"model": made, "optimizer": torch.optim.Adam(made.parameters())}
    path = tmp_path / "x.pth"
    torch.save(
        made if entry == "model" else {"weights": made.state_dict(), entry: content[entry]},
        path,
        _use_new_zipfile_serialization=form == "zip",
    )
    what = {"model": r"model \(torch\.nn", "optimizer": r"object \(torch\.optim"}[entry]
    with pytest.raises(UnsafeSnapshotError, match=f"holds a whole pickled {what}.*has run") as said:
        read(path, form)
    assert "torch.save(model.state_dict(), FILE)" in str(said.value)
    assert "--module" in str(said.value)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_honest_files_are_read(tmp_path: Path, form: str) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.note = "an attribute"  # type: ignore[attr-defined]
    content: dict[str, Any] = {
        "state_dict": OrderedDict(a=weight, tied=weight.detach()),
        "blur": torch.ones(3, 3).expand(256, 1, 3, 3),
        "losses": [0.5] * 2_000,
        "raw": bytearray(b"\x80\xff"),
        "empty": bytearray(),
        "counts": Counter("aab"),
        "seen": {1, 2},
        "complex": 1 + 2j,
        "size": torch.Size((1, 2)),
        "device": torch.device("cpu"),
        "type": torch.float8_e5m2,
        "sparse": torch.eye(3).to_sparse(),
        "shared": [[1] * 10] * 10,
    }
    if form == "zip":  # torch itself can't read it in the old format
        content["small"] = torch.ones(2, dtype=torch.float8_e5m2)
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    made = read(path, form)
    for key in ("raw", "empty", "counts", "seen", "complex", "size", "device", "type", "shared"):
        assert made[key] == content[key], key
    assert torch.equal(made["blur"], content["blur"])
    assert torch.equal(made["sparse"].to_dense(), torch.eye(3))


def test_the_search_for_state_dicts_ends_at_its_last_level() -> None:
    class Last(dict[str, Any]):
        def __iter__(self) -> Any:
            raise AssertionError("looked into")

    found = [path for path, _ in mappings({"a": {"b": Last(c={})}})]
    assert found == [(), ("a",), ("a", "b")]
