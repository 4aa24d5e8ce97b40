"""Errors with many lines, and with none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsconvert.errors import CorruptSnapshotError, UsageError
from dsconvert.formats.checkpoint import inert
from dsconvert.formats.checkpoint.read import read
from dsconvert.util.devices import usable
from dsconvert.util.first_line import first_line


def test_an_error_without_a_message_is_named() -> None:
    assert first_line(RuntimeError("\n one\ntwo")) == "one"
    assert first_line(AssertionError()) == first_line(AssertionError("\n")) == "AssertionError"


def test_errors_of_others_without_a_message_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object, **__: object) -> None:
        raise AssertionError

    def corrupt(*_: object, **__: object) -> None:
        raise EOFError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", silent)
        with pytest.raises(UsageError, match="can't be used here: AssertionError"):
            usable("cuda:7")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    monkeypatch.setattr(inert, "load", corrupt)
    with pytest.raises(CorruptSnapshotError, match="is damaged"):
        read(tmp_path / "a.pt", "zip")
