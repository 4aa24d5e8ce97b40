"""The teacher that is trained over several visits: its files, and a visit in small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import spectral_norm

from tests.train.parts import tiny_zip

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPT = EXAMPLES / "train_teacher.py"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    assert (EXAMPLES / "teacher_files.py").is_file()
    import teacher_files  # type: ignore[import-not-found]

    assert teacher_files.PART_BYTES <= 16 << 20  # the limit of a lent machine
    return teacher_files


@pytest.fixture
def small_parts(files: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(files, "PART_BYTES", 1 << 18)
    return files


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    made.eval()
    made[1].running_var.fill_(1e6)  # more than half precision holds
    return made


def test_parts_are_joined_again(small_parts: ModuleType, tmp_path: Path) -> None:
    files = small_parts
    networks = {"ema": network(0), "d": network(1), "g": network(2)}
    sheet = torch.randint(0, 256, (600_000,), dtype=torch.uint8).numpy().tobytes()
    others = {"samples.png": sheet, "curve.json": b'{"visits": []}'}
    facts = {"resolution": "8", "images": "96"}
    for images in (64, 96):
        left = files.write_parts(
            tmp_path, "teacher", networks, facts, others, images=images, parts=4
        )
        assert left == []
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == [f"teacher-96.{i}of3" for i in range(3)]  # the set of 64 is gone
    assert max(p.stat().st_size for p in tmp_path.iterdir()) <= 1 << 18
    # A set that was cut off while it was written is no set.
    (tmp_path / "teacher-128.0of4").write_bytes(b"cut off")
    assert files.collect(tmp_path, tmp_path / "out") == {"visits": []}
    assert (tmp_path / "out/samples.png").read_bytes() == sheet
    again = network(9)
    files.load_stored(again, tmp_path / "out/d.safetensors")
    assert files.network_of(tmp_path / "out/d.safetensors") == "d"
    assert files.facts_of(tmp_path / "out/g.safetensors")["images"] == "96"
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(again(x), networks["d"](x), atol=2e-3)
    assert again[1].running_var.max() == 1e6
    with pytest.raises(SystemExit, match="another network"):
        files.load_stored(nn.Linear(2, 2), tmp_path / "out/d.safetensors")
    with pytest.raises(SystemExit, match="no complete set"):
        files.collect(tmp_path / "out", tmp_path / "none")


def test_networks_that_do_not_fit_are_left_out(small_parts: ModuleType, tmp_path: Path) -> None:
    large = nn.Linear(300, 250)  # 150 kB in half precision
    networks = {"ema": large, "d": large, "g": network()}
    left = small_parts.write_parts(tmp_path, "t", networks, {}, {}, images=1, parts=1)
    assert left == ["d"]
    assert [p.name for p in tmp_path.iterdir()] == ["t-1.0of1"]


@pytest.mark.slow
@pytest.mark.extended
def test_visits_add_up(files: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps, one more of the same run, then a visit that starts from the files."""
    pytest.importorskip("timm")
    import make_demo_snapshot  # type: ignore[import-not-found]
    import train_teacher  # type: ignore[import-not-found]

    data = tiny_zip(tmp_path)

    def visit(run: str, kimg: str, *more: str | Path) -> None:
        words = (
            "train", data, "--device", "cpu", "--ngf", "2", "--batch", "4", "--discs", "1",
            "--evaluate", "2", "--final", "2", "--seconds", "600", "--every", "0.008", "--kimg",
            kimg, "--out", tmp_path / "out", "--run", tmp_path / run, *more,
        )  # fmt: skip
        train_teacher.main([str(w) for w in words])

    def collected(name: str) -> dict[str, Any]:
        train_teacher.main(["collect", str(tmp_path / "out"), str(tmp_path / name)])
        found: dict[str, Any] = json.loads((tmp_path / name / "curve.json").read_text())
        return found

    visit("run", "0.008")
    visit("run", "0.012")
    first = collected("first")
    assert [len(first["visits"]), first["images"]] == [1, 12]
    assert [r["images"] for r in first["visits"][0]["judged"]] == [0, 8, 12]
    start = sorted((tmp_path / "first").glob("*.safetensors"))
    assert [p.stem for p in start] == ["d", "ema", "g"]
    visit("later", "0.004", "--start", *start)
    second = collected("second")
    assert second["images"] == 16
    assert second["visits"][0] == first["visits"][0]
    later = second["visits"][1]
    assert [later["from_images"], later["config"]["seed"]] == [12, 1]
    # The start is judged first: the average that the first visit ended with, in half precision.
    before = first["visits"][0]["judged"][-1]["fd_lite0"]
    assert later["judged"][0]["images"] == 12
    assert later["judged"][0]["fd_lite0"] == pytest.approx(before, rel=0.01)
    # The clock ends a run after the step that is under way, and leaves no time to judge it.
    visit("none", "1", "--seconds", "0")
    third = collected("third")
    assert third["images"] <= 8
    assert third["visits"][0]["final"] == {}
    snapshot = tmp_path / "teacher.pkl"
    weights = ("--weights", str(tmp_path / "second/ema.safetensors"))
    monkeypatch.setattr(sys, "argv", ["make_demo_snapshot.py", str(snapshot), *weights])
    make_demo_snapshot.main()
    assert snapshot.is_file()


def test_a_visit_s_script_names_what_is_there() -> None:
    script = (SCRIPT.parents[1] / "benchmarks/gpu_visit.sh").read_text(encoding="utf-8")
    assert SCRIPT.is_file()
    for name in re.findall(r"(?:benchmarks|examples|tests)/[\w/]+\.(?:py|sh)", script):
        assert (SCRIPT.parents[1] / name).is_file()
    done = subprocess.run(
        ["bash", "benchmarks/gpu_visit.sh", "20", "tests,nonsense"],
        cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "there is no step nonsense" in done.stderr
