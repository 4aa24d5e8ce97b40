"""The benchmark beside peers: its rows at a small size, its resumable file, its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers  # noqa: E402
from peer_report import _ratio, floor, markdown  # noqa: E402
from peer_rows import CONFIGS, ROWS, Options, SkippedError, build, official, traffic  # noqa: E402

from dsconvert.bench import Limits  # noqa: E402
from dsconvert.core.pipeline import cost, sampler_of  # noqa: E402


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("peers")
    return Options(config="lite-256", ngf=2, init="svd", calibrate=0, folder=folder, threads=1)


@pytest.fixture(scope="module")
def original(options: Options) -> torch.nn.Module:
    return official(options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact", "fast", "BSConv", "Torch-Pruning, balanced's MACs"])
def test_a_row_is_built_from_the_official_generator(
    name: str, original: torch.nn.Module, options: Options
) -> None:
    before = {k: v.clone() for k, v in original.state_dict().items()}
    try:
        built, seconds = build(name, original, options)
    except SkippedError as why:
        pytest.skip(str(why))
    example = sampler_of(original)(1, torch.Generator().manual_seed(0))
    assert seconds > 0
    assert cost(built.model, example).macs < cost(original, example).macs
    with torch.no_grad():
        assert built.model(*example).shape == original(*example).shape
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())


def test_nothing_is_left_at_its_initial_value(original: torch.nn.Module) -> None:
    for name, tensor in original.state_dict().items():
        if tensor.is_floating_point() and "se_" not in name:
            assert not torch.equal(tensor, torch.zeros_like(tensor)), name
            assert not torch.equal(tensor, torch.ones_like(tensor)), name


def test_traffic_counts_each_convolution_once() -> None:
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU())
    moved, macs = traffic(conv, (torch.zeros(1, 3, 4, 4),))
    assert moved == 16 * (3 + 8)
    assert macs == 16 * 3 * 8 * 9
    up = torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=4)
    assert traffic(up, (torch.zeros(1, 8, 4, 4),))[1] == 16 * 8 * 1 * 16


def test_the_floor_is_the_slower_of_work_and_traffic() -> None:
    meta = {"gmac_per_s": 1.0, "gb_per_s": 1.0}
    row = {"macs": 2e9, "params": 0, "traffic_bytes": 1e9}
    assert floor(row, meta, 1, 1) == pytest.approx(2)
    assert floor(row | {"traffic_bytes": 5e9}, meta, 4, 3) == pytest.approx(60)


@pytest.mark.slow
@pytest.mark.extended
def test_a_run_is_written_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = Limits(macs_per_second=1e9, bytes_per_second=1e9)
    monkeypatch.setattr(peers, "limits", lambda _: best)

    def run(rows: str) -> dict:
        command = ["peers.py", "--quick", "--ngf", "2", "--sizes", "lite-256", "--rows", rows]
        command += ["--forward-only", "--threads", "1", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", command)
        peers.main()
        return json.loads((tmp_path / "peers.json").read_text())

    first = run("official")
    assert [r["name"] for r in first["rows"]] == ["official"]
    both = run("exact")
    assert [r["name"] for r in both["rows"]] == ["official", "exact"]
    exact = both["rows"][1]
    assert exact["psnr_db"] > 60
    assert exact["macs"] < both["rows"][0]["macs"]
    # Ratios are taken within one run.
    assert exact["reference_seconds"] == both["rows"][0]["seconds"]
    text = (tmp_path / "peers.md").read_text()
    assert "| exact |" in text
    assert "GMAC/s" in text
    assert run("exact")["rows"] == both["rows"]


def test_a_missing_tool_is_a_row_with_its_reason() -> None:
    meta = {
        "machine": "m", "cores": 1, "threads": 1, "device": "cpu", "dtype": "float32",
        "torch": "2", "versions": {}, "date": "d", "ngf": 2, "init": "svd", "calibrate": 0,
        "gmac_per_s": 1.0, "gb_per_s": 1.0,
    }  # fmt: skip
    rows = [{"size": "256", "name": "BSConv", "skipped": "not installed: pip install bsconv"}]
    assert "not measured: not installed: pip install bsconv" in markdown(
        {"meta": meta, "rows": rows}
    )


def test_the_first_rows_are_the_important_ones() -> None:
    assert list(ROWS)[:5] == ["official", "exact", "paper", "balanced", "fast"]
    assert next(iter(CONFIGS)) == "256"


def test_a_ratio_of_unsteady_rounds_is_marked_or_left_out() -> None:
    def ratio(own: list[float], reference: list[float]) -> str:
        row = {"name": "x", "seconds": {"a": own}, "reference_seconds": {"a": reference}}
        return _ratio(row, "a")

    steady, wild = [1.0, 1.05, 1.1], [1.0, 1.05, 1.6]
    assert ratio(steady, [4.2, 4.2, 4.3]) == ", **4.0x**"
    assert ratio(wild, [4.2, 4.2, 4.3]) == ", **~4.0x**"
    assert ratio(steady, [3.0, 4.2, 5.0]) == ", official unsteady"
