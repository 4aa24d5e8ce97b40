"""Numbers of NumPy in a pickle stand for plain numbers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsconvert.safepickle import Record, Source, plain_number, read_pickle


def read(path: Path, value: Any, protocol: int = 4) -> Any:
    path.write_bytes(pickle.dumps({"value": value}, protocol))
    return plain_number(dict(read_pickle(Source(path)).entries)["value"])


@pytest.mark.parametrize(
    "value",
    [
        np.float64(2**2.1), np.float32(0.5), np.float16(0.25), np.int64(-3), np.int32(7),
        np.uint8(200), np.int16(-2), np.bool_(True), np.frombuffer(b"\0\1", ">i2")[0],
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_number_is_the_one_that_was_written(value: Any, protocol: int, tmp_path: Path) -> None:
    got = read(tmp_path / "number.pkl", value, protocol)
    assert got == value.item()
    assert type(got) is type(value.item())


@pytest.mark.parametrize("value", [np.complex64(1j), np.arange(2), np.datetime64("2020")])
def test_anything_else_stays_what_it_is(value: Any, tmp_path: Path) -> None:
    assert type(read(tmp_path / "other.pkl", value)) is Record


def test_plain_values_stay_themselves() -> None:
    assert [plain_number(v) for v in (1, 0.5, "x", None)] == [1, 0.5, "x", None]
