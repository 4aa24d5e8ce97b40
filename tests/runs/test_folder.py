"""A run's folder belongs to one process, and never loses the checkpoint that was just written."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsconvert.errors import OutputError, TrainingError
from dsconvert.runs.checkpoint import load_newest, save_checkpoint
from dsconvert.runs.folder import RunFolder, new_run_path
from dsconvert.runs.lock import locked

HOLD = """
import sys
from pathlib import Path
from dsconvert.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_run_that_fell_back_keeps_its_new_checkpoint(tmp_path: Path, keep: int) -> None:
    folder = RunFolder(tmp_path)
    folder.make()
    for images in (100, 200):
        save_checkpoint(folder, images, {"at": images}, keep=2)
    folder.checkpoint(200).write_bytes(b"damaged")
    assert load_newest(folder.checkpoints())["at"] == 100
    for images in (150, 200, 250):
        new = save_checkpoint(folder, images, {"at": images}, keep=keep)
        assert load_newest(folder.checkpoints())["at"] == images
        assert folder.checkpoints()[-1] == new
        assert len(folder.checkpoints()) == max(keep, 1)
    aside = folder.checkpoint_folder / "images-0000000200.pt.unreadable"
    assert aside.read_bytes() == b"damaged"


def test_two_processes_get_two_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def rival(self: Path):
        names = list(listed(self))
        if len(names) < 3:  # another process makes the next folder after each look
            (self / f"{len(names):05d}-x").mkdir()
        return iter(names)

    monkeypatch.setattr(Path, "iterdir", rival)
    assert new_run_path(tmp_path, None, "x") == tmp_path / "00003-x"


def test_names_that_are_taken_or_impossible(tmp_path: Path) -> None:
    assert new_run_path(tmp_path, "run", "x") == new_run_path(tmp_path, "run", "x")  # empty
    (tmp_path / "run" / "settings.json").write_text("{}")
    with pytest.raises(OutputError, match="--resume"):
        new_run_path(tmp_path, "run", "x")
    (tmp_path / "99999-x").mkdir()
    assert new_run_path(tmp_path, None, "x").name == "100000-x"
    assert new_run_path(tmp_path, None, "x").name == "100001-x"
    (tmp_path / "dead").symlink_to("nowhere")
    for out in (tmp_path / "run" / "settings.json", tmp_path / "dead"):
        with pytest.raises(OutputError, match="can't be made"):
            new_run_path(out, None, "x")


@pytest.mark.slow
def test_the_lock_of_a_folder_ends_with_its_process(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(TrainingError, match=f"another process trains in {tmp_path}"),
            locked(tmp_path),
        ):
            raise AssertionError
        other.send_signal(signal.SIGKILL)
    for _ in range(2):
        with locked(tmp_path):
            pass
