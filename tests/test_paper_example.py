"""The paper's experiment on a card: its arms, its clock, and its table of runs that differ."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "reproduce_paper.py"


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("paper_on_a_card", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, example)
    spec.loader.exec_module(example)
    return example


def arm(paper: Any, out: Path, preset: str, seed: int, curve: dict[int, float], pace: float) -> Any:
    """A run with the statistics of one: FD by images, seconds for 1,000 images."""
    made = paper.Arm("x", preset, seed, out / f"x-{paper.named(preset)}-seed{seed}")
    made.folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for images, fd in curve.items():
        rows.append({"images": images, "sec_per_kimg": pace, "peak_memory_bytes": 2**30})
        rows.append({"images": images, "fd_lite0": fd, "fd_images": 8, "fd_floor": 2.0})
    (made.folder / "stats.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    settings = {"cost": {"parameters": 1e6, "macs": 1e9}}
    (made.folder / "settings.json").write_text(json.dumps(settings))
    return made


def test_the_words_of_an_arm(paper: Any) -> None:
    def words(preset: str) -> list[str]:
        return paper.Arm("x", preset, 0, Path()).words

    assert words("paper") == ["--preset", "paper"]
    assert words("none:0.5") == ["--preset", "none", "--width", "0.5"]
    assert words("fast:0.75+lean") == [
        "--preset", "fast", "--width", "0.75", "--recompute", "lean",
    ]  # fmt: skip
    assert paper.named("none:0.5") == "none-width0.5"


def test_runs_of_different_length_are_compared_where_both_are_known(
    paper: Any, tmp_path: Path
) -> None:
    dense = arm(paper, tmp_path, "none", 0, {4000: 200.0, 8000: 100.0}, pace=2.0)
    arms = [
        dense,
        arm(paper, tmp_path, "none", 1, {4000: 200.0, 8000: 100.0}, pace=2.0),
        # Seed 1 was not trained; seed 0 was stopped half way, at the half of the time per image.
        arm(paper, tmp_path, "paper", 0, {4000: 150.0}, pace=1.0),
    ]
    made, rows = paper.table(arms, ["none", "paper"])
    changes = rows[1]["changes"]
    assert changes["time"] == "-50.0 %"
    assert changes["images"] == "-25.0 %"  # at 4,000 images: 150 and 200
    # After 4 s: paper has 150, dense is at 2,000 images, before its first judgement of 200.
    assert changes["equal_time"] == "-25.0 %"
    assert rows[1]["fd"] == [[(4000, 150.0)]]
    assert [len(r["runs"]) for r in rows] == [2, 1]
    assert next(iter(made.columns[2].cells)) == "2 x 8000"
    assert paper.at_images(dense, arms[2]) == 200.0


@pytest.mark.slow
def test_a_training_is_stopped_by_the_clock(paper: Any) -> None:
    def code(text: str, seconds: float) -> int:
        return paper.finished(["bash", "-c", text], time.time() + seconds)

    assert code("trap 'exit 130' INT; sleep 30 & wait", 1) == paper.INTERRUPTED
    assert code("exit 3", 30) == 3


def test_an_arm_without_checkpoints_begins_anew(
    paper: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def finished(words: list[str], _: float | None) -> int:
        seen.append(words)
        return 0

    monkeypatch.setattr(paper, "finished", finished)
    made = arm(paper, tmp_path, "none:0.5", 0, {4000: 1.0}, pace=1.0)
    options = argparse.Namespace(
        cfg="fastgan", resolution="128", ngf="2", batch="2", tick="1", snap="2", evaluate="4",
        discs="1", channels_last=False, recompute="none", precision="tf32", device="cuda",
        cuda_graph="on",
    )  # fmt: skip
    assert paper.turn(made, Path("data"), options, 8.0, None)
    assert not made.folder.exists()
    (words,) = seen
    assert words[words.index("--width") + 1] == "0.5"
    assert "--resume" not in words
    assert words[-7:] == [
        "--precision", "tf32", "--device", "cuda", "--cuda-graph", "on", "--quiet",
    ]  # fmt: skip
    (made.folder / "checkpoints").mkdir(parents=True)
    (made.folder / "settings.json").write_text("{}")
    assert paper.turn(made, Path("data"), options, 8.0, None)
    assert seen[1][3:5] == ["--resume", str(made.folder)]
    assert "--width" not in seen[1]
    assert seen[1][-3:] == ["--cuda-graph", "on", "--quiet"]


def test_the_archive_holds_the_statistics(paper: Any, tmp_path: Path) -> None:
    out = tmp_path / "paper"
    made = arm(paper, out, "none", 0, {4: 1.0}, pace=1.0)
    (made.folder / "checkpoints").mkdir()
    (made.folder / "checkpoints/large.pt").write_bytes(b"x")
    paper.archive(tmp_path / "p.tar.gz", out)
    with tarfile.open(tmp_path / "p.tar.gz") as archive:
        names = archive.getnames()
    assert names == [f"paper/{made.folder.name}/{n}" for n in ("settings.json", "stats.jsonl")]
