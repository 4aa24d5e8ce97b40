"""``dsconvert bench`` as typed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsconvert.bench import Limits, Measurement, Operation, Timing, compare, limits
from dsconvert.cli import bench, main
from dsconvert.report.timings import headline, measurement_report

QUICK = ["--repeats", "3", "--batch", "2", "--train-batch", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of this machine by small products and copies; the usual ones take seconds."""
    monkeypatch.setattr(bench, "limits", functools.partial(limits, size=256, floats=1 << 20))


@pytest.fixture(scope="module")
def fast_file(snapshot_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fast") / "fast.pkl"
    options = ["--preset", "fast", "--init", "svd", "--calibrate", "0", "--quiet"]
    assert main([str(snapshot_file), "--out", str(out), *options]) == 0
    return out


@pytest.mark.slow
def test_json_table_and_last_line(
    snapshot_file: Path,
    fast_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is said of one measurement, which takes most of the time."""
    measured: list[list[Measurement]] = []

    def once(*args: Any, **options: Any) -> list[Measurement]:
        if not measured:
            measured.append(compare(*args, **options))
        return measured[0]

    monkeypatch.setattr(bench, "compare", once)
    words = ["bench", str(snapshot_file), str(fast_file), *QUICK]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    one, two = data["models"]
    assert one["params"] > two["params"]
    assert set(one["times"]) == {"forward_batch_1", "forward_batch_2", "step_batch_1"}
    for timing in one["times"].values():
        assert timing["runs"] == 3
        assert timing["quartiles_s"][0] <= timing["median_s"] <= timing["quartiles_s"][1]
    assert two["kept_for_backward_bytes"]["step_batch_1"] > 0
    assert data["machine"]["threads"] == 1
    assert data["limits"]["gmac_per_s"] > 0

    monkeypatch.setattr(bench, "remote", lambda *_: SimpleNamespace(close=lambda: None))
    limit = Limits(macs_per_second=1e9, bytes_per_second=1e9)
    monkeypatch.setattr(bench, "limits", lambda _: limit)
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("forward, batch 2" in line for line in lines[:3])
    assert any(line.split()[:1] == ["fast.pkl"] and "fewer" in line for line in lines)
    assert main([*words, "--quiet"]) == 0
    quiet = capsys.readouterr().out.splitlines()
    assert quiet[0].startswith("fast.pkl: ")
    assert len(quiet) <= 2
    measured[0] = measured[0][:1]
    assert main([*words[:2], *QUICK, "--quiet"]) == 0
    quiet = capsys.readouterr().out
    assert quiet.startswith(f"{snapshot_file.name}: ")
    assert "forward, batch 2" in " ".join(quiet.split())


def test_the_last_line_of_one_file_has_its_times() -> None:
    times = {
        Operation(kind="forward", batch=n): Timing.of([0.25 * n, 0.5 * n, 0.75 * n]) for n in (1, 8)
    }
    alone = Measurement(name="fast.pkl", params=3, times=times)
    line = "fast.pkl: 500 ms (forward, batch 1), 4.00 s (forward, batch 8)"
    assert headline([alone]) == [line]
    assert line not in measurement_report([alone])  # the table says so


@pytest.mark.slow
def test_a_table_of_forward_passes_with_freed_memory_kept(
    snapshot_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["bench", str(snapshot_file), *QUICK, "--train-batch", "0", "--keep-freed"]) == 0
    text = capsys.readouterr().out
    assert "memory kept" in " ".join(text.split())
    assert "forward, batch 1" in text
    assert "backward" not in text
    assert "GMAC/s" in text


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--device", "warp"], "device 'warp'"),
        (["--dtype", "int4"], "int4"),
        (["--threads", "0"], "0 threads"),
        (["--repeats", "0"], "--repeats 0"),
        (["--batch", "0"], "--batch 0"),
    ],
)
def test_bad_input_is_one_sentence(
    snapshot_file: Path, extra: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(snapshot_file), *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_a_file_named_twice(snapshot_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(snapshot_file), str(snapshot_file)]) == 2
    assert "named twice" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.extended
def test_a_trained_generator(shared_snapshots: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_snapshots / "stamps-128-ngf32.pkl"
    assert main(["bench", str(path), *QUICK, "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert 9.7e6 < model["params"] < 9.8e6
