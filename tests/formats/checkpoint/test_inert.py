"""What may stand beside tensors: read as plain values, and nothing that a file says is called."""

from __future__ import annotations

import argparse
import copyreg
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsconvert.cli import main
from dsconvert.errors import CorruptSnapshotError, UnsafeSnapshotError
from dsconvert.formats.checkpoint.read import is_checkpoint, read

scalar: Any = np.float64(1).__reduce__()[0]
reconstruct: Any = np.zeros(2).__reduce__()[0]

VALUES: dict[str, Any] = {
    "args": argparse.Namespace(lr=0.1, names=["a"], nothing=None, step=np.int64(3)),
    "no args": argparse.Namespace(),
    "nested": {"x": [argparse.Namespace(y=argparse.Namespace(z=1))]},
    "float": np.float32(0.5),
    "double": np.float64(2.5),
    "half": np.float16(3),
    "integer": np.int64(-7),
    "byte": np.uint8(200),
    "truth": np.bool_(True),
    "complex": np.complex64(1 + 2j),
    "text": np.str_("hé"),
    "no text": np.str_(""),
    "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
    "big-endian": np.array([1, 2], dtype=">i4"),
    "no dimensions": np.array(3.0),
    "nothing in it": np.zeros((0, 3)),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(b, np.ndarray):
        # numpy itself makes a big-endian array native when it reads one.
        kinds = a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
        return kinds and a.shape == b.shape and bool((a == b).all())
    if isinstance(b, np.generic):
        return type(a) is type(b) and a == b
    return a == b


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_plain_values_go_there_and_back(tmp_path: Path, form: str) -> None:
    path, again = tmp_path / "a.pth", tmp_path / "b.pth"
    content = {"state_dict": {"w": torch.ones(2)}, **VALUES}
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    found, known = is_checkpoint(path), set(torch.serialization.get_safe_globals())
    assert found == form
    made = read(path, found)
    for key, value in VALUES.items():
        assert same(made[key], value), key
    torch.save(made, again)
    # The original code reads what it wrote, and dsconvert is not named in the file.
    back = torch.load(again, weights_only=False)
    for key, value in VALUES.items():
        assert same(back[key], value), key
        assert type(back[key]) is type(value), key
    assert b"dsconvert" not in again.read_bytes()
    # Nobody else's reading has become more permissive.
    assert set(torch.serialization.get_safe_globals()) == known
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


class Calls:
    """Pickled as a call (or an object with a state) of the test's choice."""

    def __init__(self, func: Any, *args: Any, state: Any = None) -> None:
        self._made = (func, args, state) if state is not None else (func, args)

    def __reduce__(self) -> Any:
        return self._made


class Trap:
    """Leaves a folder behind when it is made."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["TRAP"],)


def _dtype(flags: int, code: str = "f8") -> Calls:
    return Calls(np.dtype, code, False, True, state=(3, "<", None, None, None, -1, -1, flags))


HOSTILE = {
    "call in a namespace": lambda: argparse.Namespace(x=Trap()),
    "namespace with arguments": lambda: Calls(argparse.Namespace, "x"),
    "namespace with a class": lambda: Calls(
        argparse.Namespace, state={"__class__": "x", "__reduce__": "y"}
    ),
    "namespace with slots": lambda: Calls(argparse.Namespace, state=({}, {"__class__": "x"})),
    "namespace with a list": lambda: Calls(argparse.Namespace, state=["x"]),
    "namespace with numbers for names": lambda: Calls(argparse.Namespace, state={1: 2}),
    "reconstructor": lambda: Calls(copyreg._reconstructor, argparse.Namespace, object, None),  # type: ignore[attr-defined]
    "object dtype": lambda: Calls(np.dtype, "O"),
    "object scalar": lambda: Calls(scalar, Calls(np.dtype, "O8", False, True), b"12345678"),
    "structured dtype": lambda: Calls(np.dtype, "i4,O"),
    "dtype of a list": lambda: Calls(np.dtype, [("a", "O")]),
    "flags of objects": lambda: Calls(scalar, _dtype(63), b"12345678"),
    "flags of pickled lists": lambda: Calls(scalar, _dtype(2), b"12345678"),
    "fields in a state": lambda: Calls(
        np.dtype, "V8", False, True, state=(3, "|", None, ("a",), {"a": 1}, 8, 1, 63)
    ),
    "a scalar of too many bytes": lambda: Calls(scalar, _dtype(0), b"1" * 80),
    "a scalar of too few bytes": lambda: Calls(scalar, _dtype(0), b"1"),
    "a scalar of no dtype": lambda: Calls(scalar, "f8", b"12345678"),
    "a huge text": lambda: Calls(scalar, _dtype(8, "U9999999"), b"1"),
    "an array by its class": lambda: Calls(np.ndarray, (1 << 40,)),
    "an array of objects": lambda: Calls(
        reconstruct, np.ndarray, (0,), b"b",
        state=(1, (1,), Calls(np.dtype, "O8", False, True), False, [Trap()]),
    ),
    "an array larger than its bytes": lambda: Calls(
        reconstruct, np.ndarray, (0,), b"b", state=(1, (1 << 40,), _dtype(0), False, b"12345678")
    ),
    "an array of a negative shape": lambda: Calls(
        reconstruct, np.ndarray, (0,), b"b", state=(1, (-1, -1), _dtype(0), False, b"12345678")
    ),
    "an array of another class": lambda: Calls(reconstruct, argparse.Namespace, (0,), b"b"),
    "bytes of a size": lambda: Calls(bytes, 1 << 40),
    "numpy's loader": lambda: Calls(np.load, "x"),
    "numpy's reader of objects": lambda: Calls(np.fromfile, "/etc/hostname"),
    "builtins": lambda: Calls(eval, "1"),
    "a getter": lambda: Calls(getattr, "x", "upper"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_values_are_refused_and_nothing_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    form: str,
) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    path = tmp_path / "x.pth"
    content = {"state_dict": {"w": torch.ones(2)}, "x": HOSTILE[name]()}
    torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    known = set(torch.serialization.get_safe_globals())
    with pytest.raises((UnsafeSnapshotError, CorruptSnapshotError)):
        read(path, form)
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not (tmp_path / "sprung").exists()
    assert set(torch.serialization.get_safe_globals()) == known
