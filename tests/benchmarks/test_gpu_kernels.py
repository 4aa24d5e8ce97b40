"""The rows of the GPU benchmark for single kernels, without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dsconvert import kernels

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu
from gpu_kernels import FIRST, KERNELS, REST, FellBackError, Kernel, fallen_back, refuse
from gpu_report import EVERYTHING
from gpu_rows import MODES, ORDER

from tests.benchmarks.test_gpu import run


def test_every_kernel_has_rows_in_their_place() -> None:
    assert {row for row, _, _ in (*FIRST, *REST)} == KERNELS.keys()
    assert all(mode in MODES for _, mode, _ in (*FIRST, *REST))
    single = [(row, mode, letter) for row, mode, letters in EVERYTHING for letter in letters]
    assert len(set(single)) == len(single)
    # Whole generators come first, and in their own order.
    assert EVERYTHING[:2] == ORDER[:2]
    assert [e for e in EVERYTHING if e[0] not in KERNELS] == list(ORDER)
    assert EVERYTHING.index(FIRST[0]) < EVERYTHING.index(("official", "BF16", "FTB"))


def test_the_numbers_that_a_kernel_must_move() -> None:
    up = Kernel(operation="depthwise", channels=4, side=8, filter=4)
    assert up.numbers(step=False) == 4 * 64 + 4 * 256
    assert up.numbers(step=True) == (4 * 64 + 4 * 256) + (4 * 64 + 4 * 256) + 4 * 64
    gate = Kernel(operation="batch_norm_gate", channels=4, side=8, filter=0)
    assert gate.numbers(step=False) == 2 * 256 + 128
    assert gate.numbers(step=True) == (2 * 256 + 128) + 2 * (256 + 128) + 256


@pytest.mark.slow
@pytest.mark.extended
def test_small_rows_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("--rows", "kernel*512 ch, 16 px", "--modes", "BF16")
    rows = run(monkeypatch, tmp_path / "gpu", 600, *chosen)["rows"]
    assert {r["operation"] for r in rows} == {"kernel_32", "kernel step_16"}
    assert not any("error" in r or "fell_back" in r for r in rows)
    assert all(r["floor_of"] == "bytes" and r["times_floor"] > 0 for r in rows)
    text = (tmp_path / "gpu.md").read_text()
    assert "kernel, forward + backward, batch 16" in text
    assert "| kernel: depthwise behind an upsample, 512 ch, 16 px | BF16 | " in text


@pytest.mark.slow
def test_a_fallback_on_a_card_fails_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with kernels.recording() as events:
        kernels.noise_gate(torch.ones(1, 4, 8, 8))
    assert fallen_back(events, "cpu") == []
    (said,) = fallen_back(events, "cuda:0")
    assert said == "noise_gate (4 to 4 channels, 1 x 64, float32): the tensors are on cpu"
    refuse([{"row": "fast"}])
    with pytest.raises(FellBackError, match=r"1 operations of official sizes .*1 x 64, float32"):
        refuse([{"row": "fast, lean", "fell_back": [said]}, {"fell_back": [said]}])

    row = {"median_s": 1.0, "low_s": 1.0, "high_s": 1.0, "times_floor": 9.0, "batch": 32}
    row |= {"floor_of": "bytes", "peak_bytes": 1, "images_per_s": 1.0, "fell_back": [said]}

    def measured(*_: Any, **__: Any) -> dict[str, Any]:
        return row

    monkeypatch.setattr(gpu, "measure", measured)
    chosen = ("--rows", "kernel*upsample*", "--modes", "FP32", "--operations", "K")
    with pytest.raises(SystemExit, match=r"^1$"):
        run(monkeypatch, tmp_path / "gpu", 600, *chosen)
    assert "error: 1 operations of official sizes fell back" in capsys.readouterr().err
    assert "FELL BACK" in (tmp_path / "gpu.md").read_text()
